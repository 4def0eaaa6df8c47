"""What offsets, mains hum and other sample rates cost live detection.

    python benchmarks/live_input.py [--words FOLDER] [--noise FOLDER] [--most 300]

Words are strung together with pauses of 0.5 to 1 s over noise 25 dB below them, and detected at 8 kHz; then the same
with an offset, with hum at the level of the words, and from other rates, resampled by the live resampler or by soxr.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import soxr

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import (
    WORD_DBFS,
    TestStream,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
)
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Engine

RATES = (16_000, 44_100, 48_000)
SNR_DB = 25.0
OFFSETS = (0.1, 0.3)
HARMONICS = {1: 1.0, 2: 0.3, 3: 0.5, 5: 0.3}  # of 50 Hz, with their amplitudes


def hum(samples: int) -> Floats:
    """(T,) mains hum at the level of the words."""
    seconds = np.arange(samples) / SAMPLE_RATE
    tone = sum(size * np.sin(2 * np.pi * 50 * harmonic * seconds) for harmonic, size in HARMONICS.items())
    return np.asarray(tone * (10 ** (WORD_DBFS / 20) / np.std(tone)), dtype=np.float32)


def downsample(samples: Floats, rate: int, quality: str) -> Floats:
    """(T,) at 8 kHz, by a soxr stream of a quality."""
    stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=quality)
    resampled: Floats = stream.resample_chunk(samples, last=True)
    return resampled


def detect(engine: Engine, stream: TestStream, samples: Floats, rate: int = SAMPLE_RATE) -> Score:
    detector = StreamingDetector(engine=engine)
    detections = []
    for at in range(0, len(samples), rate):
        detections += detector.feed(samples[at : at + rate], rate)
    return score(stream.digits, detections + detector.flush())


def add_offset(sound: Floats, offset: float) -> tuple[Floats, int]:
    return 0.5 * sound + np.float32(offset), SAMPLE_RATE


def upsample(sound: Floats, rate: int) -> tuple[Floats, int]:
    return np.asarray(soxr.resample(sound, SAMPLE_RATE, rate, quality="VHQ"), dtype=np.float32), rate


def resample_twice(sound: Floats, rate: int, quality: str) -> tuple[Floats, int]:
    return downsample(upsample(sound, rate)[0], rate, quality), SAMPLE_RATE


def make_inputs(stream: TestStream) -> dict[str, Callable[[], tuple[Floats, int]]]:
    """Samples and rate of each row."""
    sound = stream.samples
    rows: dict[str, Callable[[], tuple[Floats, int]]] = {"8,000 Hz": lambda: (sound, SAMPLE_RATE)}
    for offset in OFFSETS:
        rows[f"half the level, offset of {offset:g}"] = partial(add_offset, sound, offset)
    rows["hum at the level of the words"] = lambda: (sound + hum(len(sound)), SAMPLE_RATE)
    for rate in RATES:
        rows[f"{rate:,} Hz"] = partial(upsample, sound, rate)
        for quality in ("LQ", "HQ"):
            rows[f"{rate:,} Hz, soxr's {quality}"] = partial(resample_twice, sound, rate, quality)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", "."))
    parser.add_argument("--words", type=Path, default=corpora / "contributors" / "digits")
    parser.add_argument("--noise", type=Path, default=corpora / "noise" / "train")
    parser.add_argument("--most", type=int, default=300, help="words")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    words = load_words(arguments.words)
    chosen = [words[i] for i in rng.permutation(len(words))[: arguments.most]]
    noise = make_noise_track(load_sounds(arguments.noise), 300.0, rng)
    stream = join_with_pauses(chosen, noise, SNR_DB, rng, (0.5, 1.0))
    engine = Engine()
    print(f"{len(chosen)} words | right | missed | mistaken | too many\n---|---:|---:|---:|---:")
    for title, make in make_inputs(stream).items():
        counts = detect(engine, stream, *make())
        print(f"{title} | {counts.correct} | {counts.deleted} | {counts.substituted} | {counts.inserted}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
