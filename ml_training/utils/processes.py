"""Helper processes that are told things and tell things, in lines of JSON."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ml_training

PATIENCE = 60.0  # seconds in which a process that was asked to end may finish its step

Said = queue.SimpleQueue[tuple[int, dict[str, Any] | None]]  # number of a process, what it said; None when it ended


class JsonProcess:
    """`python -P -m module`: no file of the folder that it is started in can stand in for a module.

    What it says goes to a queue, and the last of its standard error is kept.
    """

    def __init__(self, module: str, first: str, number: int, said: Said) -> None:
        self.number = number
        self.position = -1  # of what it works on, for whoever hands work out
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        root = str(Path(ml_training.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, encoding="utf-8",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"},
            start_new_session=True,  # Ctrl-C is for whoever started it, who passes it on
        )  # fmt: skip
        self.tell(first)
        threading.Thread(target=self._listen, args=(said,), daemon=True).start()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended: its last word says so
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _listen(self, said: Said) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with contextlib.suppress(ValueError):  # what a library printed
                    said.put((self.number, json.loads(line)))
        said.put((self.number, None))

    def last_words(self) -> str:
        """How it ended, in one line."""
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self._close()
        how = f"signal {-code}" + (", as when memory is short" if code == -9 else "") if code < 0 else f"code {code}"
        return f"its process ended with {how}" + (f": {lines[-1]}" if lines else "")

    def end(self) -> None:
        """Ask it to end and wait; after a while it has to."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        assert self.process.stdin is not None
        self._errors.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


def end_all(processes: list[JsonProcess]) -> None:
    """Ask all of them, then wait for each."""
    for process in processes:
        process.process.terminate()
    for process in processes:
        process.end()


def next_words(said: Said) -> tuple[int, dict[str, Any] | None]:
    """Wait for somebody to say something; signals are heard meanwhile."""
    while True:
        with contextlib.suppress(queue.Empty):
            return said.get(timeout=0.5)


# --- the other side ------------------------------------------------------------------------------


def words_from_parent() -> queue.SimpleQueue[str]:
    """Lines that this process is told. It ends with its standard input, which is to say with whoever started it."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return lines


def tell_parent(**what: Any) -> None:
    """Say one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()
