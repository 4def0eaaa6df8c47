"""Spoken digits: classify a recording, detect digits in live sound.

    from digit_detector import StreamingDetector, load_classifier

    load_classifier("pretrained", "mel_cnn").predict("seven.wav")
    detector = StreamingDetector()
    for detection in detector.feed(samples, sample_rate):
        print(detection.digit, detection.confidence)

Names are imported when they are first used, so that a classifier does not load the live detector.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# onnxruntime's own builds keep an identifier of the machine and report their use to its maker, from the moment they
# are imported. Nothing here does that unasked; set the variable to 0 to allow it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from digit_detector.classifier import DigitClassifier, load_classifier
    from digit_detector.streaming.config import DetectorConfig, load_config
    from digit_detector.streaming.detector import Detection, StreamingDetector
    from digit_detector.streaming.pool import DetectorPool

_MODULES = {
    "DigitClassifier": "classifier",
    "load_classifier": "classifier",
    "Detection": "streaming.detector",
    "StreamingDetector": "streaming.detector",
    "DetectorPool": "streaming.pool",
    "DetectorConfig": "streaming.config",
    "load_config": "streaming.config",
}
__all__ = [
    "Detection",
    "DetectorConfig",
    "DetectorPool",
    "DigitClassifier",
    "StreamingDetector",
    "load_classifier",
    "load_config",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
