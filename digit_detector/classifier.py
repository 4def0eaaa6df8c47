"""Trained pipelines as ONNX files, and their predictions. Never imports torch."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import FAINTEST, LOUDEST, NUM_SAMPLES, Floats, Source, load_clip
from digit_detector.errors import (
    ConfigError,
    DigitError,
    ModelError,
    ModelMemoryError,
    NonFiniteAudioError,
    did_you_mean,
)
from digit_detector.labels import FILE_PRECISIONS, FP32, IS_DIGIT, LABELS, model_folder, trained_pipelines
from digit_detector.labels import PRETRAINED as PRETRAINED
from digit_detector.memory import is_out_of_memory
from digit_detector.model_file import DIGIT_NAME, INPUT_NAME, SCORES_NAME, check_metadata, is_intact, onnx_name
from digit_detector.onnx_session import open_session

MODEL_FILE = onnx_name("model", FP32)
MAX_THREADS = 1024  # as in training; onnxruntime would start any number and never end


class DigitProbability(TypedDict):
    digit: int
    probability: float


class Prediction(TypedDict):
    """The digit in one recording."""

    predicted_digit: int
    confidence: float  # probability of the predicted digit
    probabilities: list[float]  # ten, they sum to 1
    top3: list[DigitProbability]  # the most probable first
    is_digit: bool  # digit_score >= IS_DIGIT
    digit_score: float  # 0 to 1: its probability if digits and other sounds are equally frequent
    seconds: float  # length of the recording; only the second with most speech is classified
    inference_ms: float  # from 8,000 samples to probabilities; reading and resampling are not in it
    model: str  # path of its file


@final
class FilePrediction(Prediction):
    """One prediction of a batch; inference_ms is this clip's share of its batch."""

    file: str


@final
class FileError(TypedDict):
    """Why one file of a batch has no prediction."""

    file: str
    error: str


class Benchmark(TypedDict):
    """Speed of a model on this machine, one clip at a time unless stated otherwise; times in ms."""

    num_samples: int
    threads: int
    throughput_per_second: float
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    batch_size: int
    batch_throughput_per_second: float
    model: str


