"""What `make train` reaches: errors, accuracy on strangers, size, time and memory, median of several seeds.

    python benchmarks/floors.py --seeds 0 1 2 --work FOLDER [--score-strangers] [--update-readme]

Each seed is one whole run of ml_training/train.py in a process of its own, on FSDD's official split
($DIGIT_DATA_DIR); a seed whose run is finished in --work is not trained again. The exported models
then answer iitg_digits from $DIGIT_CORPORA_DIR, which no training sees. `strangers` is evaluation
only: it is scored when asked for, and every scoring adds a line to docs/strangers_scored.md.
Further flags go to train.py. --update-readme puts the table where README.md marks its place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from ml_training.config import PIPELINES, model_folder
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_folder
from ml_training.evaluation.records import SCORING_LOG, append_scoring
from ml_training.inference import MODEL_FILE, load_classifier

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "docs" / SCORING_LOG
README = ROOT / "README.md"
BEGIN, END = "<!-- floors:begin -->", "<!-- floors:end -->"
FLOORS: dict[str, dict[str, float]] = {  # from the first release's requirements: errors of 300, then per cent
    "official errors": dict(zip(PIPELINES, (5, 2, 4), strict=True)),
    "iitg_digits %": dict(zip(PIPELINES, (74.0, 84.0, 79.0), strict=True)),
    "strangers %": dict(zip(PIPELINES, (78.0, 88.0, 82.0), strict=True)),
}
TITLES = {
    "official errors": "FSDD official test, errors of 300",
    "iitg_digits %": "iitg_digits (2 Indian English speakers, 700 clips, never trained on), %",
    "strangers %": "strangers (84 contributors of Speech Commands, {strangers} clips, never trained on), %",
    "model MB": "model.onnx, MB",
    "train s": "training, seconds",
}


def train(seed: int, folder: Path, arguments: list[str]) -> dict[str, float]:
    """Train all pipelines with one seed in `folder`; returns seconds and peak memory in MB."""
    done = folder / "run.json"
    if done.exists():
        measured: dict[str, float] = json.loads(done.read_text())
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
    measured = {"seconds": time.perf_counter() - began, "peak_mb": peak[0]}
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


def accuracy(models: Path, pipeline: str, corpus: Corpus) -> float:
    """Per cent of a corpus that an exported model gets right."""
    classifier = load_classifier(models, pipeline)
    parts = np.array_split(corpus.waveforms, -(-len(corpus) // 100))
    heard = np.concatenate([classifier.probabilities(part).argmax(axis=1) for part in parts])
    return 100 * float((heard == corpus.labels).mean())


def measure(seed: int, folder: Path, arguments: list[str], corpora: dict[str, Corpus]) -> dict[str, Any]:
    """All figures of one seed: name -> pipeline -> value."""
    run = train(seed, folder, arguments)
    figures: dict[str, Any] = {"minutes": run["seconds"] / 60, "peak MB": run["peak_mb"]}
    figures["official errors"], figures["model MB"], figures["train s"] = {}, {}, {}
    for pipeline in PIPELINES:
        (summary,) = (folder / "train_logs").glob(f"metrics_summary_{pipeline}_*.json")
        values = json.loads(summary.read_text())
        figures["official errors"][pipeline] = values["test"]["errors"]
        figures["model MB"][pipeline] = values["model_bytes"] / 1e6
        figures["train s"][pipeline] = values["train_seconds"]
    for name, corpus in corpora.items():
        figures[f"{name} %"] = {p: accuracy(folder / "models", p, corpus) for p in PIPELINES}
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--score-strangers", action="store_true", help="score strangers once, and log it")
    parser.add_argument("--update-readme", action="store_true", help="put the table into README.md")
    arguments, extra = parser.parse_known_args()
    shared = Path(os.environ["DIGIT_CORPORA_DIR"])
    names = ["iitg_digits", *(["strangers"] if arguments.score_strangers else [])]
    corpora = {name: load_folder(shared / name) for name in names}
    rows = []
    for seed in arguments.seeds:
        rows.append(measure(seed, (arguments.work / f"seed{seed}").resolve(), extra, corpora))
        print(f"seed {seed}: {json.dumps(rows[-1])}", flush=True)
    table = markdown(rows, arguments.seeds, len(corpora.get("strangers", ())))
    print(f"\n{table}")
    if arguments.update_readme:
        text = README.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        README.write_text(f"{before}{BEGIN}\n{table}{END}{rest.split(END)[1]}", encoding="utf-8")
    if arguments.score_strangers:
        log_scoring(rows, arguments.seeds, arguments.work, len(corpora["strangers"]))
    return 0


def markdown(rows: list[dict[str, Any]], seeds: list[int], strangers: int) -> str:
    """The medians as a table, with what they were measured on and how."""
    commit, today = head(), datetime.now(UTC).strftime("%Y-%m-%d")
    lines = [
        f"Median of seeds {', '.join(map(str, seeds))}, commit {commit}, {today}: `python benchmarks/floors.py`.",
        "",
        f"| | {' | '.join(f'{p} (floor)' for p in PIPELINES)} |",
        f"|---|{'---|' * len(PIPELINES)}",
    ]
    for name in [key for key, value in rows[0].items() if isinstance(value, dict)]:
        medians = {p: statistics.median(row[name][p] for row in rows) for p in PIPELINES}
        digits = 0 if "errors" in name or name == "train s" else 2 if "MB" in name else 1
        floor = {p: f" ({FLOORS[name][p]:g})" if name in FLOORS else "" for p in PIPELINES}
        cells = [f"{medians[p]:.{digits}f}{floor[p]}" for p in PIPELINES]
        lines.append(f"| {TITLES[name].format(strangers=strangers)} | {' | '.join(cells)} |")
    minutes, peak = (statistics.median(row[key] for row in rows) for key in ("minutes", "peak MB"))
    lines += [
        "",
        f"The whole command took {minutes:.1f} minutes with one thread, and {peak:.0f} MB of memory at its peak.",
        "",
    ]
    return "\n".join(lines)


def head() -> str:
    """The short name of the commit at hand."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def log_scoring(rows: list[dict[str, Any]], seeds: list[int], work: Path, clips: int) -> None:
    """Add a line to the record of every look at `strangers`."""
    files = [model_folder(work / f"seed{seed}" / "models", p) / MODEL_FILE for p in PIPELINES for seed in seeds]
    append_scoring(
        LOG, protocol="strangers", recordings=f"strangers, {clips} clips", commit=head(), seeds=map(str, seeds),
        models=[hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
        figures={p: [row["strangers %"][p] / 100 for row in rows] for p in PIPELINES},
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
