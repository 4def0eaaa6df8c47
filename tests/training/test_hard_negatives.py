"""Clips without a digit for one step: how many, where they come from, and that what they come from stays as it is."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from ml_training.training.hard_negatives import count_beside, draw_negatives
from ml_training.training.setup import Clips


def none_of(clips: Clips) -> Clips:
    return clips.select(torch.zeros(len(clips), dtype=torch.bool))


@pytest.mark.parametrize(("digits", "share", "beside"), [(48, 0.25, 16), (10, 0.5, 10), (30, 0.0, 0), (1, 0.9, 9)])
def test_a_share_is_one_of_all_clips(digits: int, share: float, beside: int) -> None:
    assert count_beside(digits, share) == beside
    assert beside / (digits + beside) == pytest.approx(share)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_half_of_them_are_others_and_half_are_spoiled_digits(tiny: ModuleType, count: int) -> None:
    digits, others = tiny.bursts(40), tiny.hisses(15)
    torch.manual_seed(0)
    waveforms, lengths = draw_negatives(count, digits, others, None)
    assert waveforms.shape == (count, 8000)
    assert lengths.shape == (count,)
    there = {row.numpy().tobytes() for row in others.waveforms}
    taken = [row.numpy().tobytes() in there for row in waveforms]
    assert taken == [False] * (count - count // 2) + [True] * (count // 2)
    assert (lengths[count - count // 2 :] == 8000).all()


def test_without_others_all_are_spoiled_and_none_is_the_digit_it_was(tiny: ModuleType) -> None:
    digits = tiny.bursts(40)
    torch.manual_seed(0)
    waveforms, lengths = draw_negatives(30, digits, none_of(digits), None)
    there = {row.numpy().tobytes() for row in digits.waveforms}
    assert not any(row.numpy().tobytes() in there for row in waveforms)
    assert lengths.min() > 0
    assert len({row.numpy().tobytes() for row in waveforms}) == 30


def test_chance_alone_decides_which(tiny: ModuleType) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        waveforms: torch.Tensor = draw_negatives(12, tiny.bursts(40), tiny.hisses(15), None)[0]
        return waveforms

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_what_they_come_from_stays_as_it_is(tiny: ModuleType) -> None:
    digits, others = tiny.bursts(10), tiny.hisses(5)
    before = [clips.waveforms.clone() for clips in (digits, others)]
    torch.manual_seed(0)
    for clips in (others, none_of(others)):
        waveforms, lengths = draw_negatives(12, digits, clips, None)
        waveforms.zero_()
        lengths.zero_()
    assert all(torch.equal(*pair) for pair in zip(before, (digits.waveforms, others.waveforms), strict=True))
    assert (digits.lengths == 8000).all()
