"""Our models beside other recognisers on the same clips: accuracy, latency, throughput, start, memory, size.

    pip install -e ".[train,bench]"
    python benchmarks/peers.py [--folder CLIPS] [--data_dir FSDD] [--recognisers mfcc svm ...] [--output FOLDER]

Accuracy on FSDD's official test part, and on labelled clips of --folder. Each recogniser lives in a process of its own
and works while the others wait. Latencies are taken in rounds, so that a busy minute of the machine slows all of them,
beside a reference matrix product that tells how fast the machine was. A recogniser that lacks a package, or fails, is
skipped by name. --output takes benchmark.md, two plots and benchmark.json with every figure.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from recognisers import (
    Child,
    RecogniserSpec,
    Sources,
    open_recogniser,
    predict_digits,
    recognisers,
    time_batch,
    time_clips,
    time_files,
)

import ml_training
from digit_detector.audio import SAMPLE_RATE
from digit_detector.cli.parser import OneLineParser
from digit_detector.cli.program import program, require
from digit_detector.errors import ConfigError
from digit_detector.files import write_atomically
from digit_detector.labels import INT8, PIPELINES, PRETRAINED
from digit_detector.model_file import git_commit
from digit_detector.processors.baselines import WIDE
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.fsdd import recordings_folder
from ml_training.evaluation.protocols import (
    OFFICIAL,
    TestClips,
    load_models,
    new_result,
    official_part,
    refuse_known,
)
from ml_training.evaluation.records import log_scoring
from ml_training.evaluation.speed import (
    BenchmarkError,
    child_environment,
    machine,
    peak_memory_mb,
    run_once,
    start_command,
)
from ml_training.results import UNSEEN_SPEAKERS, Count, Floats, ModelScore
from ml_training.utils.temporary import temporary_folder

REFERENCE = 512  # rows and columns of the two float32 matrices whose product tells the machine's speed
REFERENCE_MS = 4.0  # what it takes on one thread of the machine that latencies are scaled to
BATCH_SIZES = (1, 10, 100, 1_000, 10_000, 100_000)
FILES = 50  # recordings that are timed as files
NAMES = ("benchmark.md", "benchmark.json")
PLOTS = {"benchmark_accuracy.png": "Accuracy against time", "benchmark_growth.png": "From one clip to 100,000"}


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    rounds: int = 10
    singles: int = 50  # clips a round
    seconds: float = 20.0  # no part of a round, and no batch size, is begun that would take longer
    starts: int = 7
    threads: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Clips:
    """Labelled clips at the rates of all recognisers."""

    waveforms: Mapping[int, Floats]  # rate -> (N, T), words in the middle
    labels: Sequence[int]
    description: str


@dataclass
class Figures:
    """Everything measured of one recogniser."""

    name: str
    title: str
    same_network: str | None
    model_mb: float = 0.0
    accuracy: dict[str, Count] = field(default_factory=dict)  # protocol -> clips right
    clip_ms: dict[str, float] = field(default_factory=dict)  # p50, p95, p99 from samples to an answer
    file_ms: dict[str, float] = field(default_factory=dict)  # the same from the bytes of a WAV file
    clips_per_second: dict[str, dict[str, float]] = field(default_factory=dict)  # threads -> batch size -> speed
    memory_mb: float | None = None
    start_ms: float = 0.0  # from the start of a process to its first answer


@dataclass(frozen=True)
class PeersResult:
    """Figures of all recognisers and the conditions they were measured under; written as JSON."""

    recognisers: tuple[Figures, ...]
    skipped: Mapping[str, str]  # name -> why
    reference_ms: tuple[float, ...]  # of each round
    imports_ms: float  # from the start of a process until numpy and onnxruntime are imported
    clips: Mapping[str, str]  # protocol -> description
    effort: Effort
    machine: Mapping[str, str] = field(default_factory=machine)
    version: str = ml_training.__version__
    git_commit: str = field(default_factory=git_commit)
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def scaled(self, milliseconds: float) -> float:
        """A time as it would be where the reference product takes REFERENCE_MS."""
        return milliseconds * REFERENCE_MS / statistics.median(self.reference_ms)


# --- measuring -----------------------------------------------------------------------------------


class Candidate:
    """One recogniser while it is measured."""

    def __init__(
        self, spec: RecogniserSpec, child: Child, sources: Sources, folder: Path, files: Sequence[str]
    ) -> None:
        self.spec, self.child, self.sources, self.folder, self.files = spec, child, sources, folder, files
        self.figures = Figures(spec.name, spec.title, spec.same_network)
        self.clip_ms: list[float] = []
        self.file_ms: list[float] = []

    def score(self, protocols: Mapping[str, Clips]) -> None:
        """Open it on one thread, score every clip, and warm up."""
        self.open(1)
        for name, clips in protocols.items():
            digits = self.child.call(predict_digits, self.path(name))
            right = sum(digit == label for digit, label in zip(digits, clips.labels, strict=True))
            self.figures.accuracy[name] = Count(right, len(digits))
        self.timed = self.path(next(iter(protocols)))
        self.child.call(time_clips, self.timed, 5, 0)
        self.child.call(time_files, self.files, 2, 0)

    def open(self, threads: int) -> None:
        self.figures.model_mb = self.child.call(open_recogniser, self.spec.name, self.sources, threads)

    def path(self, protocol: str) -> str:
        return str(self.folder / f"{protocol}_{self.spec.rate}.npy")

    def round(self, number: int, effort: Effort) -> None:
        """Time some single clips and files; fewer of them where they would take too long."""
        for work, source, times in ((time_clips, self.timed, self.clip_ms), (time_files, self.files, self.file_ms)):
            seconds = statistics.median(times) / 1e3 if times else 0.0
            fits = int(effort.seconds / 4 / seconds) if seconds else effort.singles
            times += self.child.call(work, source, max(1, min(effort.singles, fits)), number * effort.singles)

    def sweep(self, effort: Effort) -> None:
        """Time larger and larger batches, until the next would take too long."""
        for threads in effort.threads:
            self.open(threads)
            self.child.call(time_batch, self.timed, 1 if 0 < self.best() < 50 else 64)  # warm
            speeds = self.figures.clips_per_second.setdefault(str(threads), {})
            for count in BATCH_SIZES:
                if count / next(reversed(speeds.values()), float("inf")) > effort.seconds:
                    break
                speeds[str(count)] = count / self.child.call(time_batch, self.timed, count)

    def best(self) -> float:
        """Clips a second, at most."""
        speeds = self.figures.clips_per_second.values()
        return max((speed for batches in speeds for speed in batches.values()), default=0.0)

    def start(self) -> list[str]:
        """The command line of a process that opens it and answers one file."""
        if self.spec.exported is not None:
            return start_command(self.sources.models_dir, *self.spec.exported, self.files[0])
        training = self.sources.training and str(self.sources.training)
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path\nfrom recognisers import Sources, recognisers\n"
            f"sources = Sources({self.sources.models_dir!r}, {training!r} and Path({training!r}))\n"
            f"print(recognisers()[{self.spec.name!r}].open(sources, 1).file(Path({self.files[0]!r}).read_bytes()))"
        )
        return [sys.executable, "-P", "-c", code]


def measure(
    protocols: Mapping[str, Clips], names: Sequence[str], sources: Sources, effort: Effort = Effort()
) -> PeersResult:
    """Measure the recognisers named on the clips of each protocol; times are taken on those of the first.

    Raises BenchmarkError when every recogniser lacks a package or fails.
    """
    specs, skipped = recognisers(), {}
    with ExitStack() as stack:
        stack.enter_context(_measured_environment())
        folder = stack.enter_context(temporary_folder())
        for name, clips in protocols.items():
            for rate, waveforms in clips.waveforms.items():
                np.save(folder / f"{name}_{rate}.npy", waveforms)
        files = [str(folder / f"{number}.wav") for number in range(FILES)]
        files = files[: len(next(iter(protocols.values())).labels)]
        for path, clip in zip(files, next(iter(protocols.values())).waveforms[SAMPLE_RATE], strict=False):
            soundfile.write(path, clip, SAMPLE_RATE, subtype="PCM_16")
        candidates: list[Candidate] = []
        for name in names:
            try:
                if missing := specs[name].missing:
                    raise BenchmarkError(f"needs {', '.join(missing)}: pip install the [bench] extra")
                child = stack.enter_context(Child(name))
                candidate = Candidate(specs[name], child, sources, folder, files)
                candidate.score(protocols)
                candidates.append(candidate)
                scores = candidate.figures.accuracy.items()
                _report(f"{name}: " + ", ".join(f"{of} {100 * count.accuracy:.1f} %" for of, count in scores))
            except BenchmarkError as error:
                skipped[name] = str(error)
                _report(f"{name} is skipped: {error}")
        if not candidates:
            raise BenchmarkError("no recogniser is left: " + "; ".join(f"{n}: {why}" for n, why in skipped.items()))
        reference = []
        for number in range(effort.rounds):
            reference.append(reference_matmul())
            for candidate in candidates:
                candidate.round(number, effort)
            _report(f"round {number + 1} of {effort.rounds}: the reference product took {reference[-1]:.2f} ms")
        for candidate in candidates:
            candidate.sweep(effort)
            _report(f"{candidate.spec.name}: {candidate.best():,.0f} clips a second")
        imports_ms = _time_starts(candidates, effort)
        for candidate in candidates:
            candidate.figures.memory_mb = candidate.child.call(peak_memory_mb)
            candidate.figures.clip_ms = _quantiles(candidate.clip_ms)
            candidate.figures.file_ms = _quantiles(candidate.file_ms)
    return PeersResult(
        tuple(candidate.figures for candidate in candidates), skipped, tuple(reference), imports_ms,
        {name: clips.description for name, clips in protocols.items()}, effort,
    )  # fmt: skip


def reference_matmul() -> float:
    """Milliseconds of the product of two float32 matrices on one thread, median of twenty, in a process of its own."""
    code = (
        "import numpy as n, time, statistics as s\n"
        f"a, b = n.random.default_rng(0).standard_normal((2, {REFERENCE}, {REFERENCE}), dtype=n.float32)\n"
        "def once():\n    t = time.perf_counter(); a @ b; return 1e3 * (time.perf_counter() - t)\n"
        "[once() for _ in range(5)]; print(s.median(once() for _ in range(20)))"
    )
    return float(run_once([sys.executable, "-c", code])[1])


def _time_starts(candidates: Sequence[Candidate], effort: Effort) -> float:
    """Put the median start of each into its figures; returns that of a process that only imports, ms. In turn."""
    commands = [[sys.executable, "-c", "import numpy, onnxruntime"], *(candidate.start() for candidate in candidates)]
    times: list[list[float]] = [[] for _ in commands]
    for turn in range(effort.starts + 1):
        for command, found in zip(commands, times, strict=True):
            if turn > 1 and found[0] > 1e3 * effort.seconds / 4:
                continue  # it trains first: twice is enough
            milliseconds, _ = run_once(command)
            if turn:  # the first reads from disk
                found.append(milliseconds)
    imports, *starts = (statistics.median(found) for found in times)
    for candidate, start in zip(candidates, starts, strict=True):
        candidate.figures.start_ms = start
    return imports


@contextmanager
def _measured_environment() -> Iterator[None]:
    """Give the processes that are started meanwhile `child_environment`."""
    before = dict(os.environ)
    os.environ.update(child_environment())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _quantiles(milliseconds: Sequence[float]) -> dict[str, float]:
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


# --- clips ---------------------------------------------------------------------------------------


def at_both_rates(clips: TestClips, recordings: Sequence[Path] | None = None) -> Clips:
    """Clips at 8 and 16 kHz; the latter from the recordings, if given, of which the first second is taken."""
    corpus = clips.corpus
    if recordings is None:
        wide = soxr.resample(corpus.waveforms.T, SAMPLE_RATE, WIDE, quality="HQ").T
    else:
        wide = np.zeros((len(corpus), WIDE), dtype=np.float32)
        for row, path in zip(wide, recordings, strict=True):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            found = soxr.resample(samples.mean(axis=1), rate, WIDE, quality="HQ")[:WIDE]
            begin = (WIDE - len(found)) // 2
            row[begin : begin + len(found)] = found
    waveforms = {SAMPLE_RATE: corpus.waveforms, WIDE: np.ascontiguousarray(wide, dtype=np.float32)}
    return Clips(waveforms, [int(label) for label in corpus.labels], clips.description)


def files_of(corpus: Corpus, folder: Path) -> list[Path]:
    """Paths of the recordings of a corpus: in the folder, or in the one below it that published corpora have."""
    places = (folder, recordings_folder(folder), folder / "data")
    return [next(place / file for place in places if (place / file).is_file()) for file in corpus.files]


def benchmark(
    data_dir: str | None, names: Sequence[str], models_dir: str, folder: Path | None, effort: Effort, log: Path | None
) -> PeersResult:
    """Measure recognisers on FSDD's official test part and on the clips of `folder`.

    Raises DataError without FSDD or with clips that a model was trained on, ModelError without models.
    """
    models = [model for name in PIPELINES if name in names for model in load_models([models_dir], name)]
    config = TrainConfig(dataset="fsdd", data_dir=data_dir)
    test = {OFFICIAL: official_part(load_corpus(config, report=_report))}
    recordings: dict[str, list[Path]] = {}
    if folder is not None:
        test[UNSEEN_SPEAKERS] = TestClips(load_folder(folder), official=False)
        recordings[UNSEEN_SPEAKERS] = files_of(test[UNSEEN_SPEAKERS].corpus, folder)
    for clips in test.values():
        refuse_known(models, clips)
    protocols = {name: at_both_rates(clips, recordings.get(name)) for name, clips in test.items()}
    result = measure(protocols, names, Sources(models_dir, None if data_dir is None else Path(data_dir)), effort)
    if log is not None and folder is not None:
        scores = tuple(ModelScore(f.name, "", f.accuracy[UNSEEN_SPEAKERS], {}, {}) for f in result.recognisers)
        log_scoring(
            log, new_result("benchmark", "Our models beside others", test[UNSEEN_SPEAKERS], models, scores=scores)
        )
    return result


# --- the page ------------------------------------------------------------------------------------


def table(result: PeersResult) -> list[str]:
    """Rows of Markdown, one for each recogniser."""
    threads = [str(count) for count in result.effort.threads]
    heads = [
        *(f"{name}, %" for name in result.clips), "ms a clip, p50", "p95", "p99", "scaled p50", "from a file, p50",
        *(f"clips a second, {count} thread{'s' * (count != '1')}" for count in threads),
        "start, ms", "memory, MB", "model, MB", "times ours",
    ]  # fmt: skip
    rows = [f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    by_name = {figures.name: figures for figures in result.recognisers}
    for figures in result.recognisers:
        cells = [f"{100 * figures.accuracy[name].accuracy:.1f}" for name in result.clips]
        cells += [_ms(figures.clip_ms[q]) for q in ("p50", "p95", "p99")]
        cells += [_ms(result.scaled(figures.clip_ms["p50"])), _ms(figures.file_ms["p50"])]
        best = (max(figures.clips_per_second.get(count, {}).values(), default=float("nan")) for count in threads)
        cells += [*(f"{speed:,.0f}" for speed in best), f"{figures.start_ms:,.0f}"]
        cells += ["" if figures.memory_mb is None else f"{figures.memory_mb:,.0f}", f"{figures.model_mb:.2f}"]
        ours = by_name.get(figures.same_network or "")
        if ours is not None:
            clip, file = figures.clip_ms["p50"] / ours.clip_ms["p50"], figures.file_ms["p50"] / ours.file_ms["p50"]
        cells.append("" if ours is None else f"{clip:.1f} ({file:.1f} from a file)")
        rows.append(f"| {figures.title} | {' | '.join(cells)} |")
    return rows


def page(result: PeersResult) -> str:
    """The whole result as Markdown."""
    times = result.reference_ms
    made = f"version {result.version}; commit {result.git_commit[:12]}; {result.created[:16].replace('T', ' ')} UTC"
    return "\n".join([
        "# Benchmark", "",
        "All recognisers get the same clips, in turn, each in a process of its own; one thread unless stated. "
        f"Medians and percentiles of {result.effort.rounds} rounds. A product of two 512 x 512 float32 matrices on one "
        f"thread took {statistics.median(times):.2f} ms in the median ({min(times):.1f} to {max(times):.1f} in the "
        f"rounds); scaled: as if it took {REFERENCE_MS:g}. Importing numpy and onnxruntime took "
        f"{result.imports_ms:.0f} ms; start: from the start of a process to its first answer about a WAV file. Times "
        "ours: latency relative to the exported model with the same weights.", "",
        *table(result), "",
        *(f"- {name}: {clips}" for name, clips in result.clips.items()),
        *(f"- skipped: {name}, {why}" for name, why in result.skipped.items()), "",
        *(f"![{title}]({name})\n" for name, title in PLOTS.items()),
        "; ".join(f"{name} {value}" for name, value in result.machine.items()) + ".", "",
        f"Made with: `python benchmarks/peers.py`; {made}. [Every figure](benchmark.json).", "",
    ])  # fmt: skip


def write_result(result: PeersResult, folder: Path) -> Path:
    """Write JSON, plots and the page into `folder`; returns the page. Raises MissingExtraError, TrainingError."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAMES[1], json.dumps(asdict(result), indent=1).encode())
    for plot, name in zip((plot_accuracy, plot_batches), PLOTS, strict=True):
        plot(result, folder / name)
    write_atomically(folder / NAMES[0], page(result).encode())
    return folder / NAMES[0]


