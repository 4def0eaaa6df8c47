"""How many live streams one core processes in real time, and whether memory stays flat over a day.

    python benchmarks/live_load.py [--streams 150] [--seconds 60] [--digits FOLDER]
    python benchmarks/live_load.py --day

Every stream gets a piece of 32 ms when it is due, as from a microphone: digits with pauses over noise. A piece is late
when it was not processed before the next one was due. Run it on one core: taskset -c 0. --day feeds one detector 24
hours of such audio as fast as possible and prints the peak memory every hour.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np

from digit_detector import DetectorPool, StreamingDetector
from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.streams import join_with_pauses, load_sounds, load_words, make_noise_track

PIECE = 256  # samples, 32 ms
PHASES = 4  # times in 32 ms at which a part of the streams each gets its piece
_START = 3.0  # seconds


def make_streams(folder: Path, noise: Path, streams: int, seconds: float) -> list[Floats]:
    """(T,) of each stream."""
    rng = np.random.default_rng(0)
    words, noises = load_words(folder), load_sounds(noise)
    size = int(seconds * SAMPLE_RATE)
    sounds = []
    for _ in range(streams):
        chosen = [words[i] for i in rng.integers(len(words), size=int(seconds))]
        stream = join_with_pauses(chosen, make_noise_track(noises, 30.0, rng), 20.0, rng)
        sounds.append(np.resize(stream.samples, size))
    return sounds


def feed_live(sounds: list[Floats]) -> None:
    """Feed all streams in real time and print how late they were processed."""
    pool = DetectorPool()
    for key in range(len(sounds)):
        pool.open(key)
    pieces = len(sounds[0]) // PIECE
    warm = np.zeros(PIECE, dtype=np.float32)
    for key in range(len(sounds)):
        pool.feed(key, warm)
    pool.run()
    delays, late, detections = [], [], 0
    seconds = PIECE / SAMPLE_RATE
    used = time.process_time()
    began = time.monotonic()
    for tick in range(pieces * PHASES):
        piece, phase = divmod(tick, PHASES)
        due = began + (tick + PHASES) * seconds / PHASES
        time.sleep(max(0.0, due - time.monotonic()))
        for key in range(phase, len(sounds), PHASES):
            pool.feed(key, sounds[key][piece * PIECE : (piece + 1) * PIECE])
        detections += sum(map(len, pool.run().values()))
        done = time.monotonic()
        delays.append(done - due)
        late.append(done > due + seconds)
    wall = time.monotonic() - began
    first = min(pieces * PHASES // 2, int(_START / seconds * PHASES))  # rounds in which all streams start at once
    p50, p95, p99, most = (1e3 * float(value) for value in np.percentile(delays[first:], (50, 95, 99, 100)))
    shares = [100 * sum(part) / len(part) for part in (late[first:], late[:first])]
    print(
        f"{len(sounds)} streams, {wall:.0f} s: {shares[0]:.2f} % of the pieces late, and {shares[1]:.2f} % in the "
        f"first {_START:g} s, when all start at once; processed {p50:.1f} ms after due (p50), {p95:.1f} (p95), "
        f"{p99:.1f} (p99), {most:.1f} (most); {(time.process_time() - used) / wall:.2f} of a core; {detections} digits"
    )


def feed_day(sounds: list[Floats]) -> None:
    """Feed 24 hours to one detector and print the peak memory after each."""
    detector = StreamingDetector()
    hour = 3600 * SAMPLE_RATE
    for number in range(25):
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"hour {number:2d}: {memory:.0f} MB at most", flush=True)
        fed = 0
        while number < 24 and fed < hour:
            sound = sounds[fed % len(sounds)]
            detector.feed(sound)
            fed += len(sound)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", "."))
    parser.add_argument("--digits", type=Path, default=corpora / "iitg_digits")
    parser.add_argument("--noise", type=Path, default=corpora / "noise" / "train")
    parser.add_argument("--streams", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--day", action="store_true")
    arguments = parser.parse_args()
    if arguments.day:
        feed_day(make_streams(arguments.digits, arguments.noise, 4, 60.0))
    else:
        feed_live(make_streams(arguments.digits, arguments.noise, arguments.streams, arguments.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
