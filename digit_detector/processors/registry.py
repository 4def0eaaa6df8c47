"""Which processors there are, and those of them that can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from digit_detector.errors import ConfigError, DigitError, did_you_mean
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.external_api import ExternalAPIProcessor
from digit_detector.processors.models import EnsembleProcessor, ModelProcessor
from digit_detector.processors.others import PocketSphinxProcessor, WhisperProcessor


@dataclass(frozen=True)
class Kind:
    """A processor that may be made."""

    title: str
    make: Callable[..., AudioProcessor]
    ours: bool = False  # made with a folder of models


PROCESSORS: Mapping[str, Kind] = {
    "ml_mfcc": Kind("MFCC and a dense network", partial(ModelProcessor, MFCC), ours=True),
    "ml_cnn": Kind("log-mel and a 2D CNN", partial(ModelProcessor, MEL_CNN), ours=True),
    "ml_raw": Kind("raw waveform and a 1D CNN", partial(ModelProcessor, RAW_CNN), ours=True),
    "ensemble": Kind("the three together", EnsembleProcessor, ours=True),
    "external_api": Kind("a transcription service by HTTP", ExternalAPIProcessor),
    "pocketsphinx": Kind("pocketsphinx, ten words", PocketSphinxProcessor),
    "whisper": Kind("Whisper tiny", WhisperProcessor),
}


class Processors(dict[str, AudioProcessor]):
    """Those that can run, by name; `unavailable` says of each other why it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.unavailable: dict[str, str] = {}


def load_processors(names: Iterable[str] = tuple(PROCESSORS), model_dir: str | Path = PRETRAINED) -> Processors:
    """The processors of these names that can run here. One that cannot takes no other with it.

    Ours answer with the models of `model_dir`, as in load_classifier.

    Raises ConfigError for a name that is none.
    """
    found = Processors()
    for name in names:
        kind = PROCESSORS.get(name)
        if kind is None:
            raise ConfigError([f"unknown processor {name!r}{did_you_mean(name, PROCESSORS)}"], "processors")
        try:
            processor = kind.make(model_dir=model_dir) if kind.ours else kind.make()
        except DigitError as error:
            found.unavailable[name] = str(error)
            continue
        if processor.unavailable is not None:
            found.unavailable[name] = processor.unavailable
            continue
        processor.name, processor.title = name, kind.title
        found[name] = processor
    return found
