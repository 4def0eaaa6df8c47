"""Recognisers by name, with one interface: the bytes of a recording in, a digit as text out.

from digit_detector.processors import load_processors
processors = load_processors()
print(processors["ml_cnn"].process_audio(open("seven.wav", "rb").read()))
"""

from digit_detector.processors.base import Answer, AudioProcessor, Statistics
from digit_detector.processors.baselines import PocketSphinxProcessor, WhisperProcessor
from digit_detector.processors.external_api import ExternalAPIProcessor
from digit_detector.processors.registry import (
    PROCESSORS,
    EnsembleProcessor,
    ModelProcessor,
    Processors,
    load_processors,
)

__all__ = [
    "PROCESSORS", "Answer", "AudioProcessor", "EnsembleProcessor", "ExternalAPIProcessor", "ModelProcessor",
    "PocketSphinxProcessor", "Processors", "Statistics", "WhisperProcessor", "load_processors",
]  # fmt: skip
