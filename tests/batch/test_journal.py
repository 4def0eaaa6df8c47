"""The unfinished table: wherever it was cut off, nothing is repeated and nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ml_training.batch.journal import Journal, without
from ml_training.batch.tables import CsvTable, JsonLinesTable, Row, Table, table_for
from ml_training.batch.walk import Found, place
from ml_training.errors import BatchError

SETTINGS = {"named": {"top": "folder"}, "pipeline": "mfcc", "model": "0123456789abcdef"}
NAMES = ["a/1.wav", 'a/"2",\n.wav', "a/\udc80.wav", "b.wav", "c/七.wav", "d.wav"]


def table(out: Path) -> Table:
    return table_for(out, "model.onnx") if out.suffix != ".parquet" else JsonLinesTable("model.onnx")


def session(
    out: Path, found: Sequence[str], answered: Callable[[str], Row], most: int = 99, each: int = 1
) -> list[str]:
    """One process's worth: what is found and not done is written, at most `most` rows; what the journal said."""
    notes: list[str] = []
    with Journal(out, table(out), notes.append) as journal:
        journal.begin(SETTINGS, journal.remembered())
        todo = [item.name for item in without(map(Found, sorted(found, key=place)), journal.done())]
        for start in range(0, min(most, len(todo)), each):
            journal.add([answered(name) for name in todo[start : start + each]])
        if len(todo) <= most:
            journal.finish()
    return notes


def names_in(out: Path, read_rows: Callable[[Path], list[dict[str, str]]]) -> list[str]:
    names = [row["file"] for row in read_rows(out)]
    return [name.replace("\\udc80", "\udc80") for name in names] if out.suffix == ".csv" else names


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_table_has_its_name_when_it_is_whole(tmp_path, name, answered, read_rows) -> None:
    out = tmp_path / "new" / name
    session(out, NAMES, answered, most=2)
    assert sorted(path.name for path in out.parent.iterdir()) == [f"{name}.part", f"{name}.part.json"]
    assert session(out, NAMES, answered) == []
    assert [path.name for path in out.parent.iterdir()] == [name]
    assert names_in(out, read_rows) == sorted(NAMES, key=place)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_cut_off_at_any_byte_it_ends_the_same(tmp_path, name, answered) -> None:
    out = tmp_path / name
    session(out, NAMES, answered)
    whole = out.read_bytes()
    ends = [end for end, byte in enumerate(whole, 1) if byte == ord("\n")]
    near = {end + step for end in ends for step in (-2, -1, 0, 1)}
    for cut in sorted({*range(0, len(whole), 37), *near} - {len(whole) + 1}):
        session(out, NAMES, answered, most=0)
        assert (tmp_path / f"{name}.part").write_bytes(whole[:cut]) == cut
        assert session(out, NAMES, answered) == []
        assert out.read_bytes() == whole


def test_what_a_power_cut_left_is_answered_anew(tmp_path, answered, read_rows) -> None:
    out, part = tmp_path / "x.csv", tmp_path / "x.csv.part"
    session(out, NAMES, answered)
    whole = out.read_bytes()
    third = whole.index(b"c/")
    for damaged in (
        whole[:third] + bytes(500),
        whole[:third] + bytes(40) + whole[third + 40 :],
        whole[:third] + b'"' * 7,
    ):
        session(out, NAMES, answered, most=0)
        part.write_bytes(damaged)
        notes = session(out, NAMES, answered)
        assert out.read_bytes() == whole
        assert notes == [] or notes[0].endswith("is damaged behind row 4: what follows is answered anew")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from([f"{d}{n}.wav" for d in ("", "a/", "a/b/", "c ") for n in range(6)])),
                  st.integers(0, 9), st.sampled_from([1, 3]), st.integers(0, 99)),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["x.csv", "x.jsonl"]),
)  # fmt: skip
def test_files_may_come_and_go_between_sessions(tmp_path, answered, read_rows, sessions, name) -> None:
    out = tmp_path / name
    part = tmp_path / f"{name}.part"
    part.unlink(missing_ok=True)
    ever: set[str] = set()
    for found, most, each, torn in sessions:
        session(out, sorted(found), answered, most, each)
        ever |= found
        if not part.exists():  # whole: as if it had been killed before it was given its name
            out.replace(part)
            (tmp_path / f"{name}.part.json").write_text(
                json.dumps({"format": "streaming-digit-detector batch", "version": 1, **SETTINGS})
            )
        elif torn:
            with part.open("r+b") as file:
                file.truncate(max(0, part.stat().st_size - torn))
    session(out, sorted(found), answered)
    rows = names_in(out, read_rows)
    assert len(rows) == len(set(rows))
    assert found <= set(rows) <= ever


