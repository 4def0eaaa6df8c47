"""Knowledge distillation: trained models whose probabilities another model learns (Hinton et al., 2015).

They get the clip after augmentation, so that they teach how certain a model may be of a noisy clip.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from digit_detector.errors import CheckpointError, ConfigError, DataError
from digit_detector.versions import VERSIONS
from ml_training.pipelines.base import DigitModel
from ml_training.registry import get_pipeline, pipeline_spec
from ml_training.training.checkpoint import BEST, load_checkpoint, load_weights


class EnsembleTeacher:
    """The mean of every trained model in and below a folder.

    Raises DataError if there is none, CheckpointError for a damaged or foreign one.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        loaded = {path: _load(path) for path in teacher_files(folder)}
        self.models = [model.to(device) for model, _ in loaded.values()]
        self.without_negatives = [path for path, (_, ratio) in loaded.items() if not ratio]

    @torch.no_grad()
    def predict_proba(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) clips -> (B, 10) probabilities of the digits and (B,) of the presence of one."""
        outputs = [model.forward_waveform(waveforms).float() for model in self.models]  # as trained: no temperature
        digits = torch.stack([logits[:, :-1].softmax(dim=1) for logits in outputs]).mean(dim=0)
        return digits, torch.stack([logits[:, -1].sigmoid() for logits in outputs]).mean(dim=0)


def _load(path: Path) -> tuple[DigitModel, float]:
    """A trained model and the ratio of negatives it was trained with."""
    checkpoint = load_checkpoint(path)
    if "weights" not in checkpoint:
        raise CheckpointError(f"{path} has no weights to teach with: expected a {BEST} of this program")
    try:
        model = get_pipeline(pipeline_spec(checkpoint)).model(checkpoint["config"].get("width", 1.0))
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot teach: {error}") from error
    load_weights(model, checkpoint["weights"], path)
    return model.eval(), checkpoint["config"]["negative_ratio"]


def teacher_files(folder: str) -> list[Path]:
    """The weights in and below a folder, without versions that are not promoted. Raises DataError if there are none."""
    root = Path(os.path.expanduser(folder))
    files = [
        path
        for path in sorted(root.rglob(BEST))
        # A promoted version lies above, too.
        if not (path.parent.name.isdecimal() and path.relative_to(root).parent.parent.name == VERSIONS)
    ]
    if not files:
        raise DataError(f"teacher_dir {folder} has no {BEST}: expected a folder of trained models")
    return files


@lru_cache(maxsize=4)
def teachers_hash(folder: str) -> str:
    """SHA-256 of all their weights."""
    digest = hashlib.sha256()
    for path in teacher_files(folder):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
