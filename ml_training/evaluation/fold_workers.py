"""Folds in several processes at once, each with its own threads; what they say comes back to one place."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_training
from ml_training.config import TrainConfig
from ml_training.evaluation.fold_process import fold_line, start_line
from ml_training.evaluation.folds import Fold
from ml_training.utils.memory import available_memory

WORKER_MEMORY = 1_000_000_000  # bytes that a process is expected to want
_PATIENCE = 60.0  # seconds in which a process that was asked to end may finish its step
Told = Callable[[int, dict[str, Any]], None]  # position of a fold, what its process says


def suitable_jobs(folds: int, config: TrainConfig) -> int:
    """How many processes at once neither share a core nor want more memory than there is."""
    if config.device == "cuda" or not config.threads:
        return 1
    with contextlib.suppress(AttributeError):  # of other systems than Linux
        cores = len(os.sched_getaffinity(0))
        left = available_memory()
        most = cores // config.threads if left is None else min(cores // config.threads, left // WORKER_MEMORY)
        return max(1, min(folds, most))
    return max(1, min(folds, (os.cpu_count() or 1) // config.threads))


class _Worker:
    """A process, which fold it has, and the last it wrote to standard error."""

    def __init__(self, first: str, number: int, said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]]) -> None:
        self.number, self.position = number, -1
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        root = str(Path(ml_training.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ml_training.evaluation.fold_process"],
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

    def _listen(self, said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]]) -> None:
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
        self.process.terminate()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._close()

    def _close(self) -> None:
        assert self.process.stdin is not None
        self._errors.close()
        with contextlib.suppress(OSError):
            self.process.stdin.close()


def train_in_processes(
    folds: Sequence[Fold], config: TrainConfig, work: Path, models: str, jobs: int, told: Told
) -> dict[int, str]:
    """Train folds in so many processes; the positions of those that failed, and why.

    Each process loads the recordings that `config` names. `told` hears {"say": line}, {"epoch": number, "accuracy":
    share} and {"done": True}. A process that dies costs its fold and is followed by another. Raises whatever comes
    up meanwhile, Interrupted among it, after the processes have finished their step and left a checkpoint.
    """
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]] = queue.SimpleQueue()
    waiting = list(range(len(folds)))
    failed: dict[int, str] = {}
    workers: dict[int, _Worker] = {}
    first = start_line(config, folds[0].data_hash, work, models)
    started = 0
    try:
        while waiting or workers:
            while waiting and len(workers) < min(jobs, len(waiting) + sum(w.position >= 0 for w in workers.values())):
                workers[started] = _Worker(first, started, said)
                started += 1
            number, words = _next(said)
            worker = workers.get(number)
            if worker is None:  # the last of one that was told to end
                continue
            if words is None:
                del workers[number]
                if worker.position < 0 and waiting:  # it could not even begin
                    worker.position = waiting.pop(0)
                if worker.position >= 0:
                    failed[worker.position] = f"{folds[worker.position]}: {worker.last_words()}"
            elif "ready" in words:
                worker.position = waiting.pop(0) if waiting else -1
                if worker.position < 0:
                    del workers[number]
                    worker.end()
                else:
                    worker.tell(fold_line(folds[worker.position]))
            elif "failed" in words:
                failed[worker.position] = words["failed"]
                worker.position = -1
            elif "ended" in words:  # no fold can be trained like this
                failed |= dict.fromkeys(waiting, words["ended"])
                waiting.clear()
            else:
                told(worker.position, words)
                if "done" in words:
                    worker.position = -1
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.end()
    return failed


def _next(
    said: queue.SimpleQueue[tuple[int, dict[str, Any] | None]],
) -> tuple[int, dict[str, Any] | None]:
    while True:
        with contextlib.suppress(queue.Empty):
            return said.get(timeout=0.5)  # so that signals are heard
