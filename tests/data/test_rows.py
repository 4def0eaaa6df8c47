"""Clips that lie in files are indexed as an array of them would be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ml_training.data.cache import Cache
from ml_training.data.rows import Rows, Source, identity_of, joined, some

FIRST = np.arange(40, dtype=np.float32).reshape(10, 4)
SECOND = -np.arange(12, dtype=np.float32).reshape(3, 4)
BOTH = np.concatenate([FIRST, SECOND])


def both() -> Rows:
    return Rows([Source(FIRST), Source(SECOND)])


@pytest.mark.parametrize(
    "wanted",
    [0, 12, -1, np.int64(11), slice(None), slice(8, 12), slice(11, 2, -3), [12, 0, 0, 9, 10], np.array([], int),
     np.arange(13) % 2 == 0, np.array([-1, 3])],
)  # fmt: skip
def test_they_are_indexed_as_one_array_is(wanted: Any) -> None:
    np.testing.assert_array_equal(both()[wanted], BOTH[wanted])


@given(st.lists(st.integers(0, 12)), st.data())
def test_some_of_some_are_what_they_are_of_an_array(chosen: list[int], data: st.DataObject) -> None:
    first = np.array(chosen, dtype=np.int64)
    places = np.array(data.draw(st.lists(st.integers(0, max(0, len(chosen) - 1)))) if chosen else [], dtype=np.int64)
    found = some(some(both(), first), places)  # type: ignore[arg-type]
    assert found.shape == (len(places), 4)
    np.testing.assert_array_equal(np.asarray(found), BOTH[first][places])


@pytest.mark.parametrize("wanted", [13, -14, [0, 13]])
def test_rows_that_there_are_not_are_an_error(wanted: Any) -> None:
    with pytest.raises(IndexError, match="there are 13"):
        both()[wanted]


def test_joining_reads_nothing_and_keeps_the_order() -> None:
    twice = joined([both(), BOTH[:2], some(both(), np.array([5, 3]))])  # type: ignore[list-item,arg-type]
    assert isinstance(twice, Rows)
    np.testing.assert_array_equal(twice[:], np.concatenate([BOTH, BOTH[:2], BOTH[[5, 3]]]))
    assert isinstance(joined([BOTH, BOTH]), np.ndarray)


def test_rows_of_a_file_are_read_as_those_of_an_array(tmp_path: Path) -> None:
    stored = Cache(tmp_path).keep("clips", {}, [{"clips": FIRST}, {"clips": SECOND}])
    assert stored is not None
    mixed = Rows([Source(stored.arrays["clips"], stored.places["clips"]), Source(FIRST)])
    expected = np.concatenate([BOTH, FIRST])
    Cache(tmp_path).clear()  # whoever reads keeps the file
    for wanted in ([0, 1, 2, 15, 16, 3, 4, 4, 12, 13], slice(None), slice(20, 3, -2), [], -1):
        np.testing.assert_array_equal(mixed[wanted], expected[wanted])


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    kept = Cache(tmp_path)
    stored = kept.keep("clips", {}, [{"clips": FIRST}])
    assert stored is not None
    os.truncate(kept.path("clips", {}), 100)
    with pytest.raises(OSError, match="became shorter"):
        Rows([Source(stored.arrays["clips"], stored.places["clips"])])[:]


def test_the_identity_tells_which_clips_in_which_order() -> None:
    same = [both().identity, Rows([Source(FIRST.copy()), Source(SECOND)]).identity]
    others = [
        Rows([Source(SECOND), Source(FIRST)]).identity, both().of([1, 0]).identity, both().of([0, 1]).identity,
        Rows([Source(FIRST + 1), Source(SECOND)]).identity,
        Rows([Source(FIRST, None, "known"), Source(SECOND)]).identity,
    ]  # fmt: skip
    assert len(set(same)) == 1
    assert len({*same, *others}) == 6
    assert identity_of(FIRST) != identity_of(FIRST.reshape(4, 10))


def test_clips_of_other_shapes_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="not alike"):
        Rows([Source(FIRST), Source(SECOND[:, :2])])
