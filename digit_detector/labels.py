"""The labels of the models, and the names of the pipelines."""

from __future__ import annotations

import re
from pathlib import Path

PRETRAINED = "pretrained"  # in the place of a folder of models: those that ship with the package
TRAINED = "models"  # where training puts one's own
MFCC, MEL_CNN, RAW_CNN = PIPELINES = ("mfcc", "mel_cnn", "raw_cnn")  # whose models ship
PIPELINE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
PIPELINE_TITLES = {MFCC: "MFCC + dense network", MEL_CNN: "log-mel + 2D CNN", RAW_CNN: "raw waveform + 1D CNN"}
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NUM_CLASSES = len(LABELS)
IS_DIGIT = 0.5  # the least digit score that counts as a digit
FP32, INT8 = FILE_PRECISIONS = ("fp32", "int8")  # what a model file computes in; one that does not say is fp32


def model_folder(models_dir: str | Path, pipeline: str) -> Path:
    """Where the files of one trained pipeline lie, e.g. models/mfcc_classifier."""
    return Path(models_dir) / f"{pipeline}_classifier"


def trained_pipelines(models_dir: str | Path) -> tuple[str, ...]:
    """The pipelines that a folder of models may hold: PIPELINES, then any other that has a folder there."""
    if models_dir == PRETRAINED:
        return PIPELINES
    names = (path.name.removesuffix("_classifier") for path in sorted(Path(models_dir).glob("*_classifier")))
    return (*PIPELINES, *(name for name in names if name not in PIPELINES and PIPELINE_NAME.fullmatch(name)))
