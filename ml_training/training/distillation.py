"""Trained models that teach another what they make of a clip, besides what was said in it (Hinton et al., 2015).

They hear the clip after augmentation, so that a second in noise teaches how accept_all one may be of it.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from digit_detector.errors import CheckpointError, ConfigError
from ml_training.pipelines.base import DigitModel
from ml_training.registry import get_pipeline, trained_as
from ml_training.training.checkpoint import BEST, load_checkpoint, teacher_files
from ml_training.training.setup import load_weights


class Teachers:
    """Every trained model in and below a folder, one average opinion.

    Raises DataError where there is none, CheckpointError for a damaged or foreign one.
    """

    def __init__(self, folder: str, device: torch.device) -> None:
        found = {path: _model(path) for path in teacher_files(folder)}
        self.models = [model.to(device) for model, _ in found.values()]
        self.of_digits_alone = [path for path, (_, share) in found.items() if not share]

    def predict_proba(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) clips -> (B, 10) probabilities of the digits and (B,) of there being one."""
        with torch.no_grad():
            heard = [model.logits(waveforms).float() for model in self.models]  # as trained: no temperature
        scores = torch.stack([outputs[:, :-1].softmax(dim=1) for outputs in heard]).mean(dim=0)
        return scores, torch.stack([outputs[:, -1].sigmoid() for outputs in heard]).mean(dim=0)


def _model(path: Path) -> tuple[DigitModel, float]:
    """A trained model, and what share of its clips had no digit."""
    checkpoint = load_checkpoint(path)
    if "weights" not in checkpoint:
        raise CheckpointError(f"{path} holds no weights to teach with: expected a {BEST} of this program")
    try:
        model = get_pipeline(trained_as(checkpoint)).model(checkpoint["config"].get("width", 1.0))
    except ConfigError as error:
        raise CheckpointError(f"{path} cannot teach: {error}") from error
    load_weights(model, checkpoint["weights"], path)
    return model.eval(), checkpoint["config"]["negative_share"]
