"""The loss of the digit classifiers: cross entropy of the digits, presence of a digit, distillation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.pipelines.base import ModelOutput
from ml_training.training.batches import Batch


def loss_fn(
    outputs: ModelOutput,
    batch: Batch,
    smoothing: float,
    teachers: tuple[Tensor, Tensor] | None = None,
    weight: float = 0.0,
) -> Tensor:
    """() mean loss of a batch, or what a micro-batch adds to that of its whole batch: their losses add up to it.

    `teachers` are (B, 10) digit probabilities and (B,) presence probabilities of other models; the loss against them
    counts `weight`, that against the labels 1 - `weight`.
    """
    digits, total = len(batch.labels), batch.total
    digit_share = digits / total.digits
    logits, presence = outputs.digit_logits[:digits].float(), outputs.presence_logit.float()
    negatives = total.clips - total.digits

    def cross_entropy(targets: Tensor, smoothing: float = 0.0) -> Tensor:
        # Without digits nothing is lost, but the logits keep their place in the graph.
        return digit_share * F.cross_entropy(logits, targets, label_smoothing=smoothing) if digits else logits.sum()

    loss = cross_entropy(batch.targets, smoothing)
    if negatives:
        shares = digit_share, (len(presence) - digits) / negatives
        loss = loss + presence_loss(presence, digits, smoothing, shares)
    if teachers is None:
        return loss
    probabilities, present = teachers
    distillation = cross_entropy(probabilities[:digits])
    if negatives:
        bce = F.binary_cross_entropy_with_logits(presence, present)
        distillation = distillation + len(presence) / total.clips * bce
    return torch.lerp(loss, distillation, weight)


def presence_loss(logits: Tensor, digits: int, smoothing: float, shares: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Binary cross-entropy of (B,) presence logits, of which the first `digits` are of clips with a digit.

    Both kinds weigh the same, however many there are of each, so that a logit of 0 means even odds. Targets are
    smoothed as those of the digits are. `shares` are the parts of a whole batch's digits and negatives among these B.
    """
    targets = torch.full_like(logits, smoothing / 2)
    targets[:digits] = 1.0 - smoothing / 2
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    kinds = zip(shares, (losses[:digits], losses[digits:]), strict=True)
    with_digit, without = (share * kind.mean() if share else kind.sum() for share, kind in kinds)
    return (with_digit + without) / 2


def validation_loss(outputs: ModelOutput, labels: Tensor, smoothing: float) -> float:
    """The training loss, smoothing included, of (B,) clips in any order, in double precision.

    A plain log loss grows while smoothing makes scores modest, and would choose a model of mid-schedule.
    """
    is_digit = labels != NOT_A_DIGIT
    logits, digits = outputs.digit_logits[is_digit].double().cpu(), labels[is_digit].cpu()
    loss = float(F.cross_entropy(logits, digits, label_smoothing=smoothing))
    if len(digits) < len(labels):
        order = torch.argsort(is_digit.int(), descending=True, stable=True)
        loss += float(presence_loss(outputs.presence_logit[order].double(), len(digits), smoothing))
    return loss
