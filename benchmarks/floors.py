"""Accuracy of the default recipe: every protocol with its floor, size, time and memory; means of several seeds.

    python benchmarks/floors.py --seeds 0 1 2 --work FOLDER [--loso] [--score-strangers] [--update-docs]

Each seed is one whole run of ml_training/train.py in a process of its own, on FSDD's official split
($DIGIT_DATA_DIR); a seed whose run is finished in --work is not trained again. evaluate.py's protocols then score the
exported models: the official test, and iitg_digits with noise/train from $DIGIT_CORPORA_DIR, which no training sees.
--loso also trains without each speaker in turn, and continues where it was stopped. `strangers` with noise/eval are
evaluation only: they are scored with --score-strangers alone, and each scoring adds a line to docs/strangers_scored.md.
Further flags go to train.py. --update-docs writes docs/results, the page docs/results.md made of them, and the table in
README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from digit_detector.labels import PIPELINES
from ml_training.config import TrainConfig
from ml_training.evaluation.command import Request, evaluate
from ml_training.evaluation.protocols import CALIBRATION, LOSO, NOISE, OFFICIAL, REJECTION
from ml_training.evaluation.records import PLOTS, SCORING_LOG
from ml_training.evaluation.records import update_docs as write_page
from ml_training.report.tables import short
from ml_training.results import UNSEEN_SPEAKERS, ProtocolResult

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"
SNR_DB = 5.0
WITH_FOLDER = (UNSEEN_SPEAKERS, NOISE, CALIBRATION, REJECTION)
DEVELOPMENT = {"digits": "iitg_digits", "words": "words/train", "sentences": "speech/tune", "noise": "noise/train"}
EVALUATION = {"digits": "strangers", "words": "words/eval", "sentences": "speech/eval", "noise": "noise/eval"}
SHOWN = ("loso_*.png", "noise_*_recorded.png", "noise_*_white.png", "calibration_*.png", "rejection_*.png")


class Row:
    """A line of the table: its title, floors by pipeline, decimals, and whether the floor is a maximum."""

    def __init__(self, title: str, floors: tuple[float, float, float] | None, digits: int, most: bool = False) -> None:
        self.title, self.digits, self.most = title, digits, most
        self.floors = dict(zip(PIPELINES, floors, strict=True)) if floors else {}

    def cell(self, pipeline: str, value: float) -> str:
        """The figure, its floor, and a mark where it is missed."""
        text = f"{value:.{self.digits}f}"
        if pipeline not in self.floors:
            return text
        floor = self.floors[pipeline]
        missed = value > floor if self.most else value < floor
        return f"{text} ({floor:g})" + (" **missed**" if missed else "")


ROWS = {
    "official errors": Row("FSDD official test, errors of 300", (3, 1, 2), 2, most=True),
    "loso %": Row("one speaker of FSDD left out, mean of six, %", (76, 91, 86), 1),
    "iitg_digits %": Row("iitg_digits (2 Indian English speakers, 700 clips), %", (80, 90, 85), 1),
    "iitg_digits 5 dB %": Row("iitg_digits in recorded noise (noise/train) at 5 dB, %", None, 1),
    "iitg_digits ECE %": Row("calibration error on iitg_digits, %", None, 1),
    "strangers %": Row("strangers (84 contributors of Speech Commands, 203 clips), %", (83, 92, 88), 1),
    "strangers 5 dB %": Row("strangers in recorded noise (noise/eval) at 5 dB, %", (58, 76, 72), 1),
    "strangers ECE %": Row("calibration error on strangers, %", (6, 5, 5), 1, most=True),
    "strangers words 95%": Row("other words of strangers that pass where 95 % of digits do, %", None, 1),
    "strangers noise 95%": Row("seconds of noise (noise/eval) that pass there, %", None, 1),
    "model MB": Row("model.onnx, MB", (0.6, 0.6, 0.8), 2, most=True),
    "train s": Row("training, seconds", None, 0),
}


def train(seed: int, folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Train all pipelines with one seed in `folder`, unless it is done; returns seconds and peak memory in MB."""
    done = folder / "run.json"
    if done.exists():
        measured: dict[str, Any] = json.loads(done.read_text())
        if measured.get("arguments", arguments) != arguments:
            sys.exit(f"{done} is of a training with {measured['arguments']}, not {arguments}: name another --work")
        return measured
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "ml_training/train.py"), "--seed", str(seed), *arguments]
    began = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"seed {seed}: train.py ended with {process.returncode}; see {folder / 'output.txt'}")
    measured = {"seconds": time.perf_counter() - began, "peak_mb": usage.ru_maxrss / 1000, "arguments": arguments}
    done.write_text(json.dumps(measured))
    return measured


def train_seeds(seeds: list[int], work: Path, arguments: list[str]) -> dict[str, Any]:
    """Train every seed; means of size and time by pipeline, medians of the whole command's minutes and memory."""
    runs = [train(seed, work / f"seed{seed}", arguments) for seed in seeds]
    figures: dict[str, Any] = {"model MB": {}, "train s": {}}
    for pipeline in PIPELINES:
        summaries = [load_summary(work / f"seed{seed}", pipeline) for seed in seeds]
        figures["model MB"][pipeline] = statistics.mean(summary["model_bytes"] / 1e6 for summary in summaries)
        figures["train s"][pipeline] = statistics.mean(summary["train_seconds"] for summary in summaries)
    figures["minutes"] = statistics.median(run["seconds"] / 60 for run in runs)
    figures["peak MB"] = statistics.median(run["peak_mb"] for run in runs)
    return figures


