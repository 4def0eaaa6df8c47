"""The answering part by itself: needs numpy, soundfile, soxr, onnxruntime and pytest alone.

`make test-lowest` runs this file, without conftest.py, with the oldest versions that pyproject.toml allows.
"""

from __future__ import annotations

import numpy as np
import pytest

from digit_detector import StreamingDetector, load_classifier
from digit_detector.audio import decode
from digit_detector.examples import example_recording


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("pipeline", ["mfcc", "mel_cnn", "raw_cnn"])
def test_the_models_that_ship_recognise_the_example(pipeline: str, precision: str) -> None:
    answer = load_classifier("pretrained", pipeline, precision=precision).predict(example_recording("seven"))
    assert (answer["predicted_digit"], answer["is_digit"]) == (7, True)
    assert answer["confidence"] > 0.95
    assert abs(sum(answer["probabilities"]) - 1) < 1e-5


def test_the_live_detector_recognises_a_phone_number() -> None:
    samples = decode(example_recording("phone_number"))
    detector = StreamingDetector()
    found = [d.digit for d in (*detector.feed(samples, sample_rate=8000), *detector.flush())]
    assert "".join(map(str, found)) == "4135550127"


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_any_sample_rate_and_channel_count_is_read(rate: int) -> None:
    time = np.arange(rate, dtype=np.float32) / rate
    stereo = np.stack([np.sin(2 * np.pi * 440 * time)] * 2, axis=1).astype(np.float32)
    answer = load_classifier("pretrained", "mel_cnn").predict(stereo, sample_rate=rate)
    assert len(answer["probabilities"]) == 10
    assert not answer["is_digit"]
