"""What each source and idea is worth for people and sounds never heard: the shipped recipe, changed one thing at a time

    python benchmarks/reach.py --work FOLDER [--pipeline mel_cnn] [--rows NAME ...] [--jobs 2] [--update-docs]

Each row is trained once without each of PAIRS, by a short recipe (--epochs): together they are the six speakers of FSDD
and the two of iitg_digits. Half of words/train and noise/train is left out, too. Who was left out is then heard, clean
and in noise that was left out, and the digit score has to tell their digits from the words left out, the noise left out
and the seconds of speech/tune. Nothing that is evaluation only is touched. A training that is finished in --work is not
repeated. --update-docs writes docs/reach.md from whatever is finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from ship import AUGMENTATION
from trainings import ROOT, head, train_once

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.classifier import DigitClassifier, load_classifier
from digit_detector.labels import MEL_CNN, PIPELINES, RAW_CNN
from ml_training.data.dataset_loader import load_folder
from ml_training.data.fsdd import recordings_folder
from ml_training.evaluation.perturbations import draw_recordings, load_recordings, mix
from ml_training.evaluation.rejection import load_others
from ml_training.results import Floats

PAGE = ROOT / "docs" / "reach.md"
PAIRS = (("nicolas", "iitg01"), ("george", "iitg02"), ("jackson", "theo"), ("lucas", "yweweler"))
SNR_DB = 5.0
ROOMS = ("reverb_probability", "telephone_probability", "tilt_db", "band_probability")
KEPT = 0.95  # share of the digits that are accepted where others are counted
WHOLE = "everything"
ROWS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "without iitg_digits": {"extra_dir": None},
    "without recorded words": {"words_dir": None},
    "without recorded noise": {"augmentation": {"noise_dir": None}},
    "without synthetic voices that say digits": {"synthetic_share": 0.0},
    "without clips that are no digits": {"negative_share": 0.0},
    "250 synthetic voices": {"synthetic_voices": 250},
    "words that keep their ends": {"augmentation": {"trim_probability": 0.0}},
    "without rooms, telephones, tilts, band limits": {"augmentation": dict.fromkeys(ROOMS, 0.0)},
    "formants and pitch moved": {"augmentation": {"tract_probability": 0.3, "pitch_probability": 0.3}},
    "taught by mel_cnn and raw_cnn": {"teacher_dir": "teachers"},
}  # fmt: skip
TEACHERS = ((MEL_CNN, 1), (RAW_CNN, 1))
FIGURES = ("digits %", "5 dB %", "words %", "sentences %", "noise %")


def half(files: Sequence[Path]) -> list[Path]:
    """Every other speaker's recordings, of files named word_speaker_number."""
    names = sorted({path.stem.split("_")[1] for path in files})
    return [path for path in files if names.index(path.stem.split("_")[1]) % 2 == 0]