def load_summary(folder: Path, pipeline: str) -> dict[str, Any]:
    """The newest metrics summary of a run: one that failed in a later pipeline left its own."""
    path = max((folder / "train_logs").glob(f"metrics_summary_{pipeline}_*.json"))
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def run_protocols(arguments: argparse.Namespace, models: list[str]) -> Iterator[ProtocolResult]:
    """The result of every protocol that the flags name."""
    work, output = arguments.work, str(arguments.work / "results")
    shared = Path(os.environ["DIGIT_CORPORA_DIR"])
    config = TrainConfig(dataset="fsdd", log_dir=str(work / "loso"))

    def run(*names: str, **more: Any) -> tuple[ProtocolResult, ...]:
        request = Request(names, config, models_dirs=tuple(models), seeds=tuple(arguments.seeds), output=output, **more)
        return evaluate(request, report=lambda line: print(line, file=sys.stderr, flush=True)).results

    yield from run(OFFICIAL)
    if arguments.loso:
        yield from run(LOSO)
    yield from run(*WITH_FOLDER, **folders_of(shared, DEVELOPMENT))
    if arguments.score_strangers:
        yield from run(*WITH_FOLDER, **folders_of(shared, EVALUATION), log_scoring=str(DOCS / SCORING_LOG))


def folders_of(shared: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """The fields of Request that name the folders of digits, noise and clips without a digit."""
    folders = {kind: str(shared / name) for kind, name in names.items()}
    digits = folders.pop("digits")
    return {"folders": (digits,), "noise_dir": folders["noise"], "others": tuple(folders.items())}


def figures_of(result: ProtocolResult) -> dict[str, dict[str, float]]:
    """The rows that a result fills: name -> pipeline -> mean over seeds."""
    rows: dict[str, dict[str, list[float]]] = {}

    def add(name: str, pipeline: str, value: float) -> None:
        rows.setdefault(name, {}).setdefault(pipeline, []).append(value)

    for score in result.scores:
        if result.protocol == OFFICIAL:
            add("official errors", score.pipeline, score.all.clips - score.all.right)
        elif result.protocol == UNSEEN_SPEAKERS:
            add(f"{result.data} %", score.pipeline, 100 * score.all.accuracy)
        elif result.protocol == LOSO:
            for count in score.by_speaker.values():
                add("loso %", score.pipeline, 100 * count.accuracy)
    for rejection in result.rejections:
        for threshold, count in rejection.accepted.items():
            add(f"{result.data} {rejection.kind} {threshold}", rejection.pipeline, 100 * count.accuracy)
    for curve in result.curves:
        for point in curve.points:
            if (curve.kind, point.severity) == ("recorded", SNR_DB):
                add(f"{result.data} {SNR_DB:g} dB %", curve.pipeline, 100 * point.count.accuracy)
    for reliability in result.reliability:
        if reliability.when == "after":
            add(f"{result.data} ECE %", reliability.pipeline, 100 * reliability.ece)
    return {name: {p: statistics.mean(values) for p, values in row.items()} for name, row in rows.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--loso", action="store_true", help="leave each speaker out, too (eighteen trainings a seed)")
    parser.add_argument("--score-strangers", action="store_true", help="score strangers once, and log it")
    parser.add_argument("--update-docs", action="store_true", help="write docs/results, docs/results.md and README.md")
    arguments, extra = parser.parse_known_args()
    if not os.environ.get("DIGIT_CORPORA_DIR"):  # before hours of training
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits and noise")
    arguments.work = arguments.work.resolve()
    figures = train_seeds(arguments.seeds, arguments.work, extra)
    commits: set[str] = set()
    for result in run_protocols(arguments, [str(arguments.work / f"seed{s}" / "models") for s in arguments.seeds]):
        rows = figures_of(result)
        print(json.dumps(rows), flush=True)
        figures |= rows
        commits |= {short(card.git_commit) for card in result.models}
    table = markdown(figures, arguments.seeds, sorted(commits))
    print(f"\n{table}")
    if arguments.update_docs:
        update_docs(arguments.work / "results")
        put_into_readme(BEGIN, table, END)
    return 0


def update_docs(output: Path, part: str = "") -> None:
    """Copy results and some plots to docs/results or a `part` of it, and write docs/results.md."""
    into = DOCS / "results" / part
    (into / PLOTS).mkdir(parents=True, exist_ok=True)
    for path in output.glob("*.json"):
        shutil.copy(path, into)
    for pattern in SHOWN:
        for path in (output / PLOTS).glob(pattern):
            shutil.copy(path, into / PLOTS)
    write_page(DOCS / "results", DOCS / "results.md")


def put_into_readme(begin: str, table: str, end: str) -> None:
    """Replace the text between two marks in README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    README.write_text(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}", encoding="utf-8")


def markdown(figures: dict[str, Any], seeds: list[int], commits: list[str]) -> str:
    """The figures as a table; `commits` are those of the trainings."""
    lines = [
        f"Mean of seeds {', '.join(map(str, seeds))}, commit {', '.join(commits)}, {datetime.now(UTC):%Y-%m-%d}; "
        "the floor in brackets.",
        "",
        f"| | {' | '.join(PIPELINES)} |",
        f"|---|{'---|' * len(PIPELINES)}",
    ]
    for name, row in ROWS.items():
        if name in figures:
            lines.append(f"| {row.title} | {' | '.join(row.cell(p, figures[name][p]) for p in PIPELINES)} |")
    lines += [
        "",
        f"The whole training took {figures['minutes']:.1f} minutes with one thread, and {figures['peak MB']:.0f} MB of "
        "memory at its peak.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
