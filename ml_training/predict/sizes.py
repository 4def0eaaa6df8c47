"""How many clips go through the model at once: as many as are fast and fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from digit_detector.audio import Floats
from digit_detector.errors import ModelMemoryError
from digit_detector.memory import available_memory, used_memory

FIRST, MOST = 8, 64  # of a batch that grows; more clips than this outgrow a processor's cache and take longer each
SHARE = 4  # a batch grows while what it takes is at most the fourth part of what there is left


class Model(Protocol):
    """What answers: (N, 8000) seconds -> (N, 10) probabilities and (N,) digit scores."""

    def predict_proba(self, waveforms: Floats) -> tuple[Floats, Floats]: ...


class Batches:
    """Asks a model in batches of `size` clips, or of a size that grows when that is None.

    A batch that does not fit into memory is asked in halves, and none so large follows.
    """

    def __init__(self, model: Model, size: int | None, report: Callable[[str], None]) -> None:
        self.size = FIRST if size is None else size
        self._most = MOST if size is None else size
        self._model, self._report = model, report
        self._before = used_memory()

    def predict_proba(self, clips: Sequence[Floats]) -> tuple[Floats, Floats]:
        """Of some clips (8000,). Raises ModelError, for want of memory only where one clip is too much."""
        answers: list[tuple[Floats, Floats]] = []
        heard = 0
        while heard < len(clips):
            part = clips[heard : heard + self.size]
            answer = self._attempt(part)
            if answer is None:  # here nothing holds on any more to what the attempt took
                self.size = self._most = len(part) // 2
                self._report(f"not enough memory for {len(part)} clips at once: going on with {self.size}")
                continue
            answers.append(answer)
            heard += len(part)
            if len(part) == self.size < self._most and self._may_double():
                self.size = min(2 * self.size, self._most)
        probabilities, digit_scores = zip(*answers, strict=True)
        return np.concatenate(probabilities), np.concatenate(digit_scores)

    def _attempt(self, clips: Sequence[Floats]) -> tuple[Floats, Floats] | None:
        try:
            return self._model.predict_proba(np.stack(clips))
        except (ModelMemoryError, MemoryError) as error:
            if len(clips) > 1:
                return None
            raise ModelMemoryError(f"there is no memory left to answer a single clip: {error}") from error

    def _may_double(self) -> bool:
        used, left = used_memory(), available_memory()
        if used is None or left is None or self._before is None:
            return True
        return SHARE * (used - self._before) <= left