def test_two_runs_are_never_mixed(tmp_path, answered) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    for change, told in {
        ("pipeline", "mel_cnn"): "pipeline was mfcc, is mel_cnn",
        ("model", "fedcba9876543210"): "model was 0123456789ab, is fedcba987654",
        ("named", "more"): "named was top, is more",
    }.items():
        key, value = change
        with Journal(out, table(out), print) as journal:
            before = journal.remembered()
            changed = {**SETTINGS, key: {value: "folder"} if key == "named" else value}
            with pytest.raises(BatchError, match=f"belongs to another run: {told}. Ask the same again, or remove it"):
                journal.begin(changed, before)
    with Journal(out, table(out), print) as journal, pytest.raises(BatchError, match="--resume goes on with it"):
        journal.begin(SETTINGS, None)
    assert (tmp_path / "x.csv.part").read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "version": 1}'])
def test_a_table_of_which_nothing_is_known_is_left_alone(tmp_path, answered, content) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    about = tmp_path / "x.csv.part.json"
    about.write_text(content) if content else about.unlink()
    before = (tmp_path / "x.csv.part").read_bytes()
    with Journal(out, table(out), print) as journal, pytest.raises(BatchError, match="remove both to start anew"):
        journal.remembered()
    assert (tmp_path / "x.csv.part").read_bytes() == before


def test_a_file_that_is_no_table_of_ours_is_left_alone(tmp_path, answered) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    (tmp_path / "x.csv.part").write_text("something,else\n")
    with pytest.raises(BatchError, match="does not begin like one of ours"):
        session(out, NAMES, answered)
    assert (tmp_path / "x.csv.part").read_text() == "something,else\n"


@pytest.mark.skipif(os.name == "nt", reason="has no such locks")
def test_a_table_is_written_by_one_process_at_a_time(tmp_path, answered) -> None:
    out = tmp_path / "x.csv"
    code = (
        "import sys\nfrom pathlib import Path\nfrom ml_training.batch.journal import Journal\n"
        "from ml_training.batch.tables import table_for\nout = Path(sys.argv[1])\n"
        f"with Journal(out, table_for(out, ''), print) as journal:\n    journal.begin({SETTINGS!r}, None)\n"
        "    print('ready', flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(BatchError, match="is being written by another process"):
            session(out, NAMES, answered)
        other.stdin.close()
    session(out, NAMES, answered)
    assert out.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True)
    if done.returncode:
        pytest.skip("no rights to mount a disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a disk in memory")
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_disk_that_fills_leaves_whole_rows_and_resumes(small_disk, name, answered, read_rows) -> None:
    out, hog = small_disk / name, small_disk / "hog"
    names = [f"{n:04}.wav" for n in range(200)]
    hog.write_bytes(bytes(40 << 10))
    with pytest.raises(BatchError, match=r"part: No space left on device; the \d+ rows before are whole: make room"):
        session(out, names, answered, most=200, each=7)
    rows = names_in(small_disk / f"{name}.part", read_rows)
    assert 7 <= len(rows) < 200
    assert len(rows) % 7 == 0
    hog.unlink()
    session(out, names, answered, most=200)
    assert names_in(out, read_rows) == names


def test_an_error_of_the_disk_in_the_end_loses_nothing(tmp_path, answered, monkeypatch) -> None:
    pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "x.parquet"

    def full(rows: Path, beside: Path) -> None:
        beside.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("ml_training.batch.tables.write_parquet", full)
        with pytest.raises(BatchError, match="No space left on device; the 6 rows before are whole"):
            session(out, NAMES, answered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet.part", "x.parquet.part.json"]
    session(out, NAMES, answered)
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_what_is_done_is_read_side_by_side() -> None:
    found = [Found(name) for name in ("a", "b", "c", "e", "f")]
    assert [item.name for item in without(iter(found), iter(["0", "b", "d", "e"]))] == ["a", "c", "f"]
    assert list(without(iter(found), iter([]))) == found


def test_rows_of_several_sessions_are_read_in_the_order_of_the_walk(tmp_path, answered) -> None:
    out = tmp_path / "x.jsonl"
    for found in (["d", "e"], ["a", "c", "z"], ["b", "y"]):
        session(out, found, answered, most=len(found) - 1)
    with Journal(out, table(out), print) as journal:
        journal.begin(SETTINGS, journal.remembered())
        assert (journal.rows, journal.errors) == (4, 0)
        assert list(journal.done()) == ["a", "b", "c", "d"]


def test_rows_with_errors_are_counted_again(tmp_path) -> None:
    out = tmp_path / "x.csv"
    with Journal(out, CsvTable("m"), print) as journal:
        journal.begin(SETTINGS, None)
        journal.add([Row("a", error='no "audio"'), Row("b", error="gone")])
    with Journal(out, CsvTable("m"), print) as journal:
        journal.begin(SETTINGS, journal.remembered())
        assert (journal.answers, journal.errors) == (0, 2)
        assert io.BytesIO(journal.part.read_bytes()).readline() == CsvTable.header
