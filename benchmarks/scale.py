"""Clips a second of several processes that train together against one that trains alone, each with one thread.

    python benchmarks/scale.py [--pipeline mel_cnn] [--processes 2] [--clips 64] [--steps 20] [--rounds 5] [--least 1.6]

Every process has --clips digits in each step, and clips without a digit beside them, varied as the pipeline's recipe
says; the sounds are noise, which takes as long as speech. One alone, several apart (at the same time, each training for
itself, which is what the machine has to give) and several together take turns, so that what else the machine does meets
all, and medians are compared: of the steps of a run, then of the runs. Leaves with 1 where those together have fewer
than --least times the clips of the one alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

from digit_detector.cli.torchrun_env import torchrun_rank
from digit_detector.labels import MEL_CNN, PIPELINES
from ml_training.config import TrainConfig
from ml_training.pipelines import get_pipeline
from ml_training.training.batches import Clips
from ml_training.training.classification import build_model, train_model
from ml_training.training.distributed import process_group
from ml_training.training.seeding import cpu_threads
from ml_training.training.trainer import NullCallback

WARM_UP = 4  # steps that count for nothing


class Watch(NullCallback):
    """When each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
        self.times.append(time.perf_counter())


def noise(clips: int) -> Clips:
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(clips, 8000, generator=generator)
    return Clips(waveforms, torch.full((clips,), 4000), torch.arange(clips) % 10)


def one_process(pipeline: str, clips: int, steps: int) -> None:
    """Train as this process's rank; rank 0 prints the seconds of each step."""
    rank = torchrun_rank()
    batch = clips * (1 if rank is None else rank.world_size)
    row, watch = get_pipeline(pipeline), Watch()
    config = TrainConfig(device="cpu", epochs=1, batch_size=batch).resolve(pipeline, row.recipe)
    with cpu_threads(1), process_group(config, "the same again") as group:
        train = noise(batch * (WARM_UP + steps))
        model = build_model(row, config, train)
        train_model(model, train, noise(20), config, callback=watch, group=group)
    if group.rank == 0:
        print(json.dumps([b - a for a, b in zip(watch.times[WARM_UP - 1 :], watch.times[WARM_UP:], strict=False)]))


def clips_a_second(args: argparse.Namespace, apart: int = 1, together: int = 1) -> float:
    """By the median steps of so many runs at the same time, each of so many processes."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(together)] if together > 1 else []
    words = ["--pipeline", args.pipeline, "--clips", str(args.clips), "--steps", str(args.steps), "--one_process"]
    command = [sys.executable, *start, __file__, *words]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(apart)]
    clips = 0.0
    for run in runs:
        out, err = run.communicate()
        lines = [line for line in out.splitlines() if line.startswith("[")]
        if run.returncode or not lines:
            sys.exit(f"a run left with {run.returncode}: {err.strip() or out.strip()}")
        seconds: list[float] = json.loads(lines[-1])
        clips += together * args.clips / statistics.median(seconds)
    return clips


def main() -> int:
    parser = argparse.ArgumentParser(description="Clips a second of several processes against one")
    parser.add_argument("--pipeline", choices=PIPELINES, default=MEL_CNN)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--clips", type=int, default=64, help="digits in a step of each process")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--least", type=float, help="the ratio below which to leave with 1")
    parser.add_argument("--one_process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one_process:
        one_process(args.pipeline, args.clips, args.steps)
        return 0
    ways = {"alone": {}, "apart": {"apart": args.processes}, "together": {"together": args.processes}}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, args.rounds + 1):
        for name, how in ways.items():
            found[name].append(clips_a_second(args, **how))
        line = ", ".join(f"{figures[-1]:7.1f} {name}" for name, figures in found.items())
        print(f"round {number}: {line} (clips/s)", flush=True)
    one, apart, several = (statistics.median(figures) for figures in found.values())
    print(f"{args.pipeline}, {args.clips} clips a process and step, one thread each, medians of {args.rounds} rounds")
    print(f"one process         {one:7.1f} clips/s")
    print(f"{args.processes} apart             {apart:7.1f} clips/s, {apart / one:.2f} times as many")
    print(f"{args.processes} together          {several:7.1f} clips/s, {several / one:.2f} times as many")
    return 0 if args.least is None or several / one >= args.least else 1


if __name__ == "__main__":
    sys.exit(main())
