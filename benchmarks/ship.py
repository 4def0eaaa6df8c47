"""Make the models that ship: train teachers, teach the three small networks, put them into the package, score them.

    python benchmarks/ship.py --work FOLDER [--jobs 2] [--install] [--score]

Everything is decided by the settings below and SEED. $DIGIT_DATA_DIR is FSDD; $DIGIT_CORPORA_DIR holds iitg_digits,
words/train and noise/train, which are trained on, and strangers, words/eval, noise/eval and speech/eval, which are not.
FSDD's official test clips train nothing. A training that is finished in --work is not repeated, one that was stopped
goes on; --jobs is how many run at once.

--install copies the models to digit_detector/pretrained and makes int8 files of the same weights. --score scores what
lies there by every protocol, adds the scorings to docs/strangers_scored.md, and writes docs/results/shipped, the table
of README.md and the model cards.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from floors import DOCS, EVALUATION, WITH_FOLDER, Row, figures_of, folders_of, put_into_readme, update_docs
from trainings import ROOT, train_once

from digit_detector.classifier import load_classifier, model_file
from digit_detector.labels import (
    FILE_PRECISIONS,
    FP32,
    INT8,
    MEL_CNN,
    MFCC,
    PIPELINE_TITLES,
    PIPELINES,
    PRETRAINED,
    RAW_CNN,
)
from ml_training.config import TrainConfig
from ml_training.deploy.checkpoints import find_checkpoints
from ml_training.evaluation.command import Request, evaluate
from ml_training.evaluation.protocols import OFFICIAL
from ml_training.evaluation.records import SCORING_LOG, load_results
from ml_training.results import UNSEEN_SPEAKERS
from ml_training.training.export_job import ExportRequest, export

PARTS = {FP32: "shipped", INT8: "shipped_int8"}  # of docs/results
BEGIN, END = "<!-- shipped:begin -->", "<!-- shipped:end -->"
CARD = Path(__file__).with_name("model_card.md")
SEED = 0
CORPORA = {"extra_digits_dir": "iitg_digits", "non_digit_dir": "words/train", "noise_dir": "noise/train"}
AUGMENTATION = {  # beside each pipeline's own, and recorded noise
    "recorded_ratio": 0.5, "edge_crop_probability": 0.4, "reverb_probability": 0.2, "telephone_probability": 0.1,
    "tilt_db": 3.0, "band_probability": 0.15,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    # it learns less than it is told: whole words, no rooms and lines, and more of what was said
    MFCC: {"augmentation": {"recorded_ratio": 0.5}, "distillation_weight": 0.5},
    # it took a five without its beginning for a nine
    MEL_CNN: {"augmentation": {**AUGMENTATION, "edge_crop": 0.1}},
}
TEACHERS = ((MEL_CNN, 1), (RAW_CNN, 1))  # of all three: pipeline and seed
FURTHER = {MEL_CNN: ((MFCC, 1),)}  # of one alone; it makes other errors than they
OF_SOME, OF_ALL = "teachers", "teachers/of_all"  # who is taught by a folder is taught by those below it, too
TEACHER_EPOCHS = {MEL_CNN: 60, RAW_CNN: 60, MFCC: 60}
EPOCHS = {MFCC: 120, MEL_CNN: 108, RAW_CNN: 72}

ROWS = {
    "official errors": Row("FSDD official test, errors of 300", (3, 1, 2), 0, most=True),
    "strangers %": Row("strangers (84 contributors of Speech Commands, 203 clips), %", (87, 95, 92), 1),
    "strangers 5 dB %": Row("strangers in recorded noise (noise/eval) at 5 dB, %", (64, 84, 80), 1),
    "strangers ECE %": Row("calibration error on strangers, %", None, 1, most=True),
    "strangers words 95%": Row(
        "other words of the same people that pass where 95 % of their digits do, %", (50, 28, 32), 1, True
    ),
    "strangers words 90%": Row("the same where 90 % of their digits do, %", (35, 15, 18), 1, most=True),
    "strangers sentences 95%": Row(
        "seconds of sentences that pass where 95 % of digits do, %", (45, 20, 24), 1, most=True
    ),
    "strangers noise 95%": Row("seconds of noise that pass where 95 % of digits do, %", (10, 2, 3), 1, most=True),
    "model MB": Row("model file, MB", (0.6, 0.6, 0.8), 2, most=True),
    "int8 official errors": Row('in 8 bits (`precision="int8"`): FSDD official test, errors of 300', None, 0),
    "int8 strangers %": Row("in 8 bits: strangers, %", None, 1),
    "int8 model MB": Row("in 8 bits: model file, MB", None, 2),
}


def corpora() -> Path:
    found = os.environ.get("DIGIT_CORPORA_DIR")
    if not found:  # said before hours of training, not after
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits, words and noise")
    return Path(found).expanduser().absolute()  # trainings run in folders of their own


def settings(
    pipeline: str, seed: int, epochs: int, augmentation: Mapping[str, float] = AUGMENTATION, **more: Any
) -> dict[str, Any]:  # fmt: skip
    """What every training here has in common, and what one has of its own."""
    folders = {setting: str(corpora() / name) for setting, name in CORPORA.items()}
    augmenting = {"noise_dir": folders.pop("noise_dir"), **augmentation}
    return {
        "pipeline": pipeline, "dataset": "fsdd", "seed": seed, "epochs": epochs, "patience": 0,
        "keep_checkpoints": "1", "augmentation": augmenting, **folders, **more,
    }  # fmt: skip


def trained(work: Path, jobs: int) -> None:
    """Teachers first, then who learns from them."""
    further = [teacher for more in FURTHER.values() for teacher in more]
    teachers = [
        (work / place / f"{pipeline}_{seed}", settings(pipeline, seed, TEACHER_EPOCHS[pipeline]))
        for place, some in ((OF_ALL, TEACHERS), (OF_SOME, further))
        for pipeline, seed in some
    ]
    students = [
        (work / "students" / pipeline, settings(pipeline, SEED, epochs, **OWN.get(pipeline, {}))
         | {"teacher_dir": str(work / (OF_SOME if pipeline in FURTHER else OF_ALL))})
        for pipeline, epochs in EPOCHS.items()
    ]  # fmt: skip
    for trainings in (teachers, students):
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(train_once, *zip(*trainings, strict=True)))


def install(work: Path) -> None:
    """Copy what training wrote, and make int8 of the same weights; one that is refused is told and not there."""
    for pipeline in PIPELINES:
        models = work / "students" / pipeline / "models"
        shutil.copyfile(model_file(models, pipeline), model_file(PRETRAINED, pipeline))
        outcome = export(ExportRequest(find_checkpoints(str(models), pipeline), (INT8,)), report=print)
        for exported in outcome.files:
            shutil.copyfile(exported.file, model_file(PRETRAINED, pipeline, INT8))
            print(f"{pipeline} {INT8}: {exported.size / 1000:.0f} kB, {exported.compared}")
        for reason in outcome.failures.values():
            model_file(PRETRAINED, pipeline, INT8).unlink(missing_ok=True)
            print(f"{pipeline} {INT8}: {reason}", file=sys.stderr)


def score(work: Path) -> None:
    """Score the models of digit_detector/pretrained by every protocol, and log each scoring of evaluation-only clips.

    The int8 files are scored on the official test and on clean unseen speakers only.
    """
    config, places = TrainConfig(dataset="fsdd"), folders_of(corpora(), EVALUATION)
    protocols_of = {FP32: (WITH_FOLDER, places), INT8: ((UNSEEN_SPEAKERS,), {"folders": places["folders"]})}
    for precision, (names, folders) in protocols_of.items():
        output = work / ("results" if precision == FP32 else f"results_{precision}")
        for protocols, more in (((OFFICIAL,), {}), (names, {**folders, "log_scoring": str(DOCS / SCORING_LOG)})):
            request = Request(
                protocols, config, models_dirs=(PRETRAINED,), precision=precision, output=str(output), **more
            )
            evaluate(request, report=lambda line: print(line, file=sys.stderr, flush=True))
        update_docs(output, PARTS[precision])


def figures() -> dict[str, dict[str, float]]:
    """Row -> pipeline -> figure, of what docs/results tells and of the files that ship."""
    found: dict[str, dict[str, float]] = {}
    for precision in FILE_PRECISIONS:
        before = "" if precision == FP32 else f"{precision} "
        sizes = {p: model_file(PRETRAINED, p, precision).stat().st_size / 1e6 for p in PIPELINES}
        found[f"{before}model MB"] = sizes
        for result in load_results(DOCS / "results" / PARTS[precision]):
            if result.protocol in (OFFICIAL, *WITH_FOLDER):
                found |= {f"{before}{name}": figure for name, figure in figures_of(result).items()}
    return found


def table(found: Mapping[str, Mapping[str, float]], only: str | None = None) -> str:
    """The rows as Markdown, of all pipelines with their floors or of one without."""
    shown = PIPELINES if only is None else (only,)
    lines = [f"| | {' | '.join(shown)} |", f"|---|{'---:|' * len(shown)}"]
    for name, row in ROWS.items():
        if name in found:
            told = [f"{found[name][p]:.{row.digits}f}" if only else row.cell(p, found[name][p]) for p in shown]
            lines.append(f"| {row.title} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def card(pipeline: str, found: Mapping[str, Mapping[str, float]]) -> str:
    """What a model is made of, what it may be used for and how well it does, as Markdown."""
    said = load_classifier(PRETRAINED, pipeline).metadata
    files = {precision: model_file(PRETRAINED, pipeline, precision) for precision in FILE_PRECISIONS}
    hashes = {precision: hashlib.sha256(file.read_bytes()).hexdigest() for precision, file in files.items()}
    teachers = (*TEACHERS, *FURTHER.get(pipeline, ()))
    return CARD.read_text(encoding="utf-8").format(
        pipeline=pipeline, title=PIPELINE_TITLES[pipeline], file=files[FP32].name, sha256=hashes[FP32],
        size=round(files[FP32].stat().st_size / 1000), int8=files[INT8].name, int8_sha256=hashes[INT8],
        int8_size=round(files[INT8].stat().st_size / 1000), created=said["created"],
        version=said["version"], commit=said["git_commit"], seed=said["seed"], negatives=said["negatives"],
        teachers=", ".join(f"{name} of seed {seed}" for name, seed in teachers), table=table(found, pipeline),
        share=OWN.get(pipeline, {}).get("distillation_weight", TrainConfig().distillation_weight),
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the trainings and results")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--install", action="store_true", help="put the models into digit_detector/pretrained")
    parser.add_argument("--score", action="store_true", help="score what lies there, log it, write docs and cards")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    if arguments.install or not arguments.score:
        trained(work, arguments.jobs)
    if arguments.install:
        install(work)
    if arguments.score:
        score(work)
        found = figures()
        print(table(found))
        put_into_readme(BEGIN, table(found), END)
        for pipeline in PIPELINES:
            place = ROOT / "digit_detector" / PRETRAINED / f"{pipeline}.md"
            place.write_text(card(pipeline, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
