"""Speak the recordings of digit_detector/samples with espeak-ng: python tools/make_samples.py."""

from __future__ import annotations

import numpy as np
import soundfile

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.examples import DIGITS, example_recording
from digit_detector.labels import LABELS
from ml_training.data.tts import say

VOICE = "en-us+f1"
EDGE = 0.2  # seconds of quiet before, after and between words
QUIET = 1e-3  # noise under all of it: digital silence is no recording


def recording(digits: str, seed: int = 0) -> Floats:
    """Digits spoken one after the other, (T,) at 8 kHz."""
    rng = np.random.default_rng(seed)
    pause = np.zeros(int(EDGE * SAMPLE_RATE), dtype=np.float32)
    parts = [pause]
    for word in say([(VOICE, LABELS[int(digit)]) for digit in digits], seed):
        parts += [0.5 * word / np.abs(word).max(), pause]
    samples = np.concatenate(parts)
    noisy: Floats = samples + QUIET * rng.standard_normal(len(samples), dtype=np.float32)
    return noisy


def main() -> None:
    for name, digits in DIGITS.items():
        path = example_recording(name)
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, recording(digits), SAMPLE_RATE, subtype="PCM_16")
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
