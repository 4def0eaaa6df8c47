"""The gradients of one step: of a whole batch, of one in parts where memory is short, of one that a team has."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ml_training.training.objective import Objective
from ml_training.training.observer import StopRequest
from ml_training.training.parts import LEAST, RunningStatistics, parts_of
from ml_training.training.team import Team
from ml_training.utils.memory import halving


class Gradients:
    """What leaves the gradients of a step's loss in the weights of `model`, which `heard` is or was compiled from."""

    def __init__(
        self,
        model: nn.Module,
        heard: nn.Module,
        objective: Objective,
        team: Team,
        dtype: torch.dtype | None,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.model, self.heard, self.objective, self.team = model, heard, objective, team
        self.dtype, self.scaler = dtype, scaler
        self.statistics = RunningStatistics(model)

    def take(
        self,
        chosen: Tensor,
        seed: int,
        at_once: int,
        stop: StopRequest | None,
        told: Callable[[int, int], None],
    ) -> tuple[Tensor, Tensor]:
        """() loss of a step and () how many of its digits were right.

        `at_once` is how many clips a process is known to have memory for, 0 for all of its; `told` hears of each number
        that was too much, and of the next. A matter of where training stands and of the number of parts, however much
        was tried before.
        """
        self.statistics.keep()
        most = max(LEAST, self.objective.clips(len(chosen)) // self.team.world)
        known = min(at_once or most, most)

        def fewer(clips: int, then: int) -> None:
            self.statistics.put_back()
            told(clips, then)

        found, _ = halving(
            lambda size: self.team.tried(lambda: self._of(chosen, seed, parts_of(most, size), stop)),
            known,
            LEAST,
            fewer,
        )
        return found

    def _of(self, chosen: Tensor, seed: int, parts: int, stop: StopRequest | None) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        for parameter in self.model.parameters():
            parameter.grad = None
        batch = self.objective.batch(chosen)
        cut = batch.parts(parts) if parts > 1 else [batch]
        kind = batch.labels.device.type
        losses, right = [], []
        with self.statistics.moved_by(parts):
            for number, part in enumerate(cut, 1):
                last = number == len(cut)
                with (
                    self.team.hearing(self.heard, part, last) as network,
                    torch.autocast(kind, dtype=self.dtype, enabled=self.dtype is not None),
                ):
                    heard = network(part.waveforms, ready=True) if part.ready else network(part.waveforms)
                loss = self.objective.loss(heard, part)
                losses.append(loss.detach())
                right.append((heard.scores[: len(part.labels)].argmax(dim=1) == part.labels).sum())
                if last:
                    of_all = torch.stack(right).sum()
                    share = of_all if batch.held_by == 1 else of_all / batch.held_by
                    self.team.bring(torch.stack(losses).sum(), share, stop)
                torch.autograd.backward(self.scaler.scale(loss))
        return self.team.brought()
