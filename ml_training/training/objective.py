"""What a step of training hears and what its answers cost."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ml_training.config import TrainConfig
from ml_training.data.augmentation import augment
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.data.mixing import mix
from ml_training.pipelines.base import Heard
from ml_training.training.negatives import count_beside, draw_negatives
from ml_training.training.setup import Clips
from ml_training.training.teachers import Teachers


class Batch(NamedTuple):
    """B clips of T samples, the D digits first."""

    waveforms: Tensor  # (B, T), varied
    labels: Tensor  # (D,)
    targets: Tensor  # (D,) labels, or (D, 10) probabilities where clips were mixed


class Objective:
    """Digits beside clips without one, all varied alike, and what a model's answers to them cost.

    Raises what Teachers raises where `config` names some.
    """

    def __init__(self, train: Clips, config: TrainConfig, device: torch.device) -> None:
        self.config, self.augmentation = config, config.augmenting
        self.others = train.of(train.labels == NOT_A_DIGIT).to(device)
        self.digits = train.of(train.labels != NOT_A_DIGIT).to(device)
        self.teachers = Teachers(config.teacher_dir, device) if config.teacher_dir is not None else None

    @torch.no_grad()
    def batch(self, chosen: Tensor) -> Batch:
        """The digits at some places, and others drawn by torch's global generator."""
        waveforms, lengths = self.digits.waveforms[chosen], self.digits.lengths[chosen]
        labels = targets = self.digits.labels[chosen]
        if negatives := count_beside(len(labels), self.config.negative_share):
            others, spans = draw_negatives(negatives, self.digits, self.others, self.augmentation.noise_dir)
            waveforms, lengths = torch.cat([waveforms, others]), torch.cat([lengths, spans])
        if self.augmentation.enabled:
            waveforms = augment(waveforms, lengths, self.augmentation)
        if self.augmentation.mixes:
            waveforms[: len(labels)], targets = mix(waveforms[: len(labels)], labels, self.augmentation)
        return Batch(waveforms, labels, targets)

    def loss(self, heard: Heard, batch: Batch) -> Tensor:
        """() mean cost of a batch: by what was said, and by what the teachers make of it."""
        digits, smoothing = len(batch.labels), self.config.label_smoothing
        scores, presence = heard.scores[:digits].float(), heard.digit.float()
        both = len(presence) > digits
        loss = F.cross_entropy(scores, batch.targets, label_smoothing=smoothing)
        if both:
            loss = loss + detection_loss(presence, digits, smoothing)
        if self.teachers is None:
            return loss
        opinions, present = self.teachers.hear(batch.waveforms)
        theirs = F.cross_entropy(scores, opinions[:digits])
        if both:
            theirs = theirs + F.binary_cross_entropy_with_logits(presence, present)
        return torch.lerp(loss, theirs, self.config.teacher_share)


def detection_loss(logits: Tensor, digits: int, smoothing: float) -> Tensor:
    """Binary cross-entropy of (B,) logits of there being a digit, which the first `digits` have.

    Both kinds weigh the same, however many there are of each: a logit of 0 then means that odds which were even before
    are even still. Targets are smoothed as those of the digits are.
    """
    targets = torch.full_like(logits, smoothing / 2)
    targets[:digits] = 1.0 - smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses[:digits].mean() + losses[digits:].mean()) / 2


def validation_loss(heard: Heard, labels: Tensor, smoothing: float) -> float:
    """The training's own measure of (B,) clips in no order, smoothing included, in double precision.

    A plain log loss grows while smoothing makes scores modest, and would keep a model from the middle of the schedule.
    """
    is_digit = labels != NOT_A_DIGIT
    scores, said = heard.scores[is_digit].double().cpu(), labels[is_digit].cpu()
    loss = float(F.cross_entropy(scores, said, label_smoothing=smoothing))
    if len(said) < len(labels):
        order = torch.argsort(is_digit.int(), descending=True, stable=True)
        loss += float(detection_loss(heard.digit[order].double(), len(said), smoothing))
    return loss
