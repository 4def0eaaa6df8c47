"""What each data source and idea is worth for unseen speakers and noises: the shipped recipe, one change at a time.

    python benchmarks/reach.py --work FOLDER [--pipeline mel_cnn] [--rows NAME ...] [--jobs 2] [--update-docs]

Each row is trained once without each of PAIRS, the six speakers of FSDD and the two of iitg_digits, by a short recipe
(--epochs); half of words/train and noise/train is left out, too. The pair is then scored, clean and in the noise left
out, and the digit score separates its digits from the words and noise left out and the seconds of speech/tune. Nothing
that is evaluation only is used. A training that is finished in --work is not repeated. --update-docs writes
docs/reach.md from what is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ship import AUGMENTATION
from trainings import ROOT, head, train_once

from digit_detector.classifier import DigitClassifier, load_classifier
from digit_detector.evaluation.streams import audio_files
from digit_detector.labels import MEL_CNN, PIPELINES, RAW_CNN
from ml_training.data.dataset_loader import load_folder
from ml_training.data.fsdd import recordings_folder
from ml_training.evaluation.perturbations import draw_recordings, load_recordings, mix
from ml_training.evaluation.protocols import load_non_digits
from ml_training.results import Floats

PAGE = ROOT / "docs" / "reach.md"
PAIRS = (("nicolas", "iitg01"), ("george", "iitg02"), ("jackson", "theo"), ("lucas", "yweweler"))
SNR_DB = 5.0
ROOMS = ("reverb_probability", "telephone_probability", "tilt_db", "band_probability")
ACCEPTED = 0.95  # share of the digits at the threshold of the last three figures
WHOLE = "everything"
ROWS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without iitg_digits": {"extra_digits_dir": None},
    "without recorded words": {"non_digit_dir": None},
    "without recorded noise": {"augmentation": {"noise_dir": None}},
    "without synthetic voices that say digits": {"synthetic_ratio": 0.0},
    "without clips that are no digits": {"negative_ratio": 0.0},
    "250 synthetic voices": {"synthetic_voices": 250},
    "words that keep their ends": {"augmentation": {"edge_crop_probability": 0.0}},
    "without rooms, telephones, tilts, band limits": {"augmentation": dict.fromkeys(ROOMS, 0.0)},
    "formants and pitch moved": {"augmentation": {"formant_shift_probability": 0.3, "pitch_probability": 0.3}},
    "taught by mel_cnn and raw_cnn": {"teacher_dir": "teachers"},
}  # fmt: skip
TEACHERS = ((MEL_CNN, 1), (RAW_CNN, 1))
FIGURES = ("digits %", "5 dB %", "words %", "sentences %", "noise %")


def every_other_speaker(files: Sequence[Path]) -> list[Path]:
    """The recordings of every other speaker, of files named word_speaker_number."""
    names = sorted({path.stem.split("_")[1] for path in files})
    return [path for path in files if names.index(path.stem.split("_")[1]) % 2 == 0]


def link_files(folder: Path, files: Sequence[Path]) -> str:
    """A folder of links to recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        with contextlib.suppress(FileExistsError):  # another training may link them at the same time
            (folder / path.name).symlink_to(path.absolute())
    return str(folder)


def split_data(work: Path, pair: tuple[str, str]) -> dict[str, str]:
    """Folders of what is trained on and of what is left out."""
    corpora = Path(os.environ["DIGIT_CORPORA_DIR"])
    parts: dict[str, list[Path]] = {"digits left out": []}
    sources = {"fsdd": recordings_folder(Path(os.environ["DIGIT_DATA_DIR"])), "iitg": corpora / "iitg_digits"}
    for name, folder in sources.items():
        files = audio_files(folder)
        parts[name] = [path for path in files if path.stem.split("_")[1] not in pair]
        parts["digits left out"] += [path for path in files if path.stem.split("_")[1] in pair]
    for name in ("words", "noise"):
        files = audio_files(corpora / name / "train")
        parts[name] = every_other_speaker(files) if name == "words" else files[::2]
        parts[f"{name} left out"] = [path for path in files if path not in set(parts[name])]
    folder = work / "material" / "+".join(pair)
    return {name: link_files(folder / name.replace(" ", "_"), files) for name, files in parts.items()}


def train_row(work: Path, row: str, pipeline: str, seed: int, pair: tuple[str, str], epochs: int) -> Path:
    """Train one model, unless it is done; returns its folder."""
    data = split_data(work, pair)
    settings: dict[str, Any] = {
        "pipeline": pipeline, "dataset": "folder", "data_dir": data["fsdd"], "extra_digits_dir": data["iitg"],
        "non_digit_dir": data["words"], "synthetic_ratio": 0.25, "seed": seed, "epochs": epochs, "patience": 0,
        "keep_checkpoints": "1",
    }  # fmt: skip
    changes = {**ROWS[row]}
    augmentation = {"noise_dir": data["noise"], **AUGMENTATION, **changes.pop("augmentation", {})}
    if "teacher_dir" in changes:
        changes["teacher_dir"] = str(work / "teachers" / "+".join(pair))
    folder = work / ("teachers" if seed else "rows") / "+".join(pair) / f"{row.replace(' ', '_')}_{pipeline}_{seed}"
    train_once(folder, {**settings, **changes, "augmentation": augmentation})
    return folder


