"""What the default recipe reaches: every protocol with its floor, size, time and memory; means of several seeds.

    python benchmarks/floors.py --seeds 0 1 2 --work FOLDER [--loso] [--score-strangers] [--update-docs]

Each seed is one whole run of ml_training/train.py in a process of its own, on FSDD's official split
($DIGIT_DATA_DIR); a seed whose run is finished in --work is not trained again. evaluate.py's protocols then score the
exported models: the official test, and iitg_digits with noise/train from $DIGIT_CORPORA_DIR, which no training sees.
--loso also trains without each speaker in turn, and goes on where it was stopped. `strangers` with noise/eval are
evaluation only: they are scored when asked for, and every scoring adds a line to docs/strangers_scored.md.
Further flags go to train.py. --update-docs writes the results to docs/results, the page docs/results.md made of them,
and puts the table where README.md marks its place.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from digit_detector.labels import PIPELINES
from ml_training.config import TrainConfig
from ml_training.evaluation.command import Request, evaluate
from ml_training.evaluation.protocols import CALIBRATION, LOSO, NOISE, OFFICIAL, REJECTION, STRANGERS
from ml_training.evaluation.records import PLOTS, SCORING_LOG
from ml_training.evaluation.records import update_docs as write_page
from ml_training.report.tables import short
from ml_training.results import ProtocolResult

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"
SNR_DB = 5.0
WITH_FOLDER = (STRANGERS, NOISE, CALIBRATION, REJECTION)
DEVELOPMENT = {"digits": "iitg_digits", "words": "words/train", "sentences": "speech/tune", "noise": "noise/train"}
EVALUATION = {"digits": "strangers", "words": "words/eval", "sentences": "speech/eval", "noise": "noise/eval"}
# Plots in docs/results.
SHOWN = ("loso_*.png", "noise_*_recorded.png", "noise_*_white.png", "calibration_*.png", "rejection_*.png")


class Row:
    """A line of the table: its title, floors by pipeline, digits behind the point, and which side is better."""

    def __init__(self, title: str, floors: tuple[float, float, float] | None, digits: int, most: bool = False) -> None:
        self.title, self.digits, self.most = title, digits, most
        self.floors = dict(zip(PIPELINES, floors, strict=True)) if floors else {}

    def cell(self, pipeline: str, value: float) -> str:
        """The figure, its floor behind it, and a warning where it is missed."""
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
    """Train all pipelines with one seed in `folder`; returns seconds and peak memory in MB."""
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
        peak = [0.0]
        watcher = threading.Thread(target=watch_memory, args=(process.pid, peak), daemon=True)
        watcher.start()
        code = process.wait()
    if code:
        sys.exit(f"seed {seed}: train.py left with {code}; see {folder / 'output.txt'}")
    measured = {"seconds": time.perf_counter() - began, "peak_mb": peak[0], "arguments": arguments}
    done.write_text(json.dumps(measured))
    return measured


def watch_memory(pid: int, peak: list[float]) -> None:
    """Keep the largest resident size of a process in peak[0], MB, as Linux counts it."""
    status = Path(f"/proc/{pid}/status")
    while status.exists():
        try:
            lines = status.read_text().splitlines()
        except OSError:
            return
        peak[0] = max([peak[0], *(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))])
        time.sleep(0.5)


def runs(seeds: list[int], work: Path, arguments: list[str]) -> dict[str, Any]:
    """Train every seed; means of size and time by pipeline, medians of the whole command's minutes and memory."""
    measured = [train(seed, work / f"seed{seed}", arguments) for seed in seeds]
    figures: dict[str, Any] = {"model MB": {}, "train s": {}}
    for pipeline in PIPELINES:
        found = [summary(work / f"seed{seed}", pipeline) for seed in seeds]
        figures["model MB"][pipeline] = statistics.mean(values["model_bytes"] / 1e6 for values in found)
        figures["train s"][pipeline] = statistics.mean(values["train_seconds"] for values in found)
    figures["minutes"] = statistics.median(run["seconds"] / 60 for run in measured)
    figures["peak MB"] = statistics.median(run["peak_mb"] for run in measured)
    return figures


def summary(folder: Path, pipeline: str) -> dict[str, Any]:
    """The metrics summary of a run: the newest, since one that failed in a later pipeline left its own."""
    path = max((folder / "train_logs").glob(f"metrics_summary_{pipeline}_*.json"))
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def protocols(arguments: argparse.Namespace, models: list[str]) -> Iterator[ProtocolResult]:
    """Every result that was asked for."""
    work, output = arguments.work, str(arguments.work / "results")
    shared = Path(os.environ["DIGIT_CORPORA_DIR"])
    config = TrainConfig(dataset="fsdd", log_dir=str(work / "loso"))

    def request(*names: str, **more: Any) -> tuple[ProtocolResult, ...]:
        asked = Request(names, config, models_dirs=tuple(models), seeds=tuple(arguments.seeds), output=output, **more)
        return evaluate(asked, report=lambda line: print(line, file=sys.stderr, flush=True)).results

    yield from request(OFFICIAL)
    if arguments.loso:
        yield from request(LOSO)
    yield from request(*WITH_FOLDER, **folders_of(shared, DEVELOPMENT))
    if arguments.score_strangers:
        yield from request(*WITH_FOLDER, **folders_of(shared, EVALUATION), log_scoring=str(DOCS / SCORING_LOG))


