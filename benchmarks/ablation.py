"""What each thing is worth in training: mel_cnn with one group of effects taken away, or added, at a time.

    python benchmarks/ablation.py --work FOLDER [--seeds 0 1 2] [--rows NAME ...] [--update-docs]

A short recipe (--epochs, 12 by default), tested on two speakers of FSDD left out in turn and by iitg_digits, which a
model of all six speakers answers. $DIGIT_DATA_DIR and $DIGIT_CORPORA_DIR say where both lie. Every training is one run
of ml_training/train.py in a folder of its own: one that is finished is not repeated, one that was stopped goes on from
its checkpoint. Several commands with different --rows may share --work. --update-docs writes docs/ablation.md from
whatever is finished.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from trainings import ROOT, head, train

from digit_detector.classifier import load_classifier
from ml_training.data.dataset_loader import load_folder

PAGE = ROOT / "docs" / "ablation.md"
PIPELINE = "mel_cnn"
SPEAKERS = ("george", "nicolas")  # whom models of the other five understand least
WHOLE = "everything"
GROUPS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without speed": {"augmentation": {"speed": [1.0, 1.0]}},
    "without vocal-tract warping": {"augmentation": {"vtlp": [1.0, 1.0]}},
    "without noise": {"augmentation": {"noise_probability": 0.0}},
    "with coloured noise alone": {"augmentation": {"procedural_ratio": 0.0}},
    "without equaliser": {"augmentation": {"random_eq_db": 0.0}},
    "without shift and level": {"augmentation": {"time_shift": 0.0, "gain_db": [0.0, 0.0]}},
    "without SpecAugment": {"augmentation": {"spec_augment": False}},
    "without synthetic voices": {"synthetic_ratio": 0.0},
    "without any of these": {"augmentation": {"enabled": False}, "synthetic_ratio": 0.0},
}
ADDITIONS: dict[str, dict[str, Any]] = {
    "a tenth synthetic voices": {"synthetic_ratio": 0.1},
    "half synthetic voices": {"synthetic_ratio": 0.5},
    "300 synthetic voices": {"synthetic_voices": 300},
    "rooms": {"augmentation": {"reverb_probability": 0.3}},
    "formants and pitch": {"augmentation": {"formant_shift_probability": 0.5, "pitch_probability": 0.3}},
    "tilt and band limits": {"augmentation": {"tilt_db": 3.0, "band_probability": 0.3}},
    "telephone and 8 bits": {"augmentation": {"telephone_probability": 0.2, "quantize_probability": 0.1}},
    "mixup": {"augmentation": {"mixup_probability": 0.3}},
    "cutmix": {"augmentation": {"cutmix_probability": 0.3}},
}
ROWS = {**GROUPS, **ADDITIONS}
TEST_SETS = (*SPEAKERS, "iitg_digits")


def run_row(row: str, seed: int, test_set: str, epochs: int, work: Path) -> float:
    """Per cent that a model of one row and seed gets right of a speaker left out, or of iitg_digits."""
    folder = work / f"{row.replace(' ', '_')}_seed{seed}_{test_set}"
    settings = {**ROWS[row], "pipeline": PIPELINE, "dataset": "fsdd", "seed": seed, "epochs": epochs, "patience": 0}
    if test_set in SPEAKERS:
        settings |= {"split": "speaker", "held_out_speaker": test_set}
    done = folder / "result.json"
    if done.exists():
        results: dict[str, Any] = json.loads(done.read_text())
        if results["settings"] != settings:
            sys.exit(f"{done} is of other settings: name another --work")
        return float(results["accuracy"])
    train(folder, settings)
    if test_set in SPEAKERS:
        summary = max((folder / "train_logs").glob(f"metrics_summary_{PIPELINE}_*.json"))  # one resumed has several
        accuracy = 100 * float(json.loads(summary.read_text())["test"]["accuracy"])
    else:
        accuracy = accuracy_on(folder / "models", test_set)
    done.write_text(json.dumps({"settings": settings, "accuracy": accuracy, "commit": head()}))
    return accuracy


def accuracy_on(models: Path, name: str) -> float:
    """Per cent of a folder of $DIGIT_CORPORA_DIR that the exported model gets right."""
    corpus = load_folder(Path(os.environ["DIGIT_CORPORA_DIR"]) / name)
    classifier = load_classifier(models, PIPELINE)
    parts = np.array_split(corpus.waveforms, -(-len(corpus) // 100))
    heard = np.concatenate([classifier.probabilities(part).argmax(axis=1) for part in parts])
    return 100 * float((heard == corpus.labels).mean())


# --- docs/ablation.md ----------------------------------------------------------------------------


def finished(work: Path) -> dict[str, dict[str, dict[int, float]]]:
    """row -> test set -> seed -> per cent, of the rows that are finished for the same seeds for every test set."""
    results: dict[str, dict[str, dict[int, float]]] = {}
    for row in ROWS:
        figures: dict[str, dict[int, float]] = {test_set: {} for test_set in TEST_SETS}
        for path in work.glob(f"{row.replace(' ', '_')}_seed*/result.json"):
            seed, test_set = path.parent.name.removeprefix(f"{row.replace(' ', '_')}_seed").split("_", 1)
            figures[test_set][int(seed)] = json.loads(path.read_text())["accuracy"]
        if figures[TEST_SETS[0]] and len({frozenset(seeds) for seeds in figures.values()}) == 1:
            results[row] = figures
    return results


def page(results: Mapping[str, Mapping[str, Mapping[int, float]]], epochs: int, commits: Sequence[str]) -> str:
    """docs/ablation.md as text."""
    if WHOLE not in results:
        sys.exit(f"the row {WHOLE!r} is not finished: the others are compared with it")
    seeds = sorted(results[WHOLE][TEST_SETS[0]])
    lines = [
        "# What each thing is worth", "",
        f"`{PIPELINE}` by a short recipe ({epochs} epochs), seeds {', '.join(map(str, seeds))}: per cent right, mean ± "
        "one standard deviation over seeds, of two speakers of FSDD left out in turn and of iitg_digits, answered by a "
        "model of all six. Behind each mean, its distance from everything: the smaller, the more the effect was worth. "
        "Differences within the deviations say nothing, and effects that take long to learn show less of their worth "
        "than in the whole recipe. Written by `python benchmarks/ablation.py --update-docs`, not "
        f"typed; {datetime.now(UTC):%Y-%m-%d}, commit {', '.join(commits)}.", "",
    ]  # fmt: skip
    for title, rows in (("Taken away", GROUPS), ("Added or changed", {WHOLE: {}, **ADDITIONS})):
        there = [row for row in rows if row in results and sorted(results[row][TEST_SETS[0]]) == seeds]
        if there == [WHOLE]:
            continue
        lines += [f"## {title}", "", f"| | {' | '.join([*SPEAKERS, 'both', 'iitg_digits'])} |", "|---|---|---|---|---|"]
        lines += [f"| {row} | {' | '.join(cells(results[row], results[WHOLE], row != WHOLE))} |" for row in there]
        lines.append("")
    return "\n".join(lines)


def cells(
    row: Mapping[str, Mapping[int, float]], whole: Mapping[str, Mapping[int, float]], compared: bool
) -> list[str]:
    """One row's figures: each speaker, both, iitg_digits."""
    texts = []
    for columns in ([SPEAKERS[0]], [SPEAKERS[1]], SPEAKERS, ["iitg_digits"]):
        values = [statistics.mean(row[c][seed] for c in columns) for seed in sorted(row[columns[0]])]
        before = statistics.mean(value for c in columns for value in whole[c].values())
        text = f"{statistics.mean(values):.1f}"
        if len(values) > 1:
            text += f" ± {statistics.stdev(values):.1f}"
        texts.append(text + (f" ({statistics.mean(values) - before:+.1f})" if compared else ""))
    return texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each training")
    parser.add_argument("--update-docs", action="store_true", help="write docs/ablation.md")
    arguments = parser.parse_args()
    if arguments.rows and not os.environ.get("DIGIT_CORPORA_DIR"):  # said before hours of training, not after
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits")
    work = arguments.work.resolve()
    jobs = [(row, seed, test_set) for seed in arguments.seeds for row in arguments.rows for test_set in TEST_SETS]
    for number, (row, seed, test_set) in enumerate(jobs, 1):
        accuracy = run_row(row, seed, test_set, arguments.epochs, work)
        print(f"{number} of {len(jobs)}: {row}, seed {seed}, {test_set}: {accuracy:.1f} %", flush=True)
    if arguments.update_docs:
        results = [json.loads(path.read_text()) for path in work.glob("*/result.json")]
        PAGE.write_text(
            page(finished(work), arguments.epochs, sorted({r["commit"] for r in results})), encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