def score_row(work: Path, row: str, pipeline: str, pair: tuple[str, str], epochs: int) -> None:
    """Train a row without one pair, score it on what was left out and write the figures."""
    folder = train_row(work, row, pipeline, 0, pair, epochs)
    data, classifier = split_data(work, pair), load_classifier(folder / "models", pipeline)
    corpus = load_folder(Path(data["digits left out"]))
    recordings = load_recordings(data["noise left out"])
    noise, _ = draw_recordings(recordings, corpus.waveforms, np.random.default_rng(0))
    figures: dict[str, float] = {}
    for title, waveforms in (("5 dB %", mix(corpus.waveforms, noise, SNR_DB)), ("digits %", corpus.waveforms)):
        probabilities, digits = predict(classifier, waveforms)
        right, speakers = probabilities.argmax(axis=1) == corpus.labels, np.asarray(corpus.speakers)
        by_speaker = {name: 100 * float(right[speakers == name].mean()) for name in pair}  # clean ones last
        figures[title] = statistics.mean(by_speaker.values())
    threshold = np.quantile(digits, 1 - ACCEPTED)
    others = {kind: data[f"{kind} left out"] for kind in ("words", "noise")}
    others["sentences"] = os.path.join(os.environ["DIGIT_CORPORA_DIR"], "speech", "tune")
    for kind, source in others.items():
        _, scores = predict(classifier, load_non_digits(kind, source).waveforms)
        figures[f"{kind} %"] = 100 * float((scores >= threshold).mean())
    result = {"figures": figures, "speakers": by_speaker, "epochs": epochs, "commit": head()}
    (folder / "result.json").write_text(json.dumps(result))
    print(f"{row}, without {' and '.join(pair)}: {', '.join(f'{k} {v:.1f}' for k, v in figures.items())}", flush=True)


def predict(classifier: DigitClassifier, waveforms: Floats) -> tuple[Floats, Floats]:
    """(N, 8000) -> (N, 10) probabilities and (N,) digit scores, in batches."""
    parts = [classifier.predict_proba(part) for part in np.array_split(waveforms, -(-len(waveforms) // 100))]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def load_rows(work: Path, pipeline: str) -> tuple[dict[str, dict[str, float]], dict[str, float], set[str], set[int]]:
    """Row -> figure -> mean over the pairs, of rows finished for all; WHOLE by speaker; commits; epochs."""
    rows: dict[str, dict[str, float]] = {}
    speakers: dict[str, float] = {}
    commits, epochs = set(), set()
    for row in ROWS:
        files = [work / "rows" / "+".join(p) / f"{row.replace(' ', '_')}_{pipeline}_0" / "result.json" for p in PAIRS]
        if all(path.exists() for path in files):
            results = [json.loads(path.read_text()) for path in files]
            rows[row] = {name: statistics.mean(r["figures"][name] for r in results) for name in FIGURES}
            if row == WHOLE:
                speakers = {name: share for r in results for name, share in r["speakers"].items()}
            commits |= {r["commit"] for r in results}
            epochs |= {r["epochs"] for r in results}
    return rows, speakers, commits, epochs


def format_page(work: Path) -> str:
    """docs/reach.md: a table of each pipeline, and the accuracy on each speaker left out with the whole recipe."""
    tables, commits, epochs = [], set(), set()
    for pipeline in PIPELINES:
        rows, speakers, of_commits, of_epochs = load_rows(work, pipeline)
        commits |= of_commits
        epochs |= of_epochs
        if rows:
            tables += [f"## {pipeline}", "", f"| | {' | '.join(FIGURES)} |", f"|---|{'---:|' * len(FIGURES)}"]
            tables += [f"| {row} | {' | '.join(f'{values[f]:.1f}' for f in FIGURES)} |" for row, values in rows.items()]
            shares = ", ".join(f"{name} {share:.1f}" for name, share in sorted(speakers.items()))
            tables += ["", f"With {WHOLE}, per cent right of each speaker left out: {shares}.", ""] if shares else [""]
    pairs = "; ".join(" and ".join(pair) for pair in PAIRS)
    introduction = (
        f"The recipe of the models that ship, shortened to {', '.join(map(str, sorted(epochs)))} epochs, with one "
        f"change at a time; seed 0; each row trained without {pairs}, means of all. Digits: per cent right of the "
        "speakers left out; 5 dB: the same in recorded noise that was left out. Words, sentences, noise: per cent of "
        "words and noise left out, and of seconds of speech/tune, that are accepted where "
        f"{ACCEPTED:.0%} of the digits are: the less, the better. {len(PAIRS)} trainings a row: differences of half a "
        "point, and of a few in the last three columns, are noise. Written by `python benchmarks/reach.py "
        f"--update-docs`; {datetime.now(UTC):%Y-%m-%d}, commit {', '.join(sorted(commits))}."
    )
    return "\n".join(["# What each source and idea gave", "", introduction, "", *tables])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings")
    parser.add_argument("--pipeline", choices=PIPELINES, default=MEL_CNN)
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS))
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each training")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--update-docs", action="store_true", help="write docs/reach.md")
    arguments = parser.parse_args()
    if not (os.environ.get("DIGIT_CORPORA_DIR") and os.environ.get("DIGIT_DATA_DIR")):
        sys.exit("expected $DIGIT_DATA_DIR, FSDD, and $DIGIT_CORPORA_DIR, the folder of iitg_digits, words and noise")
    work, epochs = arguments.work.resolve(), arguments.epochs
    with ThreadPoolExecutor(arguments.jobs) as pool:
        distilled = any("teacher_dir" in ROWS[row] for row in arguments.rows)
        teachers = [(p, seed, pair) for p, seed in TEACHERS for pair in PAIRS if distilled]
        list(pool.map(lambda teacher: train_row(work, WHOLE, teacher[0], teacher[1], teacher[2], epochs), teachers))
        pairs = [(row, pair) for row in arguments.rows for pair in PAIRS]
        list(pool.map(lambda job: score_row(work, job[0], arguments.pipeline, job[1], epochs), pairs))
    if arguments.update_docs:
        PAGE.write_text(format_page(work), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