def folders_of(shared: Path, names: Mapping[str, str]) -> dict[str, Any]:
    """What evaluate.py's request calls the folders of digits and of everything else."""
    there = {kind: str(shared / name) for kind, name in names.items()}
    digits = there.pop("digits")
    return {"folders": (digits,), "noise_dir": there["noise"], "others": tuple(there.items())}


def figures_of(result: ProtocolResult) -> dict[str, dict[str, float]]:
    """The rows that a result fills: name -> pipeline -> mean over seeds."""
    right = {p: [s.all for s in result.scores if s.pipeline == p] for p in PIPELINES}
    if result.protocol == OFFICIAL:
        return {"official errors": {p: statistics.mean(c.clips - c.right for c in found) for p, found in right.items()}}
    if result.protocol == LOSO:
        each = {p: [c.right / c.clips for s in result.scores if s.pipeline == p for c in s.by_speaker.values()]
                for p in PIPELINES}  # fmt: skip
        return {"loso %": {p: 100 * statistics.mean(found) for p, found in each.items()}}
    if result.protocol == REJECTION:
        passed: dict[str, dict[str, list[float]]] = {}
        for one in result.rejections:
            for threshold, count in one.accepted.items():
                row = passed.setdefault(f"{result.data} {one.kind} {threshold}", {})
                row.setdefault(one.pipeline, []).append(100 * count.accuracy)
        return {name: {p: statistics.mean(found) for p, found in row.items()} for name, row in passed.items()}
    if result.protocol == STRANGERS:
        return {f"{result.data} %": {p: 100 * statistics.mean(c.right / c.clips for c in f) for p, f in right.items()}}
    if result.protocol == NOISE:
        at = {p: [point.count for c in result.curves if (c.kind, c.pipeline) == ("recorded", p) for point in c.points
                  if point.severity == SNR_DB] for p in PIPELINES}  # fmt: skip
        name = f"{result.data} {SNR_DB:g} dB %"
        return {name: {p: 100 * statistics.mean(c.right / c.clips for c in found) for p, found in at.items()}}
    after = [r for r in result.reliability if r.when == "after"]
    means = {p: 100 * statistics.mean(r.ece for r in after if r.pipeline == p) for p in PIPELINES}
    return {f"{result.data} ECE %": means}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--loso", action="store_true", help="leave each speaker out, too (eighteen trainings a seed)")
    parser.add_argument("--score-strangers", action="store_true", help="score strangers once, and log it")
    parser.add_argument("--update-docs", action="store_true", help="write docs/results, docs/results.md and README.md")
    arguments, extra = parser.parse_known_args()
    if not os.environ.get("DIGIT_CORPORA_DIR"):  # said before hours of training, not after
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits and noise")
    arguments.work = arguments.work.resolve()
    figures = runs(arguments.seeds, arguments.work, extra)
    commits: set[str] = set()
    for result in protocols(arguments, [str(arguments.work / f"seed{s}" / "models") for s in arguments.seeds]):
        found = figures_of(result)
        print(json.dumps(found), flush=True)
        figures |= found
        commits |= {short(card.git_commit) for card in result.models}
    table = markdown(figures, arguments.seeds, sorted(commits))
    print(f"\n{table}")
    if arguments.update_docs:
        update_docs(arguments.work / "results")
        put_into_readme(BEGIN, table, END)
    return 0


def update_docs(found: Path, part: str = "") -> None:
    """Copy results and the plots that tell most to docs/results or a `part` of it, and write docs/results.md anew."""
    into = DOCS / "results" / part
    (into / PLOTS).mkdir(parents=True, exist_ok=True)
    for path in found.glob("*.json"):
        shutil.copy(path, into)
    for pattern in SHOWN:
        for path in (found / PLOTS).glob(pattern):
            shutil.copy(path, into / PLOTS)
    write_page(DOCS / "results", DOCS / "results.md")


def put_into_readme(begin: str, table: str, end: str) -> None:
    """Replace what stands between two marks in README.md."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    README.write_text(f"{before}{begin}\n{table}{end}{rest.split(end)[1]}", encoding="utf-8")


def markdown(figures: dict[str, Any], seeds: list[int], commits: list[str]) -> str:
    """The figures as a table, with what they were measured on and how; `commits` are those that trained."""
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
