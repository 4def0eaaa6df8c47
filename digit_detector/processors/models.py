"""Our own models as processors: one pipeline, or the three of them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier
from digit_detector.labels import IS_DIGIT, PRETRAINED, trained_pipelines
from digit_detector.processors.base import AudioProcessor


class ModelProcessor(AudioProcessor):
    """One trained pipeline."""

    def __init__(self, pipeline: str, model_dir: str | Path = PRETRAINED) -> None:
        """Raises what load_classifier raises."""
        self.classifier = load_classifier(model_dir, pipeline)

    @property
    def about(self) -> dict[str, str]:
        return dict(self.classifier.metadata)

    def process_audio(self, audio_data: bytes) -> str:
        return self.recognise(audio_data)[0]

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        found = self.classifier.predict(audio_data)
        return str(found["predicted_digit"]) if found["is_digit"] else "", found["confidence"]


class EnsembleProcessor(AudioProcessor):
    """The mean of the probabilities of all pipelines that a folder of models has."""

    def __init__(self, model_dir: str | Path = PRETRAINED) -> None:
        """Raises what load_classifier raises."""
        self.classifiers = [load_classifier(model_dir, name) for name in trained_pipelines(model_dir)]

    @property
    def about(self) -> dict[str, str]:
        return {"pipelines": ", ".join(classifier.metadata["pipeline"] for classifier in self.classifiers)}

    def process_audio(self, audio_data: bytes) -> str:
        return self.recognise(audio_data)[0]

    def recognise(self, audio_data: bytes) -> tuple[str, float | None]:
        second = load_audio(audio_data)[None]
        said = [classifier.predict_proba(second) for classifier in self.classifiers]
        probabilities = np.mean([probabilities[0] for probabilities, _ in said], axis=0)
        is_digit = float(np.mean([digit_score[0] for _, digit_score in said])) >= IS_DIGIT
        digit = int(probabilities.argmax())
        return str(digit) if is_digit else "", float(probabilities[digit])
