"""From 1 to 1,000 workers, from costs that are measured here: where more of them stop paying. Writes docs/scale.md.

    python benchmarks/scale_model.py [--pipeline mel_cnn] [--network-ms 0.05] [--network-gb 1.25] [--rounds 3]
                                     [--update-docs]

Measured on this machine, each with one thread: a step of n digits for several n, what it takes two processes to agree
(benchmarks/scale.py), how often a step of several processes goes round and how much gradient it sums, a trial of a
search, answers a second. Assumed of a network: --network-ms from one machine to another and --network-gb gigabytes a
second. A model of what is not measured says so: sums go round as trees, 2 log2(N) hops each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from performance import table
from trainings import ROOT, head

from ml_training.config import MEL_CNN, PIPELINES, TrainConfig
from ml_training.evaluation.benchmark import machine
from ml_training.inference import load_classifier
from ml_training.pipelines import get_pipeline
from ml_training.training.ready import build_model
from ml_training.training.setup import Clips, cpu_threads
from ml_training.training.trainer import train_model
from ml_training.tuning.optuna_study import Plan, next_trial, open_study
from ml_training.tuning.space import SPACES, checked_space

PAGE = ROOT / "docs" / "scale.md"
MARK = "<!-- measured -->"
WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
SIZES = (8, 16, 32, 64, 128)  # digits a step
BATCHES = (128, 1024, 8192)  # digits a step of all workers together
STEPS = 12
RETENTION = 0.8  # a doubling pays while it keeps so much of what it adds
TRIALS = 40  # of a study whose workers are timed as they ask
FILES = 1_000_000


def step_seconds(pipeline: str, digits: int) -> float:
    """The median step of a training with so many digits a step."""
    row = get_pipeline(pipeline)
    config = TrainConfig(device="cpu", epochs=3, batch_size=digits, patience=0).resolved(pipeline, row.recipe)
    generator = torch.Generator().manual_seed(0)

    def clips(count: int) -> Clips:
        sound = 0.1 * torch.randn(count, 8000, generator=generator)
        return Clips(sound, torch.full((count,), 4000), torch.arange(count) % 10)

    train = clips(digits * STEPS)
    history = train_model(build_model(row, config, train), train, clips(10), config).history
    return statistics.median(record.seconds for record in history[1:]) / STEPS


def answers_a_second(pipeline: str) -> float:
    """Clips in batches of 32 through the model that ships."""
    return float(load_classifier("pretrained", pipeline).benchmark_speed(320)["batch_throughput_per_second"])


def ask_seconds() -> float:
    """How long a worker of a search keeps the others waiting for one trial: what is tried next, and what came of it."""
    declared = json.loads((SPACES / "default.json").read_text(encoding="utf-8"))
    plan = Plan(checked_space(declared), declared, "tpe", "median", ("maximize",), 0, {})
    times = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = open_study(plan, "", folder)
        for number in range(TRIALS):
            began = time.perf_counter()
            with next_trial(study, plan, TRIALS, folder, False) as trial:
                assert trial is not None
                for epoch in range(1, 16):
                    trial.report(number + epoch, epoch)
                study.tell(trial, float(number))
            times.append(time.perf_counter() - began)
    return statistics.median(times[TRIALS // 2 :])


def fitted(pipeline: str, rounds: int) -> tuple[float, float, dict[int, float]]:
    """Seconds a step takes whatever its size, and seconds a digit, by least squares; and what was measured."""
    times = {n: statistics.median(step_seconds(pipeline, n) for _ in range(rounds)) for n in SIZES}
    slope, fixed = np.polyfit(list(times), list(times.values()), 1, w=[1 / t for t in times.values()])
    return max(0.0, float(fixed)), float(slope), times


def rounds_of(pipeline: str) -> tuple[int, int]:
    """How often a step goes round, and bytes of gradient."""
    model = get_pipeline(pipeline).build()
    norms = sum(isinstance(layer, torch.nn.modules.batchnorm._BatchNorm) for layer in model.modules())
    gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 2 * norms + 2, gradients  # each norm forward and back, then what the step came to, then the gradients


def going_round(workers: int, rounds: int, size: int, latency: float, bandwidth: float) -> float:
    """Seconds of a step in which `workers` machines wait for each other's numbers."""
    if workers == 1:
        return 0.0
    hops = 2 * math.ceil(math.log2(workers))
    return rounds * hops * latency + 2 * (workers - 1) / workers * size / bandwidth


