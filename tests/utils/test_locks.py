"""One at a time, among processes and threads."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from digit_detector.errors import TrainingError
from ml_training.utils.locks import locked

COUNT = """
import sys
from pathlib import Path
from ml_training.utils.locks import locked
lock, counter = map(Path, sys.argv[1:])
for _ in range(50):
    with locked(lock):
        counter.write_text(str(int(counter.read_text()) + 1))
"""


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    lock, counter = tmp_path / "folder" / "lock", tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(lock), str(counter)]
    running = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(timeout=60) for process in running] == [0] * 4
    assert counter.read_text() == "200"


def test_threads_wait_for_each_other_and_an_error_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    order: list[str] = []

    def second() -> None:
        with locked(lock):
            order.append("second")

    thread = threading.Thread(target=second)

    def first() -> None:
        with locked(lock):
            thread.start()
            time.sleep(0.1)
            order.append("first")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        first()
    thread.join(timeout=30)
    assert order == ["first", "second"]


def test_a_place_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(TrainingError, match=r"could not lock .*; make room or choose another --models_dir"),
        locked(tmp_path / "file" / "lock"),
    ):
        pass
