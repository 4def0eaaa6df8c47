"""Contenders on the same clips, in turn: accuracy, time for one and for many, start, memory, size.

Every contender lives in a process of its own and works only while the others wait. Times are taken in rounds, so that
a busy minute of the machine slows all of them, and beside a fixed matrix product that says how fast the machine was.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

import ml_training
from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import DigitError
from digit_detector.model_file import git_commit
from ml_training.evaluation.contenders import Contender, contenders
from ml_training.results import Count, Floats
from ml_training.utils.temporary import temporary_folder

YARDSTICK = 512  # rows and columns of the product of two float32 matrices that tells the machine's speed
YARDSTICK_MS = 4.0  # what it takes on one thread of the machine that latencies are scaled to
GROWTH = (1, 10, 100, 1_000, 10_000, 100_000)
PACKAGES = ("numpy", "onnxruntime", "torch", "librosa", "scikit-learn", "pocketsphinx", "faster-whisper")
_ROOT = Path(ml_training.__file__).resolve().parents[1]
_FILES = 50  # recordings that are timed as files

Report = Callable[[str], None]


class BenchmarkError(DigitError):
    """A contender that failed, or a process of one that died."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 10
    singles: int = 50  # clips a round
    seconds: float = 20.0  # no part of a round, and no step of the growth, is begun that would take longer
    starts: int = 7
    threads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Measured:
    """What was found about one contender; milliseconds and megabytes."""

    name: str
    title: str
    against: str | None
    model_mb: float
    accuracy: Mapping[str, Count]  # protocol -> clips right
    one_ms: Mapping[str, float]  # p50, p95, p99 from samples to an answer
    file_ms: Mapping[str, float]  # the same from the bytes of a WAV file
    many: Mapping[str, Mapping[str, float]]  # threads -> clips -> clips a second
    memory_mb: float
    start_ms: float  # from the start of a process to its first answer