def plot_accuracy(result: PeersResult, path: Path) -> None:
    """Accuracy against milliseconds for one clip; the area of a dot is the size of the model."""
    from ml_training.utils.visualization import GRID, INK, MUTED, dress, head, new_figure, save

    width = 5.4 * len(result.clips) + 2.0
    figure = new_figure(width, 4.8)
    panels = figure.subplots(1, len(result.clips), squeeze=False)[0]
    for axes, name in zip(panels, result.clips, strict=True):
        for found in result.recognisers:
            low, high = found.accuracy[name].interval
            x, y = found.clip_ms["p50"], 100 * found.accuracy[name].accuracy
            colour, marker = _style(found)
            axes.plot([x, x], [100 * low, 100 * high], color=colour, lw=1, alpha=0.5)
            axes.scatter(x, y, s=30 + 12 * found.model_mb, color=colour, alpha=0.75, linewidths=0, marker=marker)
            axes.plot([], [], marker, color=colour, ms=6, label=found.name.replace("_", " "))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.margins(x=0.1)
        axes.set_xlabel("Milliseconds for one clip, one thread", color=MUTED)
        axes.grid(color=GRID, lw=0.8)
        dress(axes, f"{name}, % right")
    panels[-1].legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    head(figure, PLOTS[path.name] + "; the larger, the more megabytes")
    save(figure, path)


