"""Folds in several processes at once, each with its own threads; what they say comes back to one place."""

from __future__ import annotations

import contextlib
import os
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from digit_detector.memory import available_memory
from ml_training.config import TrainConfig
from ml_training.evaluation.fold_process import fold_line, start_line
from ml_training.evaluation.folds import Fold
from ml_training.utils.processes import JsonProcess, Said, end_all, next_words

WORKER_MEMORY = 1_000_000_000  # bytes that a process is expected to want
PROCESS = "ml_training.evaluation.fold_process"
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


def train_in_processes(
    folds: Sequence[Fold], config: TrainConfig, work: Path, models: str, jobs: int, told: Told
) -> dict[int, str]:
    """Train folds in so many processes; the positions of those that failed, and why.

    Each process loads the recordings that `config` names. `told` hears {"say": line}, {"epoch": number, "accuracy":
    share} and {"done": True}. A process that dies costs its fold and is followed by another. Raises whatever comes
    up meanwhile, Interrupted among it, after the processes have finished their step and left a checkpoint.
    """
    said: Said = queue.SimpleQueue()
    waiting = list(range(len(folds)))
    failed: dict[int, str] = {}
    workers: dict[int, JsonProcess] = {}
    first = start_line(config, folds[0].data_hash, work, models)
    started = 0
    try:
        while waiting or workers:
            while waiting and len(workers) < min(jobs, len(waiting) + sum(w.position >= 0 for w in workers.values())):
                workers[started] = JsonProcess(PROCESS, first, started, said)
                started += 1
            number, words = next_words(said)
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
        end_all(list(workers.values()))
    return failed
