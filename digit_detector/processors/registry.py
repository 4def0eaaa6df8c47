"""The processors by name, and which of them can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from digit_detector.errors import ConfigError, DigitError, did_you_mean
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.baselines import PocketSphinxProcessor, WhisperProcessor
from digit_detector.processors.external_api import ExternalAPIProcessor
from digit_detector.processors.models import EnsembleProcessor, ModelProcessor


class Kind(NamedTuple):
    """A processor that can be created."""

    title: str
    make: Callable[..., AudioProcessor]
    is_trained: bool = False  # whether `make` takes a folder of models


PROCESSORS: Mapping[str, Kind] = {
    "ml_mfcc": Kind("MFCC and a dense network", partial(ModelProcessor, MFCC), is_trained=True),
    "ml_cnn": Kind("log-mel and a 2D CNN", partial(ModelProcessor, MEL_CNN), is_trained=True),
    "ml_raw": Kind("raw waveform and a 1D CNN", partial(ModelProcessor, RAW_CNN), is_trained=True),
    "ensemble": Kind("the three together", EnsembleProcessor, is_trained=True),
    "external_api": Kind("a transcription service by HTTP", ExternalAPIProcessor),
    "pocketsphinx": Kind("pocketsphinx, ten words", PocketSphinxProcessor),
    "whisper": Kind("Whisper tiny", WhisperProcessor),
}


class Processors(dict[str, AudioProcessor]):
    """The processors that can run, by name; `unavailable` holds the reason for each other one."""

    def __init__(self) -> None:
        super().__init__()
        self.unavailable: dict[str, str] = {}


def load_processors(names: Iterable[str] = tuple(PROCESSORS), model_dir: str | Path = PRETRAINED) -> Processors:
    """The processors of these names; one that cannot run does not affect the others.

    `model_dir` holds the models of the trained ones, as in load_classifier. Raises ConfigError for an unknown name.
    """
    processors = Processors()
    for name in names:
        kind = PROCESSORS.get(name)
        if kind is None:
            raise ConfigError([f"unknown processor {name!r}{did_you_mean(name, PROCESSORS)}"], "processors")
        try:
            processor = kind.make(model_dir=model_dir) if kind.is_trained else kind.make()
            reason = processor.unavailable
        except DigitError as error:
            reason = str(error)
        if reason is not None:
            processors.unavailable[name] = reason
            continue
        processor.name, processor.title = name, kind.title
        processors[name] = processor
    return processors
