"""What a step of training hears and what its answers cost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ml_training.config import TrainConfig
from ml_training.data.augmentation import augment
from ml_training.data.augmentation.mixup import mix
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.pipelines.base import Heard
from ml_training.training.distillation import Teachers
from ml_training.training.hard_negatives import count_beside, draw_negatives, spoilt
from ml_training.training.setup import Clips, Rows


class Counts(NamedTuple):
    """How many clips a batch has, and how many of them are digits."""

    digits: int
    clips: int

    def cuts(self, count: int) -> list[tuple[slice, slice]]:
        """Where digits and others are cut into so many parts of nearly one size and share of digits."""
        digits, clips = self
        ends = [(digits * end // clips, end) for end in (clips * i // count for i in range(count + 1))]
        return [
            (slice(first, last), slice(start - first, end - last)) for (first, start), (last, end) in pairwise(ends)
        ]


class Batch(NamedTuple):
    """B clips of T samples, the D digits first."""

    waveforms: Tensor  # (B, T), varied; or (B, ...) features of them where these are precomputed
    labels: Tensor  # (D,)
    targets: Tensor  # (D,) labels, or (D, 10) probabilities where clips were mixed
    precomputed: bool = False
    whole: Counts | None = None  # of the batch that this is a part of

    @property
    def of(self) -> Counts:
        """The counts of the whole batch."""
        return self.whole or Counts(len(self.labels), len(self.waveforms))

    def parts(self, count: int) -> list[Batch]:
        """The batch cut into so many of nearly one size, with nearly the same share of digits; count is at most B."""
        own = Counts(len(self.labels), len(self.waveforms))
        return [self._cut(*cut) for cut in own.cuts(count)]

    def _cut(self, first: slice, second: slice) -> Batch:
        """The part with some of the digits and some of the others."""

        def some(clips: Tensor) -> Tensor:
            return torch.cat([clips[first], clips[len(self.labels) :][second]])

        return Batch(some(self.waveforms), self.labels[first], self.targets[first], self.precomputed, self.of)


class Objective:
    """Digits beside clips without one, all varied alike, and what a model's answers to them cost.

    Clips that come with features are not varied: their features are what is heard, and `features` makes those of clips
    that are new in each step. Raises what Teachers raises where `config` names some.
    """

    def __init__(
        self,
        train: Clips,
        config: TrainConfig,
        device: torch.device,
        features: Callable[[Tensor], Tensor | None] | None = None,
    ) -> None:
        self.config, self.augmentation = config, config.augmenting
        self.others = train.select(train.labels == NOT_A_DIGIT).to(device)
        self.digits = train.select(train.labels != NOT_A_DIGIT).to(device)
        self.features = features
        self.teachers = Teachers(config.teacher_dir, device) if config.teacher_dir is not None else None

    def clips(self, digits: int) -> int:
        """How many clips a batch of so many digits has."""
        return digits + count_beside(digits, self.config.negative_share)

    @torch.no_grad()
    def batch(self, chosen: Tensor) -> Batch:
        """The digits at some places, and others drawn by torch's global generator."""
        if self.digits.features is not None:
            return self._precomputed_batch(chosen, self.digits.features)
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

    def _precomputed_batch(self, chosen: Tensor, features: Rows) -> Batch:
        labels = self.digits.labels[chosen]
        heard = features[chosen]
        if negatives := count_beside(len(labels), self.config.negative_share):
            assert self.features is not None
            places, spoiled, _ = spoilt(negatives, self.digits, len(self.others), self.augmentation.noise_dir)
            new = self.features(spoiled)
            assert new is not None
            heard = torch.cat([heard, new])
            if len(places):
                assert self.others.features is not None
                heard = torch.cat([heard, self.others.features[places]])
        return Batch(heard, labels, labels, precomputed=True)

    def loss(self, heard: Heard, batch: Batch) -> Tensor:
        """() mean cost of a batch: by what was said, and by what the teachers make of it.

        Of one of the parts of a batch, what it adds to the mean over that: the costs of all parts add up to it.
        """
        digits, smoothing = len(batch.labels), self.config.label_smoothing
        of_digits = digits / batch.of.digits
        scores, presence = heard.scores[:digits].float(), heard.digit.float()
        others = batch.of.clips - batch.of.digits
        # What is no digit costs nothing here, but its scores keep their place in the graph.
        loss = of_digits * F.cross_entropy(scores, batch.targets, label_smoothing=smoothing) if digits else scores.sum()
        if others:
            shares = of_digits, (len(presence) - digits) / others
            loss = loss + detection_loss(presence, digits, smoothing, shares)
        if self.teachers is None:
            return loss
        opinions, present = self.teachers.predict_proba(batch.waveforms)
        theirs = of_digits * F.cross_entropy(scores, opinions[:digits]) if digits else scores.sum()
        if others:
            of_clips = len(presence) / batch.of.clips
            theirs = theirs + of_clips * F.binary_cross_entropy_with_logits(presence, present)
        return torch.lerp(loss, theirs, self.config.teacher_share)


def detection_loss(logits: Tensor, digits: int, smoothing: float, shares: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Binary cross-entropy of (B,) logits of there being a digit, which the first `digits` have.

    Both kinds weigh the same, however many there are of each: a logit of 0 then means that odds which were even before
    are even still. Targets are smoothed as those of the digits are. `shares` are those of a larger batch's digits and
    others that are among these B; where they are less than 1, there may be none of a kind.
    """
    targets = torch.full_like(logits, smoothing / 2)
    targets[:digits] = 1.0 - smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    kinds = zip(shares, (losses[:digits], losses[digits:]), strict=True)
    said, unsaid = (share * kind.mean() if share else kind.sum() for share, kind in kinds)
    return (said + unsaid) / 2


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
