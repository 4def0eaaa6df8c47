"""The learning rate as a function of the position in a training: no state, so a resumed run needs none."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 0.1  # share of all steps in which the cosine schedule rises
STEPS_DOWN = 5  # levels of the step schedule
PLATEAU_PATIENCE = 5  # epochs without a better validation loss before the plateau schedule halves the rate


@dataclass(frozen=True)
class Schedule:
    """One learning-rate schedule over a whole training."""

    kind: str  # one of config.SCHEDULERS
    peak: float
    epochs: int
    steps: int  # per epoch
    total: int  # steps of all epochs
    warm_up: float = WARM_UP

    def rate(self, epoch: int, step: int, plateau_halvings: int = 0) -> float:
        """The rate of one step; `epoch` and `step` count from 0.

        cosine: linear warm-up, then half a cosine to nearly 0 (Loshchilov and Hutter, SGDR, 2017). step: halved after
        each fifth of the epochs. plateau: halved whenever validation stopped improving, which the trainer counts.
        """
        if self.kind == "step":
            return self.peak * 0.5 ** (epoch * STEPS_DOWN // self.epochs)
        if self.kind == "plateau":
            return self.peak * 0.5**plateau_halvings
        now, rising = epoch * self.steps + step, max(1, round(self.warm_up * self.total))
        if now < rising:
            return self.peak * (now + 1) / rising
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * (now - rising) / max(1, self.total - rising)))