def plot_batches(result: PeersResult, path: Path) -> None:
    """Clips a second against the batch size, for each number of threads."""
    from ml_training.utils.visualization import GRID, INK, MUTED, dress, head, new_figure, save

    figure = new_figure(9.6, 4.8)
    axes = figure.subplots()
    styles = dict(zip(map(str, result.effort.threads), ("-", "--", ":", "-."), strict=False))
    for found in result.recognisers:
        for count, speeds in found.clips_per_second.items():
            label = found.name.replace("_", " ") if count == str(result.effort.threads[0]) else None
            colour, marker = _style(found)
            axes.plot([int(n) for n in speeds], list(speeds.values()), styles.get(count, "-"), color=colour,
                      marker=marker, ms=4, lw=1.6, label=label)  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("Clips given at once", color=MUTED)
    axes.grid(color=GRID, lw=0.8)
    dress(axes, "Clips a second")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="center left", bbox_to_anchor=(1.0, 0.5))
    lines = ", ".join(f"{style} {count} thread{'s' * (count != '1')}" for count, style in styles.items())
    head(figure, f"{PLOTS[path.name]}: {lines}")
    save(figure, path)


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:.2f}" if milliseconds < 10 else f"{milliseconds:,.0f}"


def _style(found: Figures) -> tuple[str, str]:
    """Colour of its pipeline, grey for others; marker of its kind."""
    from ml_training.utils.visualization import COLOURS, MUTED

    pipeline = next((name for name in PIPELINES if found.name.startswith(name)), None)
    colour = MUTED if pipeline is None else COLOURS[PIPELINES.index(pipeline)]
    if found.name in PIPELINES:
        return colour, "o"
    if found.name.endswith(INT8):
        return colour, "d"
    return colour, "s" if found.same_network else {"svm": "^", "pocketsphinx": "v"}.get(found.name, "P")


