"""Folders to work in: gone afterwards, and cleared where a process was killed; never those of one that lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ml_training.utils.temporary import PREFIX, clear_folders, clear_half_written, temporary_folder

WORK = """
import sys
from ml_training.utils.temporary import temporary_folder
with temporary_folder() as folder:
    (folder / "model.onnx").write_bytes(b"half")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("TMPDIR", str(place))
    return place


def test_it_is_empty_and_gone_afterwards(own_place: Path) -> None:
    with temporary_folder() as first, temporary_folder() as second:
        assert first != second
        assert not list(first.iterdir())
        (first / "file").write_bytes(b"x")
    assert not list(own_place.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_what_a_killed_process_left_is_cleared_and_what_a_live_one_has_is_not(own_place: Path) -> None:
    foreign = own_place / f"{PREFIX}of-somebody"
    foreign.mkdir()  # no lock of ours in it
    with subprocess.Popen([sys.executable, "-c", WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            folder = Path(os.fsdecode(process.stdout.readline()).strip())
            with temporary_folder() as mine:
                clear_folders()
                assert (folder / "model.onnx").read_bytes() == b"half"
                process.send_signal(signal.SIGKILL)
                process.wait(timeout=60)
                assert folder.is_dir()
                clear_folders()
                assert not folder.parent.exists()
                assert mine.is_dir()
        finally:
            process.kill()
    assert list(own_place.iterdir()) == [foreign]


@pytest.mark.skipif(os.name == "nt", reason="there processes cannot be asked for")
def test_half_written_files_are_cleared_by_name_process_and_age(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    folder = tmp_path / "mfcc_classifier"
    folder.mkdir()
    gone, alive = f".model.onnx.{ended.pid}.tmp", f"checkpoint_epoch_003.pt.{os.getpid()}.tmp"
    others = ["model.onnx", "notes.tmp", f"best_model.pt.{ended.pid}.tmp.bak"]
    for name in (gone, alive, *others, f".young.{ended.pid}.tmp"):
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (1, 1)) if "young" not in name else None
    clear_half_written(folder)
    clear_half_written(tmp_path / "nowhere")
    assert sorted(path.name for path in folder.iterdir()) == sorted([alive, *others, f".young.{ended.pid}.tmp"])
