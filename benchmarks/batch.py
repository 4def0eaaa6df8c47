"""Measure prediction of folders: files a second by decoders, peak memory by number of files.

    python benchmarks/batch.py [--pipelines mfcc mel_cnn] [--files 10000 100000] [--decoders 1 2] [--repeats 3]
    python benchmarks/batch.py --long [--minutes 5 60] [--copies 120 40] [--limit 200]

The files are WAVs as FSDD's are, 16 bit at 8 kHz, 0.43 seconds long and each another noise, in folders of a thousand;
they lie in the page cache when they are read. The models are those that ship. Each run is a process of its own; of
several, the fastest counts for speed and the largest for memory: its peak resident set (VmHWM, so Linux).

With --long they are 120 WAVs of five minutes and 40 FLACs of an hour, each with half a second of noise somewhere in
next to nothing (1 GB in the temporary folder); it leaves with 1 where a run takes --limit MB or more.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from digit_detector.labels import PIPELINES, PRETRAINED

SAMPLES, IN_A_FOLDER = 3440, 1000


def make(folder: Path, files: int) -> None:
    """Write `files` recordings below a folder."""
    generator = np.random.default_rng(0)
    for number in range(files):
        inner = folder / f"{number // IN_A_FOLDER:04}"
        if number % IN_A_FOLDER == 0:
            inner.mkdir(parents=True)
        with wave.open(str(inner / f"{number:07}.wav"), "wb") as recording:
            recording.setparams((1, 2, 8000, SAMPLES, "NONE", ""))
            recording.writeframes(generator.integers(-9000, 9000, SAMPLES, dtype=np.int16).tobytes())


def make_long(folder: Path, minutes: Sequence[int], copies: Sequence[int]) -> int:
    """Write `copies` recordings of each length, of an hour and more as FLAC; returns their number."""
    import soundfile

    folder.mkdir()
    generator = np.random.default_rng(0)
    for length, count in zip(minutes, copies, strict=True):
        for number in range(count):
            samples = generator.integers(-4, 5, length * 60 * 8000, dtype=np.int16)
            start = generator.integers(len(samples) - 4000)
            samples[start : start + 4000] = generator.integers(-9000, 9000, 4000)
            soundfile.write(folder / f"{length}_{number:03}.{'flac' if length >= 60 else 'wav'}", samples, 8000)
    return sum(copies)


def measure(folder: Path, out: Path, words: Sequence[str]) -> tuple[float, int]:
    """Seconds from start to end of a run, and the most bytes it had in memory."""
    command = [sys.executable, "-m", "ml_training.inference", str(folder), "--out", str(out), "--model_dir", PRETRAINED]
    began, most = time.perf_counter(), 0
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text(encoding="ascii"))
            most = max(most, int(found[1]) << 10 if found else 0)
            time.sleep(0.005)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"error: {process.stderr.read().strip() if process.stderr else 'no table'}")
    return seconds, most


def measure_long(args: argparse.Namespace) -> int:
    most = 0.0
    print("| pipeline | recordings | decoders | seconds | peak memory, MB |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        count = make_long(Path(work) / "long", args.minutes, args.copies)
        for pipeline in args.pipelines:
            for decoders in args.decoders:
                words = ["--pipeline", pipeline, "--decoders", str(decoders), "--overwrite"]
                seconds, memory = measure(Path(work) / "long", Path(work) / "x.csv", words)
                most = max(most, memory / 1e6)
                print(f"| {pipeline} | {count} | {decoders} | {seconds:.0f} | {memory / 1e6:.0f} |", flush=True)
    return int(most >= args.limit)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Files a second and peak memory of digits predict FOLDER --out TABLE.")
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=["mfcc", "mel_cnn"])
    parser.add_argument("--files", nargs="+", type=int, default=[10_000, 100_000])
    parser.add_argument("--decoders", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--long", action="store_true", help="long recordings in the place of many")
    parser.add_argument("--minutes", nargs="+", type=int, default=[5, 60], help="their lengths (default: 5 60)")
    parser.add_argument("--copies", nargs="+", type=int, default=[120, 40], help="of each length (default: 120 40)")
    parser.add_argument("--limit", type=float, default=200, help="MB that are too many for them (default: 200)")
    args = parser.parse_args(argv)
    if args.long:
        return measure_long(args)
    print("| pipeline | files | decoders | files a second | peak memory, MB |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        for files in args.files:
            folder = Path(work) / str(files)
            make(folder, files)
            for pipeline in args.pipelines:
                for decoders in args.decoders:
                    words = ["--pipeline", pipeline, "--decoders", str(decoders), "--overwrite"]
                    runs = [measure(folder, Path(work) / "x.csv", words) for _ in range(args.repeats)]
                    speed, memory = files / min(run[0] for run in runs), max(run[1] for run in runs)
                    print(f"| {pipeline} | {files:,} | {decoders} | {speed:,.0f} | {memory / 1e6:.0f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
