"""Measure exported models: latency, throughput, cold start, peak memory, size, and accuracy on recordings."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ml_training
from digit_detector.classifier import load_classifier, model_file
from digit_detector.errors import DigitError
from digit_detector.examples import EXAMPLES, example_recording
from digit_detector.labels import FILE_PRECISIONS, FP32, PIPELINES
from ml_training.results import UNSEEN_SPEAKERS, Count

BATCH_SIZES = (32, 256)
PACKAGES = ("numpy", "onnxruntime", "torch", "librosa", "scikit-learn", "pocketsphinx", "faster-whisper")
_ROOT = Path(ml_training.__file__).resolve().parents[1]
_MEMORY = """
import json, sys
from digit_detector.classifier import load_classifier
from ml_training.evaluation.speed import peak_memory_mb
load_classifier(sys.argv[1], sys.argv[2], precision=sys.argv[3]).benchmark_speed(64, 32)
print(json.dumps(peak_memory_mb()))
"""


class BenchmarkError(DigitError):
    """A measured process failed."""


@dataclass(frozen=True)
class ModelSpeed:
    """Figures of one model file."""

    pipeline: str
    precision: str
    file: str
    model_mb: float
    latency_ms: Mapping[str, float]  # p50, p95, p99 of one clip on one thread, from samples to prediction
    clips_per_second: Mapping[str, Mapping[str, float]]  # threads -> batch size -> throughput
    start_ms: float  # from the start of a process to its first prediction, median
    memory_mb: float | None  # peak of a process that predicts batches of 32; None where the system does not say
    accuracy: Mapping[str, Count] = field(default_factory=dict)  # by protocol

    @property
    def name(self) -> str:
        return self.pipeline if self.precision == FP32 else f"{self.pipeline}, {self.precision}"


def list_models(models_dir: str, pipelines: Sequence[str] = PIPELINES) -> list[tuple[str, str]]:
    """(pipeline, precision) of the exported files in a folder. Raises ModelError for a folder without any."""
    names = [(name, precision) for precision in FILE_PRECISIONS for name in pipelines]
    existing = [name for name in names if model_file(models_dir, *name).is_file()]
    if not existing:
        load_classifier(models_dir, pipelines[0])  # raises the error that names what is missing
    return existing


def measure_model(
    models_dir: str, pipeline: str, precision: str, samples: int = 1000, starts: int = 5, threads: Sequence[int] = (1,)
) -> ModelSpeed:
    """Time `samples` clips of noise one by one and in batches, and `starts` processes that predict one recording.

    Raises ModelError for a model that does not load, BenchmarkError for a process that fails.
    """
    file = model_file(models_dir, pipeline, precision)
    latency: dict[str, float] = {}
    throughput: dict[str, dict[str, float]] = {}
    for count in threads:
        classifier = load_classifier(models_dir, pipeline, count, precision)
        speeds = [classifier.benchmark_speed(samples, size) for size in BATCH_SIZES]
        first = speeds[0]
        latency = latency or {"p50": first["p50_ms"], "p95": first["p95_ms"], "p99": first["p99_ms"]}
        batches = {str(speed["batch_size"]): speed["batch_throughput_per_second"] for speed in speeds}
        throughput[str(count)] = {"1": first["throughput_per_second"], **batches}
    start = start_command(models_dir, pipeline, precision, str(example_recording(EXAMPLES[0])))
    times = [run_once(start)[0] for _ in range(starts + 1)][1:]  # the first reads from disk
    _, output = run_once([sys.executable, "-P", "-c", _MEMORY, models_dir, pipeline, precision])
    return ModelSpeed(
        pipeline, precision, str(file), file.stat().st_size / 1e6, latency, throughput, statistics.median(times),
        json.loads(output),
    )  # fmt: skip


def score_models(
    models_dir: str, names: Sequence[tuple[str, str]], data_dir: str | None, folder: str | None, log: Path | None = None
) -> dict[str, list[Count]]:
    """Protocol -> accuracy of each model of `names`: on FSDD's official test part and on labelled clips of a folder.

    `log` gets a line for the folder, as in `digits evaluate`. Raises DataError for recordings that cannot be read or
    that a model was trained on.
    """
    from ml_training.config import TrainConfig
    from ml_training.data.dataset_loader import load_corpus, load_folder
    from ml_training.evaluation import protocols
    from ml_training.evaluation.records import log_scoring

    models = [
        model for pipeline, precision in names
        for model in protocols.load_models([models_dir], pipeline, precision=precision)
    ]  # fmt: skip
    results = {}
    if data_dir is not None:
        clips = protocols.official_part(load_corpus(TrainConfig(dataset="fsdd", data_dir=data_dir)))
        results[protocols.OFFICIAL] = protocols.score_official(models, clips)
    if folder is not None:
        clips = protocols.TestClips(load_folder(Path(folder)), official=False)
        results[UNSEEN_SPEAKERS] = protocols.score_unseen_speakers(models, clips)
        if log is not None:
            log_scoring(log, results[UNSEEN_SPEAKERS])
    return {name: [score.all for score in result.scores] for name, result in results.items()}


def start_command(models_dir: str, pipeline: str, precision: str, file: str) -> list[str]:
    """The command that predicts `file` once."""
    flags = ["--model_dir", models_dir, "--pipeline", pipeline, "--precision", precision, "--audio", file]
    return [sys.executable, "-P", "-m", "ml_training.inference", *flags]


def run_once(command: Sequence[str]) -> tuple[float, str]:
    """Run a process to its end: milliseconds and output. Raises BenchmarkError when it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    milliseconds = 1e3 * (time.perf_counter() - began)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(f"{' '.join(command[:4])} ... ended with exit code {done.returncode}: {last}")
    return milliseconds, done.stdout


def child_environment() -> dict[str, str]:
    """The environment of measured processes: this checkout, compiled; one thread for numerical libraries."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    # Installed packages are compiled; a checkout is by the first run, even where that was turned off.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, **dict.fromkeys(threads, "1"), "PYTHONPATH": path}


def peak_memory_mb() -> float | None:
    """Largest resident size of this process so far, MB; None on Windows."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the parent process there
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    try:
        import resource
    except ImportError:
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / (1e6 if sys.platform == "darwin" else 1e3)


def machine() -> dict[str, str]:
    """System, Python, processor, cores and versions of the packages that compute."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    described = {
        "system": platform.platform(), "python": platform.python_version(), "cores": str(os.cpu_count()),
        "processor": models[0] if models else platform.processor() or platform.machine(),
    }  # fmt: skip
    for name in PACKAGES:
        try:
            described[name] = version(name)
        except PackageNotFoundError:
            continue
    return described
