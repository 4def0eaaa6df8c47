"""What can be told of a run's recordings before any is decoded, and before torch is loaded to train on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from digit_detector.audio import AUDIO_SUFFIXES
from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.data import fsdd
from ml_training.data.clip_files import wav_tree_hash
from ml_training.data.dataset_loader import check_is_fsdd, find_clips
from ml_training.data.tables import is_table

_DIGITS = {*LABELS, *map(str, range(10))}


def check_data(config: TrainConfig) -> None:
    """Raise DataError where the recordings that `config` names are missing, or none by their names and labels."""
    if config.dataset != "synthetic":
        path = fsdd.chosen_path(config.data_dir)
        if config.dataset == "fsdd" and path is not None and path.is_dir():
            check_is_fsdd(path, wav_tree_hash(fsdd.recordings_folder(path)), "train on it with --dataset folder")
        elif config.dataset == "folder" or (path is not None and (path.is_dir() or is_table(path))):
            if path is None:
                raise DataError(
                    "dataset 'folder' needs a folder or table of recordings: set --data_dir or $DIGIT_DATA_DIR"
                )
            find_clips(path)
    if config.extra_dir is not None:
        find_clips(config.extra_dir)
    if config.words_dir is not None:
        word_files(config.words_dir)
    augmentation = config.augmentation
    if isinstance(augmentation, AugmentationConfig):
        augmentation = vars(augmentation)
    if isinstance(augmentation, Mapping) and augmentation.get("enabled", True) and augmentation.get("noise_dir"):
        noise_files(augmentation["noise_dir"])
    if config.teacher_dir is not None and not Path(config.teacher_dir).expanduser().is_dir():
        raise DataError(f"teacher_dir {config.teacher_dir} is not a folder: expected a folder of trained models")


def noise_files(folder: str) -> list[Path]:
    """Every audio file in and below `folder` that is not hidden. Raises DataError where there is none."""
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise DataError(f"noise_dir {folder} is not a folder: expected one with recordings of background noise")
    files = _audio_below(root)
    if not files:
        raise DataError(f"noise_dir {folder} holds no audio: expected recordings of background noise, e.g. .wav")
    return files


def word_files(folder: str) -> list[Path]:
    """The same, but for those whose name or folder says a digit. Raises DataError where there is none."""
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise DataError(f"words_dir {folder} is not a folder: expected one with recordings of words that are no digits")
    files = [
        path for path in _audio_below(root) if not _DIGITS & {path.parent.name.lower(), path.stem.split("_")[0].lower()}
    ]
    if not files:
        raise DataError(f"words_dir {folder} holds no recordings of words that are no digits, e.g. yes_anna_0.wav")
    return files


def _audio_below(root: Path) -> list[Path]:
    found = (path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))  # as macOS leaves beside each recording
