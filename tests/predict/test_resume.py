"""The unfinished table: wherever it was cut off, nothing is repeated and nothing is lost."""

import contextlib
import os
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digit_detector.errors import BatchError
from ml_training.predict.resume import ResumableTable
from ml_training.predict.tables import ParquetTable, Recording, escape, sort_key, table_for

posix = pytest.mark.skipif(os.name == "nt", reason="rights and locks of another kind")
RUN = {"named": {"top": "folder"}, "pipeline": "mfcc", "model": "0123456789abcdef"}
NAMES = ["a/1.wav", 'a/"2",\n.wav', "a/\udc80.wav", "b.wav", "c/七.wav", "d.wav"]


@pytest.fixture(params=["x.csv", "x.jsonl", "x.parquet"])
def out(request, tmp_path):
    if request.param == "x.parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / str(request.param)


def opened(out):
    return closing(ResumableTable(out, table_for(out, "model.onnx")))


def session(out, names, answered, most=99, each=1, overwrite=False):
    """One run, which is stopped behind `most` new rows."""
    with opened(out) as table:
        table.begin(RUN, resume=not overwrite, overwrite=overwrite)
        rows, listed = [], [Recording(name) for name in sorted(names, key=sort_key)]
        for one in table.merge(listed):
            if one.row is None and table.answered + sum(row.row is None for row in rows) == most:
                table.add(rows)
                return table
            rows.append(one if one.row is not None else answered(one.name))
            if len(rows) == each:
                table.add(rows)
                rows = []
        table.add(rows)
        if not table.is_unchanged:
            table.finish()
    return table


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def names_in(path, read_rows):
    return [escape(row["file"]) for row in read_rows(path)]


def state_of(out):
    return out.with_name(f"{out.name}.state.json")


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_cut_off_or_damaged_anywhere_it_ends_the_same(tmp_path, name, answered):
    out, part = tmp_path / name, tmp_path / f"{name}.part"
    session(out, NAMES, answered)
    whole = out.read_bytes()
    third = whole.index(b"c/")
    cuts = [whole[:cut] for cut in range(0, len(whole), 23)]
    ends = [end for end, byte in enumerate(whole, 1) if byte == ord("\n")]
    cuts += [whole[: end + step] for end in ends for step in (-2, -1, 0, 1)]
    cuts += [whole[:third] + bytes(500), whole[:third] + bytes(40) + whole[third + 40 :], whole[:third] + b'"' * 7]
    for content in cuts:
        session(out, NAMES, answered, most=1, overwrite=True)
        part.write_bytes(content)
        session(out, NAMES, answered)
        assert out.read_bytes() == whole


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from([f"{d}{n}.wav" for d in ("", "a/", "a/b/", "c ") for n in range(6)])),
                  st.integers(0, 9), st.sampled_from([1, 3]), st.integers(0, 99)),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["x.csv", "x.jsonl"]),
)  # fmt: skip
def test_files_may_come_and_go_between_runs(tmp_path, answered, read_rows, runs, name):
    out, part = tmp_path / name, tmp_path / f"{name}.part"
    for path in tmp_path.iterdir():
        path.unlink()
    ever: set[str] = set()
    for found, most, each, torn in runs:
        session(out, sorted(found), answered, most, each)
        ever |= found
        if part.exists():
            os.truncate(part, max(0, part.stat().st_size - torn))
    session(out, sorted(found), answered)
    if ever and out.exists():
        rows = names_in(out, read_rows)
        assert rows == sorted(set(rows), key=sort_key)
        assert found <= set(rows) <= ever


def test_killed_between_any_two_steps_it_goes_on(out, answered, monkeypatch):
    """Each call that changes a file is a place to be killed at, from the first of a run to its last."""

    class Killed(BaseException):
        pass

    left = 0

    def counted(call):
        def wrapped(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return call(*args, **kwargs)

        return wrapped

    session(out, NAMES, answered)
    whole = out.read_bytes()
    table = type(table_for(out, ""))
    calls = [(Path, "replace"), (Path, "unlink"), (os, "fsync"), (ResumableTable, "add"), (ResumableTable, "_open")]
    for before in ([], NAMES[::2]):
        for left_before in range(40):
            for path in out.parent.iterdir():
                path.unlink()
            if before:
                session(out, before, answered)
            old = out.read_bytes() if before else None
            with monkeypatch.context() as patched, contextlib.suppress(Killed):
                for kind, name in [*calls, (table, "extract"), (ParquetTable, "convert")]:
                    patched.setattr(kind, name, counted(getattr(kind, name)))
                left = left_before
                session(out, NAMES, answered, each=2)
            assert (out.read_bytes() if out.exists() else None) in (old, whole)
            session(out, NAMES, answered)
            assert out.read_bytes() == whole
            assert session(out, NAMES, answered).is_unchanged
            assert files(out.parent) == [out.name, f"{out.name}.state.json"]
            if left > 0:
                break
        assert 8 < left_before < 39


@posix
def test_a_table_is_written_by_one_process_at_a_time(tmp_path, answered):
    out = tmp_path / "x.csv"
    with opened(out) as table:
        table.begin(RUN)
        with pytest.raises(BatchError, match="is being written by another process"):
            session(out, NAMES, answered)
    session(out, NAMES, answered)
    assert out.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda out: out.write_bytes(out.read_bytes()[:500]),
        lambda out: out.write_bytes(out.read_bytes().replace(b"wav", b"WAV", 1)),
        lambda out: state_of(out).unlink(),
        lambda out: state_of(out).write_text("{}"),
    ],
)
def test_a_table_that_was_changed_is_left_alone(out, answered, damage):
    session(out, NAMES, answered)
    damage(out)
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    with pytest.raises(
        BatchError, match=r"it was changed, or its settings in .* name another --out, or --overwrite it"
    ):
        session(out, NAMES, answered)
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    session(out, NAMES, answered, overwrite=True)
    assert session(out, NAMES, answered).is_unchanged


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, answered):
    out = tmp_path / "x.csv"
    session(out, NAMES, answered, most=2)
    out.write_text("mine\n")
    with pytest.raises(BatchError, match=r"x\.csv appeared meanwhile: move it away, and --resume completes"):
        session(out, NAMES, answered)
    assert out.read_text() == "mine\n"


@posix
def test_links_mode_and_owner_are_kept(out, answered):
    target = out.parent / "real" / f"data{out.suffix}"
    target.parent.mkdir()
    out.symlink_to(target.relative_to(out.parent))
    session(out, NAMES[:2], answered)
    target.chmod(0o440)
    owner = (12345, 23456) if os.geteuid() == 0 else (os.geteuid(), target.stat().st_gid)
    os.chown(target, *owner)
    for overwrite in (False, True):
        session(out, NAMES[:4], answered, most=1, overwrite=overwrite)
        assert target.with_name(f"{target.name}.part").stat().st_mode & 0o777 == 0o640
        session(out, NAMES[:4], answered)
        status = target.stat()
        assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o440, *owner)
    assert out.is_symlink()
    assert files(out.parent) == ["real", out.name]
