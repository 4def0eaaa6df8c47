"""What each frame should say, and what saying something else costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from digit_detector.audio import SAMPLE_RATE
from digit_detector.spotter_file import HOP
from ml_training.results import Floats, Ints
from ml_training.spotter.model import NOTHING, Ended
from ml_training.spotter.strings import Digit

UNTOLD = -100  # the class of frames about which nothing is told
SAYS = (0.080, 0.208)  # seconds after a digit's end between which frames should say it
MAY_SAY = (-0.080, 0.288)  # between which the others may say it or not
SHARE_OF_DURATION = 0.05  # of the cost
SMOOTHING = 0.03


def targets(digits: Sequence[Digit], frames: int) -> tuple[Ints, Floats]:
    """(F,) classes and (F,) durations, log(1 + frames), which count where a digit is to be said."""
    classes = np.full(frames, NOTHING, dtype=np.int64)
    durations = np.zeros(frames, dtype=np.float32)
    heard = (np.arange(frames) + 1) * HOP  # samples before the end of each frame
    for digit in digits:
        since = (heard - digit.end) / SAMPLE_RATE
        near = (since >= MAY_SAY[0]) & (since < MAY_SAY[1])
        classes[near & (classes == NOTHING)] = UNTOLD
        if digit.begin > -(digit.end - digit.begin) // 4:  # enough of it lies in the string
            says = (since >= SAYS[0]) & (since < SAYS[1])
            classes[says] = digit.label
            durations[says] = np.log1p((heard[says] - digit.begin) / HOP)
    return classes, durations


def cost(said: Ended, classes: Tensor, durations: Tensor) -> Tensor:
    """Cross entropy of (N, F) classes, and the error of durations where there are any."""
    entropy = functional.cross_entropy(
        said.logits.flatten(0, 1), classes.flatten(), ignore_index=UNTOLD, label_smoothing=SMOOTHING
    )
    ended = (classes >= 0) & (classes < NOTHING)
    off = functional.smooth_l1_loss(said.frames[ended], durations[ended]) if ended.any() else entropy.new_zeros(())
    return entropy + SHARE_OF_DURATION * off


def said_right(said: Ended, classes: Tensor) -> tuple[Tensor, Tensor]:
    """How many frames that should say a digit do, and how many say one that should not, as shares."""
    likeliest = said.logits.argmax(dim=2)
    ended = (classes >= 0) & (classes < NOTHING)
    silent = classes == NOTHING
    return (likeliest == classes)[ended].float().mean(), (likeliest != NOTHING)[silent].float().mean()


def stacked(made: Sequence[tuple[Ints, Floats]]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([m[0] for m in made])), torch.from_numpy(np.stack([m[1] for m in made]))
