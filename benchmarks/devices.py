"""How fast trainings go on the device at hand: precision, compiling, layout and batch size, each against plain float32.

    python benchmarks/devices.py [--device auto] [--pipelines mel_cnn raw_cnn] [--batches 32 128] [--rounds 3]
                                 [--update-docs]

Whole steps of the trainer on generated clips, so that no recordings are needed: augmentation, clips that are no digits,
gradients, averaging. Variants take turns; clips a second are the median over the rounds, of epochs after the first, in
which torch chooses and compiles. Memory is what torch allocated on a GPU at most, and unknown on a CPU. --update-docs
puts the table into docs/performance.md, in the place of the one of the same kind of device.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from performance import PAGE, table
from torch import nn
from trainings import head

from digit_detector.labels import PIPELINES
from ml_training.config import TrainConfig
from ml_training.data.augmentation.noise import generated_noise_bank
from ml_training.evaluation.speed import machine
from ml_training.pipelines import get_pipeline
from ml_training.training.batches import Clips, count_negatives
from ml_training.training.classification import build_model, train_model
from ml_training.training.seeding import choose_device, cpu_threads

STEPS = 24  # of an epoch
FP32 = "float32"


@dataclass(frozen=True)
class Variant:
    """One way to train."""

    name: str
    precision: str = "fp32"
    compile: bool = False
    channels_last: bool = True
    cuda_only: bool = False


VARIANTS = (
    Variant(FP32),
    Variant("channels first", channels_last=False),
    Variant("bfloat16", precision="bf16"),
    Variant("float16", precision="fp16", cuda_only=True),
    Variant("float32, compiled", compile=True),
    Variant("bfloat16, compiled", precision="bf16", compile=True),
    Variant("float16, compiled", precision="fp16", compile=True, cuda_only=True),
)


@dataclass(frozen=True)
class Speed:
    """What one short training did."""

    clips: float  # a second
    step: float  # milliseconds
    memory: float | None  # MB


def generated(count: int, seed: int) -> Clips:
    """Clips whose digit is the pitch of a tone in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 10
    time = torch.arange(8000) / 8000
    tones = torch.sin(2 * torch.pi * (200.0 + 150.0 * labels)[:, None] * time)
    noise = torch.randn(count, 8000, generator=generator)
    envelope = torch.hann_window(8000)
    return Clips(0.2 * tones * envelope + 0.01 * noise, torch.full((count,), 8000), labels)


def measured(pipeline: str, batch: int, variant: Variant, device: torch.device, threads: int) -> Speed:
    """A training of three epochs, the first of which does not count."""
    config = TrainConfig(
        pipeline=pipeline, device=device.type, precision=variant.precision, compile=variant.compile, epochs=3,
        batch_size=batch, patience=0, threads=threads,
    ).resolve(pipeline, get_pipeline(pipeline).recipe)  # fmt: skip
    train, validation = generated(STEPS * batch, 0), generated(10, 1)
    model = build_model(get_pipeline(pipeline), config, train)
    if not variant.channels_last:
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.detach().contiguous(memory_format=torch.contiguous_format)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    epochs = train_model(model, train, validation, config).history[1:]
    clips = batch + count_negatives(batch, config.negative_ratio)
    step = statistics.median(record.seconds for record in epochs) / STEPS
    return Speed(clips / step, 1000 * step, torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else None)


def measure(
    pipelines: Sequence[str], batches: Sequence[int], rounds: int, device: torch.device, threads: int
) -> list[list[str]]:
    """Rows of the table: each pipeline and batch size, each variant, against float32 of the same."""
    variants = [variant for variant in VARIANTS if device.type == "cuda" or not variant.cuda_only]
    rows = []
    for pipeline in pipelines:
        for batch in batches:
            found: dict[Variant, list[Speed]] = {variant: [] for variant in variants}
            for _ in range(rounds):
                for variant in variants:
                    found[variant].append(measured(pipeline, batch, variant, device, threads))
                    print(".", end="", file=sys.stderr, flush=True)
            plain = [speed.clips for speed in found[variants[0]]]
            for variant, speeds in found.items():
                ratio = statistics.median(s.clips / base for s, base in zip(speeds, plain, strict=True))
                memory = speeds[0].memory
                rows.append(
                    [
                        pipeline, str(batch), variant.name, f"{statistics.median(s.clips for s in speeds):,.0f}",
                        f"{statistics.median(s.step for s in speeds):.1f}", f"{ratio:.2f}",
                        "" if memory is None else f"{memory:,.0f}",
                    ]
                )  # fmt: skip
    print(file=sys.stderr)
    return rows


def described(device: torch.device, threads: int) -> str:
    """The device in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, torch {torch.__version__}"
    return f"{machine()['processor']}, {threads} thread{'s' * (threads != 1)}, torch {torch.__version__}"


def main() -> int:
    parser = argparse.ArgumentParser(description="How fast trainings go on the device at hand")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=list(PIPELINES))
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--update-docs", action="store_true")
    args = parser.parse_args()
    device = choose_device(TrainConfig(device=args.device))
    generated_noise_bank()  # made before the clock runs
    with cpu_threads(args.threads):
        rows = measure(args.pipelines, args.batches, args.rounds, device, args.threads)
    heads = ["", "digits a step", "computed in", "clips a second", "ms a step", "to float32", "MB"]
    text = "\n".join([f"{described(device, args.threads)}; {platform.platform()}.", "", *table(heads, rows)])
    print(text)
    if args.update_docs:
        update(device.type, f"{text}\nMeasured {datetime.now(UTC):%Y-%m-%d} at commit {head()}.\n")
    return 0


def update(kind: str, text: str) -> None:
    """Put the table of one kind of device into the page."""
    begin, end = f"<!-- training on {kind} -->\n", f"<!-- end of training on {kind} -->\n"
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        sys.exit(f"{PAGE} has no place for this: expected the lines {begin.strip()} and {end.strip()}")
    PAGE.write_text(before + begin + "\n" + text + "\n" + end + rest.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
