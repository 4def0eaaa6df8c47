"""The trained pipelines as processors; all processors by name, and which of them can run here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, DigitError, did_you_mean
from digit_detector.labels import IS_DIGIT, MEL_CNN, MFCC, PRETRAINED, RAW_CNN, trained_pipelines
from digit_detector.processors.base import AudioProcessor
from digit_detector.processors.baselines import PocketSphinxProcessor, WhisperProcessor
from digit_detector.processors.external_api import ExternalAPIProcessor


class _ClassifierProcessor(AudioProcessor):
    def process_audio(self, audio_data: bytes) -> str:
        return self.recognise(audio_data)[0]


class ModelProcessor(_ClassifierProcessor):
    """One trained pipeline. Raises the errors of load_classifier."""

    def __init__(self, pipeline: str, model_dir: str | Path = PRETRAINED) -> None:
        self.classifier = load_classifier(model_dir, pipeline)

    @property
    def about(self) -> dict[str, str]:
        return dict(self.classifier.metadata)

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        prediction = self.classifier.predict(audio_data)
        return str(prediction["predicted_digit"]) if prediction["is_digit"] else "", prediction["confidence"]


class EnsembleProcessor(_ClassifierProcessor):
    """The mean of the probabilities of all pipelines of a folder. Raises the errors of load_classifier."""

    def __init__(self, model_dir: str | Path = PRETRAINED) -> None:
        self.classifiers = [load_classifier(model_dir, name) for name in trained_pipelines(model_dir)]

    @property
    def about(self) -> dict[str, str]:
        return {"pipelines": ", ".join(classifier.metadata["pipeline"] for classifier in self.classifiers)}

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        clip = load_audio(audio_data)[None]
        outputs = [classifier.predict_proba(clip) for classifier in self.classifiers]
        probabilities = np.mean([probabilities[0] for probabilities, _ in outputs], axis=0)
        is_digit = float(np.mean([digit_scores[0] for _, digit_scores in outputs])) >= IS_DIGIT
        digit = int(probabilities.argmax())
        return str(digit) if is_digit else "", float(probabilities[digit])


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
