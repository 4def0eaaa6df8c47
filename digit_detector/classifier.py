"""A trained pipeline as one ONNX file, and what it says of a recording. Never imports torch."""

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
    """One answer."""

    predicted_digit: int
    confidence: float  # probability of the predicted digit
    probabilities: list[float]  # ten, they sum to 1
    top3: list[DigitProbability]  # the most probable first
    is_digit: bool  # digit_score >= IS_DIGIT
    digit_score: float  # 0 to 1: how probable that is where digits and other sounds are equally frequent
    seconds: float  # length of the recording; of a longer one the second with most speech in it was looked at
    inference_ms: float  # from 8,000 samples to probabilities; reading and resampling are not in it
    model: str  # path of the file that answered


@final
class FilePrediction(Prediction):
    """One answer of a batch; inference_ms is this clip's share of its batch."""

    file: str


@final
class FileError(TypedDict):
    """Why one file of a batch has no answer."""

    file: str
    error: str


class Benchmark(TypedDict):
    """Speed of a model on this machine, one clip at a time unless said otherwise; times in ms."""

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
    """A trained pipeline, ready to answer. Holds no state between calls: threads may share one."""

    def __init__(self, session: Any, model_file: Path, metadata: dict[str, str], threads: int) -> None:
        self.model_file = model_file
        self.metadata = metadata  # see digit_detector.model_file.KEYS
        self._session = session
        self._threads = threads

    def predict(self, source: Source, sample_rate: int | None = None, encoding: str | None = None) -> Prediction:
        """The digit said in `source`: a path, the bytes of a file, a binary file object or an array.

        `sample_rate` (Hz) and `encoding` are load_audio's, of arrays and of files without a header. Raises an
        AudioError that says what is wrong with the audio; digital silence holds no digit, which is no error.
        """
        samples, seconds = load_clip(source, sample_rate, encoding)
        started = time.perf_counter()
        (probabilities,), (digit_score,) = self.predict_proba(samples[None])
        return self._answer(probabilities, digit_score, 1e3 * (time.perf_counter() - started), seconds)

    def batch_predict(
        self,
        files: Iterable[Source],
        batch_size: int = 32,
        *,
        sample_rate: int | None = None,
        encoding: str | None = None,
    ) -> list[FilePrediction | FileError]:
        """One entry for each of `files`, in their order; `batch_size` of them go through the model at once.

        `sample_rate` and `encoding` are as in `predict`, for all of them. A file that cannot be read
        gives {"file": ..., "error": why} and takes no other with it.
        """
        if isinstance(files, (str, bytes, os.PathLike)):
            raise ConfigError([f"files: expected a list of files, got one: write [{files!r}]"], "batch_predict")
        if batch_size < 1:
            raise ConfigError([f"batch_size: expected 1 or more, got {batch_size}"], "batch_predict")
        entries: list[FilePrediction | FileError] = []
        waiting = enumerate(files)
        while group := list(islice(waiting, batch_size)):
            entries += self._predict_group(group, sample_rate, encoding)
        return entries

    def _predict_group(
        self, group: Sequence[tuple[int, Source]], sample_rate: int | None, encoding: str | None
    ) -> list[FilePrediction | FileError]:
        clips: list[Floats] = []
        seconds: list[float] = []
        faults: list[str | None] = []
        for _, source in group:
            try:
                samples, length = load_clip(source, sample_rate, encoding)
                clips.append(samples)
                seconds.append(length)
                faults.append(None)
            except DigitError as error:
                faults.append(str(error))
        started = time.perf_counter()
        heard = self.predict_proba(np.stack(clips)) if clips else ((), ())
        share = 1e3 * (time.perf_counter() - started) / max(1, len(clips))
        answers = zip(*heard, seconds, strict=True)
        entries: list[FilePrediction | FileError] = []
        for (position, source), fault in zip(group, faults, strict=True):
            file = _file_name(source, position)
            if fault is None:
                probabilities, digit_score, length = next(answers)
                answer = self._answer(probabilities, digit_score, share, length)
                entries.append(FilePrediction(file=file, **answer))
            else:
                entries.append(FileError(file=file, error=fault))
        return entries

    def probabilities(self, waveforms: Floats) -> Floats:
        """(N, 8000) float32 seconds as `load_audio` makes them -> (N, 10) probabilities."""
        return self.predict_proba(waveforms)[0]

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]:
        """(N, 8000) float32 seconds as `load_audio` makes them -> (N, 10) probabilities and (N,) digit scores.

        A silent one has a digit score of 0 and equal probabilities. Raises NonFiniteAudioError for samples that are
        none, so that a model whose scores are none is damaged.
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
                f"{self.model_file} is damaged: expected {len(LABELS)} finite scores a clip; export or train it again"
            )
        if not has_sound.all():  # what a model makes of silence means nothing
            logits = np.where(has_sound[:, None], logits, np.float32(0))
            digit_scores = np.where(has_sound, digit_scores, np.float32(0))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True), digit_scores

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

    def _answer(self, probabilities: Floats, digit_score: float, milliseconds: float, seconds: float) -> Prediction:
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
    """The trained `pipeline` of the folder `model_dir`, answering on `threads` CPU threads.

    The word "pretrained" stands for the models that come with the package, whatever folders lie around. `precision`
    "int8" takes the smaller file that `digits export` makes. `version` is the number of one of the versions in the
    folder; None is the promoted one.

    Raises ConfigError for a name that is no pipeline, ModelError for a folder, file or version that is
    missing, damaged or not ours.
    """
    names = trained_pipelines(model_dir)
    if pipeline not in names:
        told = f"{pipeline!r}{did_you_mean(str(pipeline), names)}"
        raise ConfigError([f"pipeline: expected one of {', '.join(names)}, got {told}"])
    if not 1 <= threads <= MAX_THREADS:
        raise ConfigError([f"threads: expected 1 to {MAX_THREADS}, got {threads}"])
    if precision not in FILE_PRECISIONS:
        raise ConfigError([f"precision: expected one of {', '.join(FILE_PRECISIONS)}, got {precision!r}"])
    if version is not None and (not isinstance(version, int) or version < 1):
        raise ConfigError([f"version: expected a whole number from 1 on, got {version!r}"])
    file = model_file(model_dir, pipeline, precision, version)
    content = _read_shipped(file) if model_dir == PRETRAINED else _read_model(file, model_dir, pipeline, version)
    session = open_session(content, file, threads)
    try:
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        check_metadata(metadata, pipeline, str(file))
        _check_shapes(session, file)
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is damaged: its names are no text; copy, export or train it again") from error
    if not is_intact(content, metadata):
        raise ModelError(f"{file} is damaged: its checksum is not that of its export; copy, export or train it again")
    classifier = DigitClassifier(session, file, metadata, threads)
    classifier.probabilities(np.linspace(-0.1, 0.1, NUM_SAMPLES, dtype=np.float32)[None])  # a damaged graph fails now
    return classifier


def model_file(model_dir: str | Path, pipeline: str, precision: str = FP32, version: int | None = None) -> Path:
    """Where a pipeline's model lies; see load_classifier."""
    if model_dir == PRETRAINED:
        if version is not None:
            raise ConfigError([f"version: the models that ship have none, got {version}: leave it out"])
        return Path(__file__).parent / PRETRAINED / onnx_name(pipeline, precision)
    folder, name = model_folder(model_dir, pipeline), onnx_name("model", precision)
    if version is None and not (folder / "versions").is_dir():
        return folder / name
    from digit_detector.versions import promoted_file, version_folder  # a quick start does without

    return promoted_file(folder, name) if version is None else version_folder(folder, version) / name


