"""A run in a process of its own: many Ctrl-C at once, and a terminal that is closed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
# An exception in the middle of an import leaves the file of the module open: Python's own warning.
WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]
COMMAND = [sys.executable, *WARNINGS, str(Path(__file__).with_name("signalled.py"))]


def log_of(folder: Path) -> str:
    (log,) = (folder / "logs").glob("experiment_*.log")
    return log.read_text(encoding="utf-8")


def test_five_interrupts_within_25_ms_act_as_one(tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert any(line.startswith("mfcc epoch") for line in process.stdout)
            for _ in range(5):
                process.send_signal(signal.SIGINT)
                time.sleep(0.005)
            printed, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 130, printed
    assert "stopped; to go on: the same again" in printed
    for word in ("failed", "Traceback", "Bad file descriptor", "KeyboardInterrupt"):
        assert word not in printed + log_of(tmp_path)


def test_a_closed_terminal_leaves_a_checkpoint_and_a_line_in_the_log(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    own_end, its_end = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, str(tmp_path), "terminal"], stdin=its_end, stdout=its_end, stderr=its_end, start_new_session=True
    ) as process:
        os.close(its_end)
        try:
            seen = b""
            while b"mfcc epoch" not in seen:
                seen += os.read(own_end, 4096)  # an OSError where it ended by itself
        finally:
            os.close(own_end)  # the system hangs up
        try:
            assert process.wait(timeout=120) == 129
        finally:
            process.kill()
    assert "stopped; to go on: the same again" in log_of(tmp_path)
    assert list((tmp_path / "models" / "mfcc_classifier").glob("checkpoint_*.pt"))  # of an epoch or amid one
