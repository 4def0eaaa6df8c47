"""What the cache saves: seconds from torch imported to the first training step, without it, filling it, and with it.

    python benchmarks/cache.py [--pipeline mfcc] [--data_dir FSDD] [--augmented] [--runs 3] [--limit 1.0]

Each run is a process of its own; everything it needs is in the system's page cache by then. Without recordings,
speech is synthesised. Leaves with 1 where the median with a full cache is --limit seconds or more.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from digit_detector.labels import PIPELINES
from ml_training.cache import format_size
from ml_training.data.feature_cache import FOLDER_VARIABLE, Cache

# What a run does until its first step has been taken, timed from the moment torch is there.
CHILD = """
import sys, time
import torch
began = time.perf_counter()
from ml_training.flags import OneLineParser, add_train_flags, train_config_from
parser = OneLineParser()
add_train_flags(parser)
config = train_config_from(parser.parse_args(sys.argv[1:]))
from digit_detector.errors import Interrupted
from ml_training.training import experiment, trainer
step = trainer.Trainer._step
def first(self, *words):
    step(self, *words)
    print(time.perf_counter() - began, flush=True)
    raise KeyboardInterrupt
trainer.Trainer._step = first
try:
    experiment.run(config)
except Interrupted:
    pass
"""


def seconds(words: list[str], cache: Path) -> float:
    """From torch imported to the first step of one process."""
    environment = {**os.environ, FOLDER_VARIABLE: str(cache)}
    with tempfile.TemporaryDirectory() as folder:
        places = ["--models_dir", f"{folder}/models", "--log_dir", f"{folder}/logs"]
        command = [sys.executable, "-c", CHILD, *words, *places]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    figures = [line for line in done.stdout.splitlines() if line.replace(".", "", 1).isdigit()]
    if done.returncode or not figures:
        sys.exit(f"a run left with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return float(figures[0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds from torch imported to the first training step")
    parser.add_argument("--pipeline", choices=PIPELINES, default="mfcc")
    parser.add_argument("--data_dir", help="FSDD (default: $DIGIT_DATA_DIR; synthetic speech without)")
    parser.add_argument("--augmented", action="store_true", help="vary the clips of each step")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--limit", type=float, help="seconds that are too many with a full cache")
    args = parser.parse_args()
    data = args.data_dir or os.environ.get("DIGIT_DATA_DIR")
    words = ["--pipeline", args.pipeline, *(["--data_dir", data] if data else ["--dataset", "synthetic"])]
    words += [] if args.augmented else ["--no_augmentation.enabled"]
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        without = [seconds([*words, "--no_cache"], cache) for _ in range(args.runs)]
        filling = seconds(words, cache)
        full = [seconds(words, cache) for _ in range(args.runs)]
        entries = Cache(cache).entries()
    what = "recordings" if data else "synthetic speech"
    print(f"{args.pipeline}, {'augmented' if args.augmented else 'not augmented'}, {what}")
    print(f"without a cache   {statistics.median(without):6.2f} s   (median of {args.runs})")
    print(f"filling it        {filling:6.2f} s")
    print(f"with a full one   {statistics.median(full):6.2f} s   (median of {args.runs})")
    print(f"it takes {format_size(sum(entry.bytes for entry in entries))}:")
    for entry in sorted(entries, key=lambda entry: -entry.bytes):
        print(f"    {entry.kind:<10} {format_size(entry.bytes):>9}")
    return 0 if args.limit is None or statistics.median(full) < args.limit else 1


if __name__ == "__main__":
    sys.exit(main())
