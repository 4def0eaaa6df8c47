"""The recordings that come with the package hold what their names say, and every model that ships agrees."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector import StreamingDetector
from digit_detector.audio import SAMPLE_RATE, decode
from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError
from digit_detector.examples import DIGITS, EXAMPLES, example_recording
from digit_detector.labels import PIPELINES

TOOL = Path(__file__).resolve().parents[1] / "tools" / "make_samples.py"


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_each_model_that_ships_answers_them(pipeline: str) -> None:
    classifier = load_classifier("pretrained", pipeline)
    for name in EXAMPLES:
        answer = classifier.predict(example_recording(name))
        assert (str(answer["predicted_digit"]), answer["is_digit"]) == (DIGITS[name], True)


def test_the_phone_number_is_detected_live() -> None:
    detector = StreamingDetector()
    found = detector.feed(decode(example_recording("phone_number")), SAMPLE_RATE) + detector.flush()
    assert "".join(str(detection.digit) for detection in found) == DIGITS["phone_number"]


@pytest.mark.parametrize("name", DIGITS)
def test_they_are_what_the_tool_makes(name: str) -> None:
    info = soundfile.info(example_recording(name))
    assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
    made = runpy.run_path(str(TOOL))["recording"](DIGITS[name])
    np.testing.assert_allclose(decode(example_recording(name)), made, atol=2 / 32768)


def test_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of seven, three, phone_number, got 'eight'"):
        example_recording("eight")