# --- the program ---------------------------------------------------------------------------------


@program
def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the flags name; returns the exit code."""
    flags = OneLineParser(description="Our models beside other recognisers on the same clips.")
    add = flags.add_argument
    add("--models_dir", "--model_dir", default=PRETRAINED, metavar="DIR", help="folder of our models")
    add("--data_dir", default=None, metavar="DIR", help="FSDD, as in training: its official test part is scored")
    add("--folder", type=Path, default=None, metavar="DIR", help="labelled clips that no model was trained on")
    add("--recognisers", "--contenders", nargs="+", default=list(recognisers()), metavar="NAME", help="(default: all)")
    add("--rounds", type=int, default=10, help="in which all have a turn")
    add("--singles", type=int, default=50, help="clips of a turn")
    add("--seconds", type=float, default=20.0, help="no step that would take longer is begun")
    add("--output", type=Path, default=Path("benchmark_results"), metavar="DIR", help="where page, plots and JSON go")
    add("--log_scoring", type=Path, default=None, metavar="FILE", help="log of looks at evaluation-only recordings")
    args = flags.parse_args(argv)
    names: dict[str, Any] = {name: getattr(args, name) for name in ("rounds", "singles", "seconds")}
    faults = [f"{name}: expected more than 0, got {value}" for name, value in names.items() if not value > 0]
    if unknown := [name for name in args.recognisers if name not in recognisers()]:
        faults.append(f"recognisers: expected some of {', '.join(recognisers())}, got {', '.join(unknown)}")
    if faults:
        raise ConfigError(faults, "the benchmark")
    require("the benchmark", ("torch", "matplotlib"))
    effort = Effort(**names)
    result = benchmark(args.data_dir, args.recognisers, args.models_dir, args.folder, effort, args.log_scoring)
    written = write_result(result, args.output)
    print("\n".join([*table(result), "", f"page, plots and JSON: {written.parent}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
