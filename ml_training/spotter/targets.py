"""Frame targets of the spotter, its loss, and how many frames are right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from digit_detector.spotter_file import HOP
from ml_training.results import Floats, Ints
from ml_training.spotter.model import BACKGROUND, SpotterOutput

IGNORE_INDEX = -100  # class of frames without a target
TARGET_WINDOW = (0.080, 0.208)  # seconds after the end of a digit in which frames have it as their target
IGNORE_WINDOW = (-0.080, 0.288)  # in which the other frames have no target
DURATION_WEIGHT = 0.05
LABEL_SMOOTHING = 0.03


class Digit(NamedTuple):
    """A digit in an utterance; its onset and offset in samples."""

    label: int
    onset: int
    offset: int


def frame_targets(digits: Sequence[Digit], frames: int) -> tuple[Ints, Floats]:
    """(F,) classes, and (F,) log(1 + frames since the onset), which count only where the class is a digit."""
    classes = np.full(frames, BACKGROUND, dtype=np.int64)
    log_durations = np.zeros(frames, dtype=np.float32)
    frame_ends = (np.arange(frames) + 1) * HOP
    for digit in digits:
        since = (frame_ends - digit.offset) / SAMPLE_RATE
        ignored = (since >= IGNORE_WINDOW[0]) & (since < IGNORE_WINDOW[1])
        classes[ignored & (classes == BACKGROUND)] = IGNORE_INDEX
        if digit.onset > -(digit.offset - digit.onset) // 4:  # most of it lies in the utterance
            target = (since >= TARGET_WINDOW[0]) & (since < TARGET_WINDOW[1])
            classes[target] = digit.label
            log_durations[target] = np.log1p((frame_ends[target] - digit.onset) / HOP)
    return classes, log_durations


def spotter_loss(output: SpotterOutput, classes: Tensor, log_durations: Tensor) -> Tensor:
    """Cross entropy of (N, F) classes plus DURATION_WEIGHT times the smooth L1 error of the digits' log durations."""
    loss = functional.cross_entropy(
        output.logits.flatten(0, 1), classes.flatten(), ignore_index=IGNORE_INDEX, label_smoothing=LABEL_SMOOTHING
    )
    digit = (classes >= 0) & (classes < BACKGROUND)
    if digit.any():
        loss = loss + DURATION_WEIGHT * functional.smooth_l1_loss(output.log_durations[digit], log_durations[digit])
    return loss


def count_frames(output: SpotterOutput, classes: Tensor) -> tuple[Tensor, Tensor]:
    """(2,) digit frames classified as their digit and all of them; (2,) background frames classified as any and all."""
    predicted = output.logits.argmax(dim=2)
    digit, background = (classes >= 0) & (classes < BACKGROUND), classes == BACKGROUND
    right, wrong = digit & (predicted == classes), background & (predicted != BACKGROUND)
    return torch.stack([right.sum(), digit.sum()]), torch.stack([wrong.sum(), background.sum()])
