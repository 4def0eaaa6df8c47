"""The trained pipelines as processors: one of them, or their ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier
from digit_detector.labels import IS_DIGIT, PIPELINES, PRETRAINED
from digit_detector.processors.base import AudioProcessor


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
    """The mean of the probabilities of all pipelines. Raises the errors of load_classifier."""

    def __init__(self, model_dir: str | Path = PRETRAINED) -> None:
        self.classifiers = [load_classifier(model_dir, pipeline) for pipeline in PIPELINES]

    @property
    def about(self) -> dict[str, str]:
        return {"pipelines": ", ".join(PIPELINES)}

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        clip = load_audio(audio_data)[None]
        outputs = [classifier.predict_proba(clip) for classifier in self.classifiers]
        probabilities = np.mean([probabilities[0] for probabilities, _ in outputs], axis=0)
        is_digit = float(np.mean([digit_scores[0] for _, digit_scores in outputs])) >= IS_DIGIT
        digit = int(probabilities.argmax())
        return str(digit) if is_digit else "", float(probabilities[digit])
