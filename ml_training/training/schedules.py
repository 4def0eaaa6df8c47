"""The learning rate as a function of where training stands, so that a resumed run cannot miss it."""

from __future__ import annotations

import math
from dataclasses import dataclass

WARM_UP = 0.1  # share of all steps in which the cosine schedule rises
STEPS_DOWN = 5  # plateaus of the step schedule
PLATEAU_PATIENCE = 5  # epochs without a better validation loss before the plateau schedule halves the rate


@dataclass(frozen=True)
class Schedule:
    """One learning-rate schedule over a whole training."""

    kind: str  # one of config.SCHEDULERS
    peak: float
    epochs: int
    steps: int  # steps of one epoch

    def rate(self, epoch: int, step: int, plateau_halvings: int) -> float:
        """The rate of one step; `epoch` and `step` count from 0.

        cosine: linear warm-up, then half a cosine down to nearly 0 (Loshchilov and Hutter, SGDR,
        2017). step: halved after each fifth of the epochs. plateau: halved whenever validation
        stopped getting better, which the trainer counts.
        """
        if self.kind == "step":
            return self.peak * 0.5 ** (epoch * STEPS_DOWN // self.epochs)
        if self.kind == "plateau":
            return self.peak * 0.5**plateau_halvings
        total, now = self.epochs * self.steps, epoch * self.steps + step
        rising = max(1, round(WARM_UP * total))
        if now < rising:
            return self.peak * (now + 1) / rising
        return self.peak * 0.5 * (1.0 + math.cos(math.pi * (now - rising) / max(1, total - rising)))
