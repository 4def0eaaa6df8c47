"""A training in a process that may take only so much memory, of a network that wants 640 kB a clip and pass.

    python scarce.py FOLDER MEGABYTES KIND [resume] [EPOCH STEP]

trains in FOLDER a network of KIND plain, or norm for one with batch norm and dropout, on MEGABYTES above what is taken
when the first step begins (0: any number); asks itself to stop when that step is done. Prints what was noted and the
history, and leaves the weights in FOLDER/weights.pt.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import sys
from pathlib import Path

import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import Interrupted, TrainingError
from ml_training.pipelines.base import OUTPUTS, DigitModel


class WideModel(DigitModel):
    """Mean energies of 40 stretches, each in 4,000 shades."""

    def __init__(self, norm: bool, megabytes: int = 0) -> None:
        super().__init__()
        self.megabytes = megabytes  # until the first clips come
        self.shades = nn.Parameter(torch.linspace(0.5, 2.0, 4_000))
        between = [nn.BatchNorm1d(40), nn.Dropout(0.2)] if norm else []
        self.layers = nn.Sequential(*between, nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, OUTPUTS))

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        if self.megabytes:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (taken + (self.megabytes << 20), resource.RLIM_INFINITY))
            self.megabytes = 0
        energies = F.avg_pool1d(waveforms.abs()[:, None, :], 200)[:, 0]
        return self.layers(torch.tanh(10 * energies[:, :, None] * self.shades).mean(dim=2))


class Watch(tiny.At):
    def __init__(self, epoch: int, step: int) -> None:
        super().__init__(epoch, step, lambda: os.kill(os.getpid(), signal.SIGTERM))
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def main() -> int:
    folder, megabytes, kind, *rest = sys.argv[1:]
    resume = "latest" if "resume" in rest else None
    watch = Watch(*map(int, [word for word in rest if word != "resume"] or (0, 0)))

    def build() -> nn.Module:
        outputs = WideModel(True)(torch.zeros(2, 8000))  # what torch loads for that is loaded before
        outputs.digit_logits.sum().backward()
        return WideModel(kind == "norm", int(megabytes))

    result: dict[str, object] = {"notes": watch.lines}
    settings = tiny.config(epochs=2, negative_ratio=0.25, resume=resume)
    try:
        with StopSignals() as signals, signals.deferred():
            training = tiny.train(settings, Path(folder), build, others=30, callback=watch, stop=signals)
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        result["history"] = [dataclasses.asdict(record) | {"seconds": 0} for record in training.history]
        torch.save(training.best_weights, Path(folder) / "weights.pt")
    except Interrupted as stopped:
        result["stopped"] = stopped.exit_code
    except TrainingError as error:
        result["error"] = str(error)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