class DigitClassifier:
    """A trained pipeline in an onnxruntime session. Stateless, so threads may share one."""

    def __init__(self, session: Any, model_file: Path, metadata: dict[str, str], threads: int) -> None:
        self.model_file = model_file
        self.metadata = metadata  # see digit_detector.model_file.KEYS
        self._session = session
        self._threads = threads

    def predict(self, source: Source, sample_rate: int | None = None, encoding: str | None = None) -> Prediction:
        """The digit in `source`: a path, the bytes of a file, a binary file object or an array.

        `sample_rate` (Hz) and `encoding` are as in load_audio. Raises AudioError; digital silence is no error, but no
        digit.
        """
        samples, seconds = load_clip(source, sample_rate, encoding)
        started = time.perf_counter()
        (probabilities,), (digit_score,) = self.predict_proba(samples[None])
        return self._make_prediction(probabilities, digit_score, 1e3 * (time.perf_counter() - started), seconds)

    def batch_predict(
        self, files: Iterable[Source], batch_size: int = 32, *, sample_rate: int | None = None,
        encoding: str | None = None,
    ) -> list[FilePrediction | FileError]:  # fmt: skip
        """One entry for each of `files`, in their order; `batch_size` of them go through the model at once.

        `sample_rate` and `encoding` are as in `predict`, for all of them. A file that cannot be read becomes
        {"file": ..., "error": why}; the others are still predicted.
        """
        if isinstance(files, (str, bytes, os.PathLike)):
            raise ConfigError([f"files: expected a list of files, got one: write [{files!r}]"], "batch_predict")
        if batch_size < 1:
            raise ConfigError([f"batch_size: expected 1 or more, got {batch_size}"], "batch_predict")
        entries: list[FilePrediction | FileError] = []
        remaining = enumerate(files)
        while group := list(islice(remaining, batch_size)):
            entries += self._predict_group(group, sample_rate, encoding)
        return entries

    def _predict_group(
        self, group: Sequence[tuple[int, Source]], sample_rate: int | None, encoding: str | None
    ) -> list[FilePrediction | FileError]:
        clips: dict[int, tuple[Floats, float]] = {}  # position -> samples, seconds
        entries: dict[int, FilePrediction | FileError] = {}
        for position, source in group:
            try:
                clips[position] = load_clip(source, sample_rate, encoding)
            except DigitError as error:
                entries[position] = FileError(file=_file_name(source, position), error=str(error))
        if clips:
            started = time.perf_counter()
            outputs = self.predict_proba(np.stack([samples for samples, _ in clips.values()]))
            share = 1e3 * (time.perf_counter() - started) / len(clips)
            for probabilities, digit_score, (position, (_, seconds)) in zip(*outputs, clips.items(), strict=True):
                answer = self._make_prediction(probabilities, digit_score, share, seconds)
                entries[position] = FilePrediction(file=_file_name(dict(group)[position], position), **answer)
        return [entries[position] for position, _ in group]

    def probabilities(self, waveforms: Floats) -> Floats:
        """(N, 8000) float32 seconds as `load_audio` makes them -> (N, 10) probabilities."""
        return self.predict_proba(waveforms)[0]

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]:
        """(N, 8000) float32 seconds as `load_audio` makes them -> (N, 10) probabilities and (N,) digit scores.

        A silent one has a digit score of 0 and equal probabilities. Raises NonFiniteAudioError for NaN or too loud
        samples, ModelError if the model fails.
        """
        has_sound = _has_sound(waveforms)
        try:
            logits, digit_scores = self._session.run([SCORES_NAME, DIGIT_NAME], {INPUT_NAME: waveforms})
        except Exception as error:  # onnxruntime's own exceptions share no narrower base
            kind = ModelMemoryError if is_out_of_memory(error) else ModelError
            raise kind(f"{self.model_file} failed on an input of shape {waveforms.shape}: {error}") from error
        whole = logits.shape == (len(waveforms), len(LABELS)) and digit_scores.shape == (len(waveforms),)
        finite = whole and np.isfinite(logits).all(axis=1) & np.isfinite(digit_scores)
        if not np.all(finite | ~has_sound):
            raise ModelError(
                f"{self.model_file} is damaged: expected {len(LABELS)} finite scores per clip; export or retrain it"
            )
        if not has_sound.all():  # the model's scores for silence are meaningless
            logits = np.where(has_sound[:, None], logits, np.float32(0))
            digit_scores = np.where(has_sound, digit_scores, np.float32(0))
        return softmax(logits), digit_scores

    def benchmark_speed(self, num_samples: int = 1000, batch_size: int = 32) -> Benchmark:
        """Time `num_samples` clips of noise one by one, and again in batches."""
        if num_samples < 1 or batch_size < 1:
            raise ConfigError(
                [f"expected num_samples and batch_size of 1 or more, got {num_samples} and {batch_size}"], "benchmark"
            )
        noise = np.random.default_rng(0).standard_normal((batch_size, NUM_SAMPLES), dtype=np.float32) * 0.1
        for _ in range(10):  # the first runs allocate
            self.probabilities(noise[:1])
        times = np.empty(num_samples)
        for i in range(num_samples):
            started = time.perf_counter()
            self.probabilities(noise[i % batch_size][None])
            times[i] = time.perf_counter() - started
        batches = -(-num_samples // batch_size)
        self.probabilities(noise)
        started = time.perf_counter()
        for _ in range(batches):
            self.probabilities(noise)
        batch_seconds = time.perf_counter() - started
        p50, p95, p99 = (1e3 * float(q) for q in np.percentile(times, (50, 95, 99)))
        return Benchmark(
            num_samples=num_samples, threads=self._threads, throughput_per_second=num_samples / float(times.sum()),
            mean_ms=1e3 * float(times.mean()), p50_ms=p50, p95_ms=p95, p99_ms=p99, batch_size=batch_size,
            batch_throughput_per_second=batches * batch_size / batch_seconds, model=str(self.model_file),
        )  # fmt: skip

    def _make_prediction(
        self, probabilities: Floats, digit_score: float, milliseconds: float, seconds: float
    ) -> Prediction:
        order = np.argsort(-probabilities, kind="stable")
        top3 = [DigitProbability(digit=int(d), probability=float(probabilities[d])) for d in order[:3]]
        return Prediction(
            predicted_digit=top3[0]["digit"], confidence=top3[0]["probability"],
            probabilities=[float(p) for p in probabilities], top3=top3, is_digit=bool(digit_score >= IS_DIGIT),
            digit_score=float(digit_score), seconds=seconds, inference_ms=milliseconds, model=str(self.model_file),
        )  # fmt: skip


def load_classifier(
    model_dir: str | Path, pipeline: str, threads: int = 1, precision: str = FP32, version: int | None = None
) -> DigitClassifier:
    """The trained `pipeline` of the folder `model_dir`, on `threads` CPU threads.

    "pretrained" means the models that come with the package, whatever folders exist. `precision` "int8" takes the
    smaller file of `digits export`. `version` is the number of a version in the folder; None is the promoted one.

    Raises ConfigError for invalid arguments, ModelError for a folder, file or version that is missing, damaged or not
    of this package.
    """
    faults = []
    names = trained_pipelines(model_dir)
    if pipeline not in names:
        hint = did_you_mean(str(pipeline), names)
        faults.append(f"pipeline: expected one of {', '.join(names)}, got {pipeline!r}{hint}")
    if not 1 <= threads <= MAX_THREADS:
        faults.append(f"threads: expected 1 to {MAX_THREADS}, got {threads}")
    if precision not in FILE_PRECISIONS:
        faults.append(f"precision: expected one of {', '.join(FILE_PRECISIONS)}, got {precision!r}")
    if version is not None and (not isinstance(version, int) or version < 1):
        faults.append(f"version: expected a whole number from 1 on, got {version!r}")
    if faults:
        raise ConfigError(faults)
    file = model_file(model_dir, pipeline, precision, version)
    content = _read_model(file, model_dir, pipeline, version)
    session = open_session(content, file, threads)
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        check_metadata(metadata, pipeline, str(file))
        _check_shapes(session, file)
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is damaged: its names are no text; copy, export or retrain it") from error
    if not is_intact(content, metadata):
        raise ModelError(f"{file} is damaged: its checksum is not that of its export; copy, export or retrain it")
    classifier = DigitClassifier(session, file, metadata, threads)
    classifier.probabilities(np.linspace(-0.1, 0.1, NUM_SAMPLES, dtype=np.float32)[None])  # a damaged graph fails now
    return classifier


def model_file(model_dir: str | Path, pipeline: str, precision: str = FP32, version: int | None = None) -> Path:
    """The path of a pipeline's model; arguments as in load_classifier."""
    if model_dir == PRETRAINED:
        if version is not None:
            raise ConfigError([f"version: the models that ship have none, got {version}: leave it out"])
        return Path(__file__).parent / PRETRAINED / onnx_name(pipeline, precision)
    folder, name = model_folder(model_dir, pipeline), onnx_name("model", precision)
    if version is None and not (folder / "versions").is_dir():
        return folder / name
    from digit_detector.versions import promoted_file, version_folder  # not needed without versions

    return promoted_file(folder, name) if version is None else version_folder(folder, version) / name


def _read_model(file: Path, model_dir: str | Path, pipeline: str, version: int | None) -> bytes:
    if model_dir == PRETRAINED:
        return _read(file, ", which comes with the package,", "; install it again")
    train, ships = f"train one with train.py --pipeline {pipeline}", f"{PRETRAINED!r} for the models that ship"
    models, folder = Path(model_dir), model_folder(model_dir, pipeline)
    if not models.is_dir():
        raise ModelError(
            f"no folder {models} (looked for {models.absolute()}): {train}, name another folder, or {ships}"
        )
    if not folder.is_dir():
        raise ModelError(
            f"{models} holds no {folder.name}, {_content(models)}: {train}, name another folder, or {ships}"
        )
    if version is not None:
        from digit_detector.versions import read_file, read_intact_version

        return read_file(folder, read_intact_version(folder, version), file.name)
    if not file.is_file():
        made = f"{train}; training ends by writing it" if file.name == MODEL_FILE else "make it with digits export"
        raise ModelError(f"{folder} holds no {file.name}, {_content(folder)}: {made}; or name {ships}")
    return _read(file)


def _read(file: Path, what: str = "", advice: str = "") -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file}{what} cannot be read: {error.strerror or error}{advice}") from error


