"""The unfinished table: wherever it was cut off, nothing is repeated and nothing is lost."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digit_detector.errors import BatchError
from ml_training.predict.journal import Journal, without
from ml_training.predict.tables import CsvTable, ParquetTable, Row, Table, table_for
from ml_training.predict.walk import Found, place


class Killed(BaseException):
    """In the place of SIGKILL: nothing in the product catches it."""


def count_down(patched: pytest.MonkeyPatch, calls: int) -> list[str]:
    """Let so many of the calls that change a file pass; before the next one the process is as good as killed."""
    passed: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if len(passed) >= calls:
                raise Killed
            passed.append(name)
            return call(*args, **kwargs)

        return wrapped

    changing = [(Path, name) for name in ("replace", "unlink", "write_bytes", "touch")] + [(os, "fsync")]
    changing += [(Journal, "_write"), (Journal, "_take_rights"), (CsvTable, "write"), (ParquetTable, "write")]
    for kind, name in changing:
        patched.setattr(kind, name, counted(name, getattr(kind, name)))
    return passed


def state_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.state.json")


def named_out(folder: Path, name: str) -> Path:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow.parquet")
    return folder / name


SETTINGS = {"named": {"top": "folder"}, "pipeline": "mfcc", "model": "0123456789abcdef"}
NAMES = ["a/1.wav", 'a/"2",\n.wav', "a/\udc80.wav", "b.wav", "c/七.wav", "d.wav"]


def table(out: Path) -> Table:
    return table_for(out, "model.onnx")


def session(
    out: Path, found: Sequence[str], answered: Callable[[str], Row], most: int = 99, each: int = 1, new: bool = False
) -> list[str]:
    """One process's worth: what is found and not done is written, at most `most` rows; what the journal said.

    It goes on with what is there unless it is to be a `new` table.
    """
    notes: list[str] = []
    with Journal(out, table(out), notes.append) as journal:
        journal.begin(SETTINGS, None if new else journal.remembered(), new)
        todo = [item.name for item in without(map(Found, sorted(found, key=place)), journal.done())]
        for start in range(0, min(most, len(todo)), each):
            journal.add([answered(name) for name in todo[start : start + each]])
        if journal.unchanged:
            journal.discard()
        elif len(todo) <= most:
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
    assert sorted(path.name for path in out.parent.iterdir()) == [name, f"{name}.state.json"]
    assert names_in(out, read_rows) == sorted(NAMES, key=place)


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_cut_off_at_any_byte_it_ends_the_same(tmp_path, name, answered) -> None:
    out = tmp_path / name
    session(out, NAMES, answered)
    whole = out.read_bytes()
    ends = [end for end, byte in enumerate(whole, 1) if byte == ord("\n")]
    near = {end + step for end in ends for step in (-2, -1, 0, 1)}
    for cut in sorted({*range(0, len(whole), 37), *near} - {len(whole) + 1}):
        session(out, NAMES, answered, most=0, new=True)
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
        session(out, NAMES, answered, most=0, new=True)
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
    out.unlink(missing_ok=True)
    ever: set[str] = set()
    for found, most, each, torn in sessions:
        session(out, sorted(found), answered, most, each)
        ever |= found
        if part.exists() and torn:
            with part.open("r+b") as file:
                file.truncate(max(0, part.stat().st_size - torn))
    session(out, sorted(found), answered)
    rows = names_in(out, read_rows)
    assert rows == sorted(set(rows), key=place)
    assert found <= set(rows) <= ever


def test_two_runs_are_never_mixed(tmp_path, answered) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    for change, told in {
        ("pipeline", "mel_cnn"): "pipeline was mfcc, is mel_cnn",
        ("model", "fedcba9876543210"): "model was 0123456789abcdef, is fedcba9876543210",
        ("named", "more"): "named was top, is more",
    }.items():
        key, value = change
        with Journal(out, table(out), print) as journal:
            before = journal.remembered()
            changed = {**SETTINGS, key: {value: "folder"} if key == "named" else value}
            with pytest.raises(BatchError, match=f"belongs to another run: {told}. Ask the same again, name another"):
                journal.begin(changed, before)
    with (
        Journal(out, table(out), print) as journal,
        pytest.raises(BatchError, match="--resume goes on with it, --overwrite starts anew"),
    ):
        journal.begin(SETTINGS, None)
    assert (tmp_path / "x.csv.part").read_bytes().count(b"\n") == 4


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "other", "version": 1}'])
def test_a_table_of_which_nothing_is_known_is_left_alone(tmp_path, answered, content) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    about = tmp_path / "x.csv.part.json"
    about.write_text(content) if content else about.unlink()
    before = (tmp_path / "x.csv.part").read_bytes()
    with Journal(out, table(out), print) as journal, pytest.raises(BatchError, match="--overwrite starts anew"):
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
        "import sys\nfrom pathlib import Path\nfrom ml_training.predict.journal import Journal\n"
        "from ml_training.predict.tables import table_for\nout = Path(sys.argv[1])\n"
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

    def full(table: ParquetTable, beside: Path, records: Iterable[bytes]) -> None:
        beside.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(ParquetTable, "write", full)
        with pytest.raises(BatchError, match="No space left on device; the 6 rows before are whole"):
            session(out, NAMES, answered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet.part", "x.parquet.part.json"]
    session(out, NAMES, answered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.parquet", "x.parquet.state.json"]


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


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
@pytest.mark.parametrize("is_whole", [False, True])
def test_rows_with_an_error_are_tried_again(tmp_path, answered, name, is_whole) -> None:
    out = named_out(tmp_path, name)
    with Journal(out, table(out), print) as journal:
        journal.begin(SETTINGS, None)
        journal.add([Row("a", error='no "audio"'), answered("b"), Row("c", error="gone"), Row("e", error="no disk")])
        if is_whole:
            journal.finish()
    with Journal(out, table(out), print) as journal:
        journal.begin(SETTINGS, journal.remembered())
        assert (journal.answers, journal.errors, journal.failed_before) == (1, 0, 3)
        assert [item.name for item in without(map(Found, "abde"), journal.done())] == ["a", "d", "e"]
        journal.add([Row("a", error="still no audio"), answered("d"), answered("e")])
        journal.finish()
        assert (journal.answers, journal.errors) == (3, 1)
    lines = b"".join(table(out).read(out)).decode().splitlines()
    read = list(csv.DictReader(lines)) if name == "x.csv" else list(map(json.loads, lines))
    assert [(row["file"], row["error"] or None) for row in read] == [
        ("a", "still no audio"), ("b", None), ("d", None), ("e", None),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_whole_table_is_added_to_in_order_or_left_as_it_is(tmp_path, answered, name) -> None:
    out = named_out(tmp_path, name)
    session(out, NAMES[1::2], answered)
    before, stat = out.read_bytes(), out.stat()
    session(out, NAMES[3:4], answered)  # fewer files than rows
    assert (out.read_bytes(), out.stat().st_ino, out.stat().st_mtime_ns) == (before, stat.st_ino, stat.st_mtime_ns)
    session(out, NAMES, answered, most=1)
    assert out.read_bytes() == before, "the old table stays until the new one is whole"
    session(out, NAMES, answered)
    session(tmp_path / f"at_once_{name}", NAMES, answered)
    rows, at_once = (b"".join(table(out).read(file)) for file in (out, tmp_path / f"at_once_{name}"))
    assert rows == at_once
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("x")) == [name, f"{name}.state.json"]


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda out: out.write_bytes(b""), r"\(0 bytes\) cannot be gone on with: it had [\d,]+ bytes"),
        (
            lambda out: out.write_bytes(out.read_bytes()[:500]),
            r"\(500 bytes\) cannot be gone on with: it had [\d,]+ bytes",
        ),
        (
            lambda out: out.write_bytes(out.read_bytes().replace(b"wav", b"WAV", 1)),
            "it was changed after it was finished",
        ),
        (lambda out: state_of(out).unlink(), r"x.*\.state\.json, which says what it answers, is missing, damaged or"),
        (lambda out: state_of(out).write_text("{}"), "is missing, damaged or of another version"),
        (lambda out: state_of(out).write_text("[]"), "is missing, damaged or of another version"),
    ],
)
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_a_table_that_is_not_as_it_was_is_left_alone(tmp_path, answered, name, damage, why) -> None:
    out = named_out(tmp_path, name)
    session(out, NAMES, answered)
    damage(out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(BatchError, match=f"{why}.* name another --out, or replace it with --overwrite"):
        session(out, NAMES, answered)
    with Journal(out, table(out), print) as journal, pytest.raises(BatchError, match="is there already: --resume adds"):
        journal.begin(SETTINGS, None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    session(out, NAMES, answered, new=True)
    assert session(out, NAMES, answered) == []


@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
@pytest.mark.parametrize("resumed", [False, True])
def test_killed_between_any_two_steps_it_goes_on(tmp_path, answered, monkeypatch, name, resumed) -> None:
    """Each call that changes a file is a place to be killed at, from the first of a session to its last."""
    out = named_out(tmp_path, name)
    session(out, NAMES, answered, new=True)
    whole = out.read_bytes()
    first = NAMES[::2] if resumed else []
    kills = 0
    while True:
        for path in list(tmp_path.iterdir()):
            path.unlink()
        if resumed:
            session(out, first, answered)
        old = out.read_bytes() if resumed else None
        with monkeypatch.context() as patched:
            calls = count_down(patched, kills)
            try:
                session(out, NAMES, answered, each=2)
                done = True
            except Killed:
                done = False
        assert (out.read_bytes() if out.exists() else None) in (old, whole)
        session(out, NAMES, answered)
        assert out.read_bytes() == whole
        assert session(out, NAMES, answered) == []
        assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".tmp")) == [
            name, f"{name}.state.json",
        ]  # fmt: skip
        if done:
            break
        kills += 1
    assert kills > 8, calls


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, answered) -> None:
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    out.write_text("mine\n")
    with pytest.raises(
        BatchError, match=r"x\.csv appeared or was changed while .*: move it away, and --resume finishes"
    ):
        session(out, NAMES, answered)
    assert out.read_text() == "mine\n"
    out.unlink()
    session(out, NAMES, answered)
    session(out, [*NAMES, "e.wav", "f.wav"], answered, most=1)
    with out.open("a") as file:
        file.write("edited,by,hand\n")
    with pytest.raises(BatchError, match="appeared or was changed"):
        session(out, [*NAMES, "e.wav", "f.wav"], answered)
    assert out.read_text().endswith("edited,by,hand\n")


@pytest.mark.skipif(os.name == "nt", reason="has other rights")
@pytest.mark.parametrize("name", ["x.csv", "x.parquet"])
def test_links_mode_and_owner_are_kept(tmp_path, answered, name) -> None:
    out = named_out(tmp_path, name)
    (tmp_path / "real").mkdir()
    target = tmp_path / "real" / f"data{out.suffix}"
    out.symlink_to(target.relative_to(tmp_path))
    session(out, NAMES[:2], answered)
    assert out.is_symlink()
    target.chmod(0o440)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), target.stat().st_gid)
    os.chown(target, *owner)
    for new in (False, True):
        before = target.stat().st_ino
        session(out, NAMES[:4], answered, most=1, new=new)
        assert (tmp_path / "real" / f"{target.name}.part").stat().st_mode & 0o777 == 0o640
        session(out, NAMES[:4], answered)
        there = target.stat()
        assert out.is_symlink()
        assert there.st_ino != before
        assert (there.st_mode & 0o777, there.st_uid, there.st_gid) == (0o440, *owner)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["real", name]
