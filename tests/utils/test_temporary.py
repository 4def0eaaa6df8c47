"""Temporary folders are removed afterwards, also those of killed processes; never those of one that lives."""

import os
import subprocess
import sys
import tempfile

import pytest

from ml_training.utils.temporary import PREFIX, clear_half_written, temporary_folder

LONG_AGO = (1, 1)


def test_a_folder_is_empty_and_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as first, temporary_folder() as second:
        assert first != second
        assert not list(first.iterdir())
        (first / "file").write_bytes(b"x")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.name == "nt", reason="there processes cannot be asked for")
def test_what_killed_processes_left_is_removed_by_name_process_and_age(tmp_path, monkeypatch):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = [f"{PREFIX}old.{ended.pid}.tmp", f"{PREFIX}young.{ended.pid}.tmp", f"{PREFIX}alive.{os.getpid()}.tmp"]
    for name in folders:
        (tmp_path / name).mkdir()
        if "young" not in name:
            os.utime(tmp_path / name, LONG_AGO)
    alive, young = f"checkpoint_epoch_003.pt.{os.getpid()}.tmp", f".young.{ended.pid}.tmp"
    others = ["model.onnx", "notes.tmp", f"best_model.pt.{ended.pid}.tmp.bak", f"{ended.pid}.tmp"]
    for name in (f".model.onnx.{ended.pid}.tmp", alive, young, *others):
        (tmp_path / name).write_bytes(b"half")
        os.utime(tmp_path / name, None if name == young else LONG_AGO)
    with temporary_folder() as folder:
        assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == sorted([*folders[1:], folder.name])
    clear_half_written(tmp_path)
    clear_half_written(tmp_path / "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*folders[1:], alive, young, *others])