def _content(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"only {listed}" if names else "it is empty"


def _check_shapes(session: Any, file: Path) -> None:
    nodes = [(node.name, node.type, node.shape[1:]) for node in (*session.get_inputs(), *session.get_outputs())]
    shapes = {INPUT_NAME: [NUM_SAMPLES], SCORES_NAME: [len(LABELS)], DIGIT_NAME: []}
    if nodes != [(name, "tensor(float)", shape) for name, shape in shapes.items()]:
        shown = "; ".join(f"{name} {kind} ({', '.join(['N', *map(str, rest)])})" for name, kind, rest in nodes)
        raise ModelError(
            f"{file} takes and gives {shown}: expected {INPUT_NAME} (N, {NUM_SAMPLES}), {SCORES_NAME} "
            f"(N, {len(LABELS)}) and {DIGIT_NAME} (N), all float"
        )


def softmax(scores: Floats) -> Floats:
    """(N, C) scores -> (N, C) probabilities."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _has_sound(waveforms: Floats) -> NDArray[np.bool_]:
    """(N,) whether (N, T) clips are not silent. Raises NonFiniteAudioError for NaN or too loud samples."""
    low, high = waveforms.min(axis=1), waveforms.max(axis=1)
    bounded = (low >= -LOUDEST) & (high <= LOUDEST)  # also false for NaN
    if not bounded.all():
        row = int(np.argmin(bounded))
        raise NonFiniteAudioError(
            f"clip {row} of {len(waveforms)} has samples from {low[row]:.3g} to {high[row]:.3g}: expected numbers "
            f"around [-1, 1], {LOUDEST:g} at most"
        )
    has_sound: NDArray[np.bool_] = high - low >= FAINTEST
    return has_sound


def _file_name(source: Any, position: int) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    return str(getattr(source, "name", f"item {position}"))