@dataclass(frozen=True)
class BenchmarkResult:
    """Everything that was measured and where; its JSON is the whole of it."""

    contenders: tuple[Measured, ...]
    skipped: Mapping[str, str]  # name -> why
    yardstick_ms: float  # median of all rounds
    yardsticks_ms: tuple[float, ...]
    imports_ms: float  # from the start of a process until numpy and onnxruntime are imported
    machine: Mapping[str, str]
    clips: Mapping[str, str]  # protocol -> what was heard
    plan: Plan
    version: str = ml_training.__version__
    git_commit: str = field(default_factory=git_commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def scaled(self, milliseconds: float) -> float:
        """A time as it would be where the yardstick takes YARDSTICK_MS."""
        return milliseconds * YARDSTICK_MS / self.yardstick_ms

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchmarkResult:
        """The result that `to_dict` wrote. Raises KeyError or TypeError for anything else."""
        found = tuple(
            Measured(**{**m, "accuracy": {name: Count(**count) for name, count in m["accuracy"].items()}})
            for m in values["contenders"]
        )
        plan = Plan(**{**values["plan"], "threads": tuple(values["plan"]["threads"])})
        return cls(**{**values, "contenders": found, "plan": plan, "yardsticks_ms": tuple(values["yardsticks_ms"])})


@dataclass(frozen=True)
class Heard:
    """The clips of one protocol as contenders of both rates hear them, and what was said."""

    clips: Mapping[int, Floats]  # rate -> (N, T), words in the middle
    labels: Sequence[int]
    description: str


def measure(
    protocols: Mapping[str, Heard],
    names: Sequence[str],
    models_dir: str,
    training: Path | None,
    plan: Plan = Plan(),
    report: Report = lambda _: None,
) -> BenchmarkResult:
    """Measure the contenders named, on the clips of each protocol; times are taken on those of the first.

    Who lacks a package, or fails, is skipped by name. Raises BenchmarkError when nobody is left.
    """
    everybody, skipped = contenders(), {}
    for name in names:
        if missing := everybody[name].missing:
            skipped[name] = f"needs {', '.join(missing)}: pip install the [bench] extra"
            report(f"{name} is skipped: {skipped[name]}")
    chosen = [everybody[name] for name in names if name not in skipped]
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        files = _files(folder, next(iter(protocols.values())))
        paths = {name: _saved(folder, name, given) for name, given in protocols.items()}
        open_ones: dict[str, _Candidate] = {}
        for contender in chosen:
            try:
                process = stack.enter_context(_Process(contender, models_dir, training))
                found = _Candidate(contender, process, paths[next(iter(protocols))][contender.rate], files)
                found.open(protocols, paths)
                open_ones[contender.name] = found
                report(f"{contender.name}: " + ", ".join(
                    f"{name} {100 * count.accuracy:.1f} %" for name, count in found.accuracy.items()
                ))  # fmt: skip
            except BenchmarkError as error:
                skipped[contender.name] = str(error)
                report(f"{contender.name} is skipped: {error}")
        if not open_ones:
            raise BenchmarkError(f"nobody is left to measure: {'; '.join(f'{n}: {w}' for n, w in skipped.items())}")
        yardsticks = []
        for turn in range(plan.rounds):
            yardsticks.append(yardstick())
            for candidate in open_ones.values():
                candidate.round(turn, plan)
            report(f"round {turn + 1} of {plan.rounds}: the yardstick took {yardsticks[-1]:.2f} ms")
        for name, candidate in open_ones.items():
            candidate.grow(plan)
            report(f"{name}: {candidate.best():,.0f} clips a second")
        memory = {name: candidate.ask("memory")["megabytes"] for name, candidate in open_ones.items()}
        starts, imports = _starts(list(open_ones), files[0], models_dir, training, plan, report)
    return BenchmarkResult(
        contenders=tuple(
            Measured(
                c.contender.name, c.contender.title, c.contender.against, c.megabytes, c.accuracy,
                _quantiles(c.singles), _quantiles(c.from_files), c.many, memory[name], starts[name],
            )
            for name, c in open_ones.items()
        ),
        skipped=skipped, yardstick_ms=statistics.median(yardsticks), yardsticks_ms=tuple(yardsticks),
        imports_ms=imports, machine=machine(), clips={name: given.description for name, given in protocols.items()},
        plan=plan,
    )  # fmt: skip


def yardstick() -> float:
    """Milliseconds of the product of two 512 x 512 float32 matrices on one thread: the median of twenty.

    In a process of its own, because numpy decides on its threads when it is imported.
    """
    code = (
        "import numpy as n, time, statistics as s\n"
        f"a, b = n.random.default_rng(0).standard_normal((2, {YARDSTICK}, {YARDSTICK}), dtype=n.float32)\n"
        "def once():\n    t = time.perf_counter(); a @ b; return 1e3 * (time.perf_counter() - t)\n"
        "[once() for _ in range(5)]; print(s.median(once() for _ in range(20)))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=_one_thread(), capture_output=True, text=True, check=True)
    return float(done.stdout)


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    found = {"system": platform.platform(), "python": platform.python_version(), "cores": str(os.cpu_count())}
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    found["processor"] = models[0] if models else platform.processor() or platform.machine()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class _Process:
    """A contender's process, spoken to in lines of JSON."""

    def __init__(self, contender: Contender, models_dir: str, training: Path | None) -> None:
        command = [sys.executable, "-P", "-m", "ml_training.evaluation.benchmark_process", contender.name, models_dir]
        self.name, self.command = contender.name, command + ([str(training)] if training else [])

    def __enter__(self) -> _Process:
        self.errors = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=_one_thread() | {"PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.communicate()
        self.errors.close()

    def ask(self, do: str, **how: Any) -> dict[str, Any]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            self.child.stdin.write(json.dumps({"do": do, **how}) + "\n")
            self.child.stdin.flush()
            answer: dict[str, Any] = json.loads(self.child.stdout.readline())
        except (OSError, ValueError) as error:
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no word"])[-1]
            raise BenchmarkError(f"the process of {self.name} ended ({self.child.poll()}): {last}") from error
        if "error" in answer:
            raise BenchmarkError(f"{self.name} failed to {do}: {answer['error']}")
        return answer


class _Candidate:
    """One contender while it is measured."""

    def __init__(self, contender: Contender, process: _Process, clips: str, files: Sequence[str]) -> None:
        self.contender, self.ask = contender, process.ask
        self.clips, self.files = clips, list(files)
        self.singles: list[float] = []
        self.from_files: list[float] = []
        self.accuracy: dict[str, Count] = {}
        self.many: dict[str, dict[str, float]] = {}
        self.megabytes = 0.0

    def open(self, protocols: Mapping[str, Heard], paths: Mapping[str, Mapping[int, str]]) -> None:
        self.megabytes = self.ask("open", threads=1)["megabytes"]
        for name, given in protocols.items():
            digits = self.ask("hear", clips=paths[name][self.contender.rate])["digits"]
            right = sum(digit == label for digit, label in zip(digits, given.labels, strict=True))
            self.accuracy[name] = Count(right, len(digits))
        self.ask("one", clips=self.clips, times=5, begin=0)
        self.ask("file", files=self.files, times=2, begin=0)

    def round(self, turn: int, plan: Plan) -> None:
        for what, place, found in (
            ("one", {"clips": self.clips}, self.singles), ("file", {"files": self.files}, self.from_files)
        ):  # fmt: skip
            slowest = statistics.median(found) / 1e3 if found else 0.0
            times = (
                plan.singles if slowest * plan.singles < plan.seconds / 4 else max(1, int(plan.seconds / 4 / slowest))
            )
            found += self.ask(what, times=times, begin=turn * plan.singles, **place)["ms"]

    def grow(self, plan: Plan) -> None:
        """More and more clips, until the next step would take too long."""
        for threads in plan.threads:
            self.ask("open", threads=threads)
            self.ask("many", clips=self.clips, count=64 if self.best() == 0 or self.best() > 50 else 1)  # warm
            speeds = self.many.setdefault(str(threads), {})
            for count in GROWTH:
                expected = count / next(reversed(speeds.values()), float("inf"))
                if expected > plan.seconds:
                    break
                seconds = self.ask("many", clips=self.clips, count=count)["seconds"]
                speeds[str(count)] = count / seconds

    def best(self) -> float:
        """Clips a second, at most."""
        return max((speed for speeds in self.many.values() for speed in speeds.values()), default=0.0)


def _saved(folder: Path, name: str, given: Heard) -> dict[int, str]:
    paths = {rate: str(folder / f"{name}_{rate}.npy") for rate in given.clips}
    for rate, clips in given.clips.items():
        np.save(paths[rate], clips)
    return paths


def _files(folder: Path, given: Heard) -> list[str]:
    """Some of the clips as 16-bit WAV files."""
    clips = given.clips[SAMPLE_RATE][:_FILES]
    paths = [str(folder / f"{number}.wav") for number in range(len(clips))]
    for path, clip in zip(paths, clips, strict=True):
        soundfile.write(path, clip, SAMPLE_RATE, subtype="PCM_16")
    return paths


def _starts(
    names: Sequence[str], file: str, models_dir: str, training: Path | None, plan: Plan, report: Report
) -> tuple[dict[str, float], float]:
    """Milliseconds from the start of a process to its first answer, and of one that only imports; medians, in turn."""
    imports = [sys.executable, "-c", "import numpy, onnxruntime"]
    commands = {name: _start(name, file, models_dir, training) for name in names}
    found: dict[str, list[float]] = {name: [] for name in (*commands, "")}
    # pip compiles what it installs; a checkout is compiled by the first run, also where that was turned off
    environment = {name: value for name, value in _one_thread().items() if name != "PYTHONDONTWRITEBYTECODE"}
    for turn in range(plan.starts + 1):
        for name, command in {"": imports, **commands}.items():
            if turn > 1 and found[name] and found[name][0] > 1e3 * plan.seconds / 4:
                continue  # it trains first: twice is enough
            began = time.perf_counter()
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise BenchmarkError(f"{name or 'python'} did not start: {done.stderr.strip().splitlines()[-1:]}")
            if turn:  # the first reads from disk
                found[name].append(1e3 * (time.perf_counter() - began))
    medians = {name: statistics.median(times) for name, times in found.items()}
    report(f"start: importing numpy and onnxruntime takes {medians['']:.0f} ms")
    return {name: medians[name] for name in names}, medians[""]


def _start(name: str, file: str, models_dir: str, training: Path | None) -> list[str]:
    ours = contenders()[name].ours
    if ours is not None:
        door, (pipeline, precision) = _ROOT / "ml_training" / "inference.py", ours
        flags = ["--model_dir", models_dir, "--pipeline", pipeline, "--precision", precision]
        return [sys.executable, str(door), *flags, "--audio", file]
    code = (
        f"import sys; sys.path.insert(0, {str(_ROOT)!r})\n"
        "from pathlib import Path\nfrom ml_training.evaluation.contenders import Place, contenders\n"
        f"place = Place({models_dir!r}, {f'Path({str(training)!r})' if training else None})\n"
        f"print(contenders()[{name!r}].open(place, 1).file(Path({file!r}).read_bytes()))"
    )
    return [sys.executable, "-c", code]


def _quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}


def _one_thread() -> dict[str, str]:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(names, "1")}