def links(folder: Path, files: Sequence[Path]) -> str:
    """A folder of links to some recordings."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in files:
        with contextlib.suppress(FileExistsError):  # another training may be at it, too
            (folder / path.name).symlink_to(path.absolute())
    return str(folder)


def recordings(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in AUDIO_SUFFIXES)


def material(work: Path, pair: tuple[str, str]) -> dict[str, str]:
    """Folders of what is trained on and of what is left out."""
    corpora = Path(os.environ["DIGIT_CORPORA_DIR"])
    parts: dict[str, list[Path]] = {}
    sources = {"fsdd": recordings_folder(Path(os.environ["DIGIT_DATA_DIR"])), "iitg": corpora / "iitg_digits"}
    for name, folder in sources.items():
        files = recordings(folder)
        left_out = [path for path in files if path.stem.split("_")[1] in pair]
        parts["digits left out"] = parts.get("digits left out", []) + left_out
        parts[name] = [path for path in files if path not in set(left_out)]
    for name in ("words", "noise"):
        files = recordings(corpora / name / "train")
        parts[name] = half(files) if name == "words" else files[::2]
        parts[f"{name} left out"] = [path for path in files if path not in set(parts[name])]
    where = work / "material" / "+".join(pair)
    return {name: links(where / name.replace(" ", "_"), files) for name, files in parts.items()}


def trained(work: Path, row: str, pipeline: str, seed: int, pair: tuple[str, str], epochs: int) -> Path:
    """Where the model of one training lies."""
    there = material(work, pair)
    settings: dict[str, Any] = {
        "pipeline": pipeline, "dataset": "folder", "data_dir": there["fsdd"], "extra_dir": there["iitg"],
        "words_dir": there["words"], "synthetic_share": 0.25, "seed": seed, "epochs": epochs, "patience": 0,
        "keep_checkpoints": "1",
    }  # fmt: skip
    augmentation = {"noise_dir": there["noise"], **AUGMENTATION}
    changes = {**ROWS[row]}
    augmentation |= changes.pop("augmentation", {})
    if "teacher_dir" in changes:
        changes["teacher_dir"] = str(work / "teachers" / "+".join(pair))
    settings |= {**changes, "augmentation": augmentation}
    within = work / ("teachers" if seed else "rows") / "+".join(pair)
    folder = within / f"{row.replace(' ', '_')}_{pipeline}_{seed}"
    train_once(folder, settings)
    return folder


def judged(work: Path, row: str, pipeline: str, pair: tuple[str, str], epochs: int) -> dict[str, float]:
    """What a model of one row makes of what its training left out."""
    folder = trained(work, row, pipeline, 0, pair, epochs)
    there, classifier = material(work, pair), load_classifier(folder / "models", pipeline)
    corpus = load_folder(Path(there["digits left out"]))
    backgrounds = load_recordings(there["noise left out"])
    noises, _ = draw_recordings(backgrounds, corpus.waveforms, np.random.default_rng(0))
    found: dict[str, float] = {}
    for title, waveforms in (("5 dB %", mix(corpus.waveforms, noises, SNR_DB)), ("digits %", corpus.waveforms)):
        probabilities, digits = hear(classifier, waveforms)
        right = probabilities.argmax(axis=1) == corpus.labels
        speakers = np.asarray(corpus.speakers)
        clean = {name: 100 * float(right[speakers == name].mean()) for name in pair}  # the last title is the clean one
        found[title] = statistics.mean(clean.values())
    place = np.quantile(digits, 1 - KEPT)
    others = {kind: there[f"{kind} left out"] for kind in ("words", "noise")}
    others["sentences"] = os.path.join(os.environ["DIGIT_CORPORA_DIR"], "speech", "tune")
    for kind, where in others.items():
        _, scores = hear(classifier, load_others(kind, where).waveforms)
        found[f"{kind} %"] = 100 * float((scores >= place).mean())
    result = {"figures": found, "speakers": clean, "epochs": epochs, "commit": head()}
    (folder / "result.json").write_text(json.dumps(result))
    print(f"{row}, without {' and '.join(pair)}: {', '.join(f'{k} {v:.1f}' for k, v in found.items())}", flush=True)
    return found


def hear(classifier: DigitClassifier, waveforms: Floats) -> tuple[Floats, Floats]:
    """(N, 8000) -> (N, 10) probabilities and (N,) digit scores."""
    heard = [classifier.predict_proba(part) for part in np.array_split(waveforms, -(-len(waveforms) // 100))]
    return np.concatenate([each[0] for each in heard]), np.concatenate([each[1] for each in heard])


def finished(work: Path, pipeline: str) -> tuple[dict[str, dict[str, float]], dict[str, float], list[str], set[int]]:
    """Row -> figure -> mean over the pairs, of rows that are finished for all; WHOLE by speaker; commits; epochs."""
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
    return rows, speakers, sorted(commits), epochs


def page(
    tables: Mapping[str, Mapping[str, Mapping[str, float]]],
    speakers: Mapping[str, Mapping[str, float]],
    commits: Sequence[str],
    epochs: Sequence[int],
) -> str:
    """docs/reach.md as text: tables by pipeline, and who of those left out is heard how well by all of the recipe."""
    pairs = "; ".join(" and ".join(pair) for pair in PAIRS)
    lines = [
        "# What each source and idea gave", "",
        f"The recipe of the models that ship, shortened to {', '.join(map(str, epochs))} epochs, with one thing "
        f"changed at a time; seed 0; each row trained without {pairs}, means of all. Digits: per cent right of who was "
        "left out; 5 dB: the same in recorded noise that was left out. Words, sentences, noise: per cent of words and "
        f"noise left out, and of seconds of speech/tune, that pass for digits where {KEPT:.0%} of the digits do: the "
        f"less, the better. {len(PAIRS)} trainings a row: differences of half a point, and of a few in the last three "
        "columns, say nothing. Written by `python benchmarks/reach.py --update-docs`; "
        f"{datetime.now(UTC):%Y-%m-%d}, commit "
        f"{', '.join(commits)}.", "",
    ]  # fmt: skip
    for pipeline, rows in tables.items():
        lines += [f"## {pipeline}", "", f"| | {' | '.join(FIGURES)} |", f"|---|{'---:|' * len(FIGURES)}"]
        lines += [f"| {row} | {' | '.join(f'{figures[f]:.1f}' for f in FIGURES)} |" for row, figures in rows.items()]
        told = ", ".join(f"{name} {share:.1f}" for name, share in sorted(speakers.get(pipeline, {}).items()))
        lines += ["", f"With {WHOLE}, per cent right of each speaker left out: {told}.", ""] if told else [""]
    return "\n".join(lines)


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
        taught = [row for row in arguments.rows if "teacher_dir" in ROWS[row]]
        teachers = [(p, seed, pair) for p, seed in TEACHERS for pair in PAIRS if taught]
        list(pool.map(lambda t: trained(work, WHOLE, t[0], t[1], t[2], epochs), teachers))
        asked = [(row, pair) for row in arguments.rows for pair in PAIRS]
        list(pool.map(lambda a: judged(work, a[0], arguments.pipeline, a[1], epochs), asked))
    if arguments.update_docs:
        tables: dict[str, dict[str, dict[str, float]]] = {}
        speakers: dict[str, dict[str, float]] = {}
        commits: set[str] = set()
        spans: set[int] = set()
        for pipeline in PIPELINES:
            rows, people, found, taken = finished(work, pipeline)
            tables |= {pipeline: rows} if rows else {}
            speakers[pipeline] = people
            commits |= set(found)
            spans |= taken
        PAGE.write_text(page(tables, speakers, sorted(commits), sorted(spans)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
