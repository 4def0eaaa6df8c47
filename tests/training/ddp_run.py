"""A training of tiny.py's clips in one process, or in several under torchrun.

    python ddp_run.py FOLDER [resume] [EPOCH STEP RANK ACTION]

leaves weights_RANK.pt of every rank and result.json of rank 0 in FOLDER. When that step is done, that rank sends itself
the signal ACTION, or raises for "fault".
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import tiny
import torch

from digit_detector.cli.program import program
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import Interrupted
from ml_training.training.classification import train_model
from ml_training.training.distributed import process_group


class Watch(tiny.At):
    def __init__(self, epoch: int, step: int, action: object) -> None:
        super().__init__(epoch, step, action)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@program
def main(argv: object = None) -> int:
    folder, *rest = sys.argv[1:]
    resume = "latest" if "resume" in rest else None
    place = [word for word in rest if word != "resume"]
    rank, action = (int(place[2]), place[3]) if place else (-1, "")
    torch.set_num_threads(1)

    def act() -> None:
        if rank != group.rank:
            return
        if action == "fault":
            raise ValueError("no such luck")
        os.kill(os.getpid(), signal.Signals[action])

    watch = Watch(*([int(word) for word in place[:2]] or [0, 0]), act)
    settings = tiny.config(epochs=4, negative_ratio=0.25, resume=resume)
    train, validation = tiny.both(81, 30), tiny.both(20, 10, seed=1)
    torch.manual_seed(0)
    model = tiny.TinyModel()
    with process_group(settings, "TYPE THIS") as group, StopSignals(unit=None) as signals, signals.deferred():
        group.check_same("settings", b"1" if action == "differ" and group.rank == rank else b"0")
        store = None if group.rank else tiny.store(Path(folder), settings)
        try:
            training = train_model(
                model, train, validation, settings, store=store, callback=watch, stop=signals, group=group
            )
        except Interrupted:
            print("stopped", group.rank)
            raise
    torch.save(model.state_dict(), Path(folder) / f"weights_{group.rank}.pt")
    if group.rank == 0:
        history = [dataclasses.asdict(record) | {"seconds": 0} for record in training.history]
        (Path(folder) / "result.json").write_text(json.dumps({"notes": watch.lines, "history": history}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
