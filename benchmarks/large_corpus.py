"""Training on more clips than memory is to hold: peak memory of one epoch on so many generated recordings.

    python benchmarks/large_corpus.py [--clips 100000] [--pipeline mfcc] [--limit 2000] [--work FOLDER]

Writes WAV files of 0.5 s (8 kB each) and trains on them in a process of its own, the cache in the same folder and
waveforms mapped; decoded they take 32 kB each. Memory is what the system says the process held at most, its mapped
pages included. Leaves with 1 where that is --limit MB or more. Without --work everything goes into a temporary folder,
which needs 41 kB of disk a clip.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE
from digit_detector.labels import PIPELINES
from ml_training.data.feature_cache import FOLDER_VARIABLE

SAMPLES = 4000
SPEAKERS = 50
# The door in a process that tells what it held at most: a child's own figure would start with that of its parent.
CHILD = """
import resource, sys
from ml_training.train import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)
"""


def write(folder: Path, clips: int) -> None:
    """Tones in noise, named as FSDD's recordings are; those that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    time_axis = np.arange(SAMPLES) / SAMPLE_RATE

    def one(number: int) -> None:
        digit, speaker, index = number % 10, number // 10 % SPEAKERS, number // (10 * SPEAKERS)
        path = folder / f"{digit}_speaker{speaker}_{index}.wav"
        if path.exists():
            return
        rng = np.random.default_rng(number)
        pitch = 200 + 150 * digit + 5 * speaker
        sound = 0.2 * np.hanning(SAMPLES) * np.sin(2 * np.pi * pitch * time_axis) + rng.normal(0, 0.01, SAMPLES)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes((sound * 32767).astype("<i2").tobytes())

    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(one, range(clips)):
            pass


def main() -> int:
    parser = argparse.ArgumentParser(description="Peak memory of one epoch on many generated clips")
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--pipeline", choices=PIPELINES, default="mfcc")
    parser.add_argument("--limit", type=float, default=2000, help="MB that are too many")
    parser.add_argument("--work", type=Path, help="keep recordings and cache here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return measured(args.work or Path(folder), args.clips, args.pipeline, args.limit)


def measured(work: Path, clips: int, pipeline: str, limit: float) -> int:
    write(work / "recordings", clips)
    words = ["--pipeline", pipeline, "--dataset", "folder", "--data_dir", work / "recordings", "--epochs", 1]
    words += [
        "--batch_size",
        256,
        "--clip_storage",
        "mapped",
        "--models_dir",
        work / "models",
        "--log_dir",
        work / "logs",
    ]
    environment = {**os.environ, FOLDER_VARIABLE: str(work / "cache")}
    began = time.perf_counter()
    command = [sys.executable, "-c", CHILD, *map(str, words)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return done.returncode
    peak = int(done.stdout.split()[-1]) / 1e6
    print(f"{clips:,} clips, {clips * 32 / 1e6:.2f} GB decoded, one epoch of {pipeline}")
    print(f"peak memory {peak:,.0f} MB, {time.perf_counter() - began:.0f} s with decoding and the test")
    return 0 if peak < limit else 1


if __name__ == "__main__":
    sys.exit(main())