def _read_shipped(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        why = error.strerror or error
        raise ModelError(f"{file}, which comes with the package, cannot be read: {why}; install it again") from error


def _read_model(file: Path, model_dir: str | Path, pipeline: str, version: int | None) -> bytes:
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
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error


def _content(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return f"only {listed}" if names else "it is empty"


def _check_shapes(session: Any, file: Path) -> None:
    found = [(node.name, node.type, node.shape[1:]) for node in (*session.get_inputs(), *session.get_outputs())]
    shapes = {INPUT_NAME: [NUM_SAMPLES], SCORES_NAME: [len(LABELS)], DIGIT_NAME: []}
    expected = [(name, "tensor(float)", shape) for name, shape in shapes.items()]
    if found != expected:
        shown = "; ".join(f"{name} {kind} ({', '.join(['N', *map(str, rest)])})" for name, kind, rest in found)
        raise ModelError(
            f"{file} takes and gives {shown}: expected {INPUT_NAME} (N, {NUM_SAMPLES}), {SCORES_NAME} "
            f"(N, {len(LABELS)}) and {DIGIT_NAME} (N), all float"
        )


def _has_sound(waveforms: Floats) -> NDArray[np.bool_]:
    """Which of (N, T) are not silent. Raises NonFiniteAudioError for samples that no recording has."""
    low, high = waveforms.min(axis=1), waveforms.max(axis=1)
    bounded = (low >= -LOUDEST) & (high <= LOUDEST)  # NaN is not, either
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