def last_paying(speeds: Sequence[float]) -> int:
    """The most workers up to which every doubling kept RETENTION of what it added."""
    best = WORKERS[0]
    for (before, slow), (after, fast) in zip(
        zip(WORKERS, speeds, strict=True), list(zip(WORKERS, speeds, strict=True))[1:], strict=False
    ):
        if fast / slow - 1 < RETENTION * (after / before - 1):
            break
        best = after
    return best


def page(arguments: argparse.Namespace) -> str:
    """All tables."""
    pipeline, latency, bandwidth = arguments.pipeline, arguments.network_ms / 1000, arguments.network_gb * 1e9
    fixed, digit, times = fitted(pipeline, arguments.rounds)
    rounds, size = rounds_of(pipeline)
    ask = ask_seconds()
    answers = statistics.median(answers_a_second(pipeline) for _ in range(arguments.rounds))

    def training(batch: int) -> Callable[[int], float]:
        def speed(workers: int) -> float:
            share = math.ceil(batch / workers)
            return batch / (fixed + digit * share + going_round(workers, rounds, size, latency, bandwidth))

        return speed

    recipe = get_pipeline(pipeline).recipe
    steps = math.ceil(2400 / recipe.batch_size)
    trial = recipe.epochs * steps * (fixed + digit * recipe.batch_size)
    columns: dict[str, Callable[[int], float]] = {
        **{f"training, {batch:,} digits a step": training(batch) for batch in BATCHES if batch},
        f"search, trials of {trial:.0f} s": lambda n: min(n / trial, 1 / ask),
        f"answers, {FILES:,} files": lambda n: min(n * answers, bandwidth / 8_044),
    }
    speeds = {name: [speed(n) for n in WORKERS] for name, speed in columns.items()}
    rows = [[f"{n:,}", *(f"{found[i] / found[0]:.1f}" for found in speeds.values())] for i, n in enumerate(WORKERS)]
    rows.append(["pays up to", *(f"{last_paying(found):,}" for found in speeds.values())])
    measured = ", ".join(f"{1000 * t:.1f} ms of {n}" for n, t in times.items())
    return "\n".join(
        [
            f"Measured for `{pipeline}` on one thread: steps take {measured} digits, and clips without a digit beside "
            f"them; by a line through these {1000 * fixed:.1f} ms a step and {1000 * digit:.2f} ms a digit. A step of "
            f"several processes goes round {rounds} times and sums {size / 1000:,.0f} kB of gradients. One worker "
            f"answers {answers:,.0f} clips a second. A trial of 15 epochs keeps a study's journal for "
            f"{1000 * ask:.0f} ms. Assumed: {arguments.network_ms:g} ms and {arguments.network_gb:g} GB/s from one "
            "machine to another, sums that go round as trees, workers of a search that wait for each other at the "
            "journal, files of 8 kB that come from one storage.",
            "",
            "How many times as fast as one worker, by that model:",
            "",
            *table(["workers", *speeds], rows),
            "",
            f"A doubling pays here while it keeps {100 * RETENTION:.0f} % of what it adds. With 128 digits a step the "
            "waiting soon outweighs the work: larger batches scale further, and learn otherwise. Trials and files do "
            "not wait for each other: they scale until the journal or the storage is the limit.",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="From 1 to 1,000 workers, from costs that are measured here")
    parser.add_argument("--pipeline", choices=PIPELINES, default=MEL_CNN)
    parser.add_argument("--network-ms", type=float, default=0.05)
    parser.add_argument("--network-gb", type=float, default=1.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--update-docs", action="store_true")
    arguments = parser.parse_args()
    began = time.perf_counter()
    with cpu_threads(1):
        text = page(arguments)
    print(text)
    if arguments.update_docs:
        before, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
        made = f"{datetime.now(UTC):%Y-%m-%d}, commit {head()}, {machine()['processor']}"
        written = f"Written by `python benchmarks/scale_model.py --update-docs`; {made}."
        PAGE.write_text(f"{before}{MARK}\n{written}\n\n{text}\n", encoding="utf-8")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
