"""A training of tiny.py's clips by a process alone or, under torchrun, by several.

    python teamed.py FOLDER KIND [resume] [EPOCH STEP RANK ACTION]

trains a network of KIND tiny, or a pipeline's (two steps of it), and leaves weights.pt and history.json of the first
process in FOLDER. When that step is done, the process of that rank does what ACTION says: a signal to itself, or short,
from when on its memory does not hold more than 4 clips.
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
from torch import Tensor, nn

from ml_training.config import TrainConfig
from ml_training.errors import Interrupted
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel
from ml_training.training.joining import joined
from ml_training.training.ready import build_model
from ml_training.training.trainer import train_model
from ml_training.utils.program import program
from ml_training.utils.signals import StopSignals


class Watch(tiny.At):
    def __init__(self, epoch: int, step: int, action: object) -> None:
        super().__init__(epoch, step, action)
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


class ScarceModel(tiny.TinyModel):
    """Fails as torch does where memory is not enough for so many clips; `layers` is where it notices."""

    most = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.layers[3].register_full_backward_hook(lambda *_: self._look(self.clips))

    def _look(self, clips: int) -> None:
        if clips > ScarceModel.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 640 bytes")

    def logits(self, waveforms: Tensor) -> Tensor:
        self.clips = len(waveforms)
        return super().logits(waveforms)


@program
def main(argv: object = None) -> int:
    folder, kind, *rest = sys.argv[1:]
    resume = "latest" if "resume" in rest else None
    place = [word for word in rest if word != "resume"]
    rank, action = (int(place[2]), place[3]) if place else (-1, "")
    torch.set_num_threads(1)

    def act() -> None:
        if rank != team.rank:
            return
        if action == "short":
            ScarceModel.most = 4
        elif action == "fault":
            raise ValueError("no such luck")
        else:
            os.kill(os.getpid(), signal.Signals[action])

    watch = Watch(*([int(word) for word in place[:2]] or [0, 0]), act)
    if kind == "tiny":
        settings = tiny.config(epochs=2, negative_share=0.25, resume=resume)
        train, validation = tiny.both(81, 30), tiny.both(20, 10, seed=1)
        torch.manual_seed(0)
        model: nn.Module = ScarceModel()
    else:
        row = get_pipeline(kind)
        settings = TrainConfig(device="cpu", epochs=1, batch_size=16, learning_rate=1e-5, synthetic_share=0)
        settings = settings.resolved(kind, row.recipe)
        train, validation = tiny.both(32, 8), tiny.both(8, 4, seed=1)
        built = build_model(row, settings, train)
        assert isinstance(built, DigitModel)
        model = built
    with joined(settings, "TYPE THIS") as team, StopSignals(unit=None) as signals, signals.deferred():
        store = None if team.rank else tiny.store(Path(folder), settings)
        try:
            training = train_model(
                model, train, validation, settings, store=store, observer=watch, stop=signals, team=team
            )
        except Interrupted:
            if team.rank == 0:
                print("stopped")
            raise
    if team.rank == 0:
        history = [dataclasses.asdict(record) | {"seconds": 0} for record in training.history]
        (Path(folder) / "told.json").write_text(json.dumps({"notes": watch.lines, "history": history}))
        torch.save(training.best_weights, Path(folder) / "weights.pt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
