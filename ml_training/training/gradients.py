"""Gradients of one training step, accumulated over micro-batches when memory does not hold the batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from digit_detector.memory import halving
from ml_training.training.task import Task

MIN_CLIPS = 2  # of a micro-batch: one clip has no batch statistics


def micro_batches(clips: int, limit: int) -> int:
    """How many micro-batches of at most `limit` clips a batch needs; one may have a clip more, none has only one."""
    return max(1, min(-(-clips // limit), clips // MIN_CLIPS))


def compute_gradients(
    model: nn.Module, network: nn.Module, task: Task, step: int, seed: int, limit: int, dtype: torch.dtype | None,
    scaler: torch.amp.GradScaler, on_split: Callable[[int, int], None],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Put the gradients of a step into `model.parameters()`; returns () loss and (2,) counts.

    `network` is `model`, or what torch.compile or DistributedDataParallel made of it; the latter never splits a batch,
    for all ranks would have to split it alike. `limit` is how many clips memory is known to hold, 0 for all;
    `on_split` is called with each number that was too many and the next one. The result depends on the step, `seed` and
    the number of micro-batches, not on failed attempts.
    """
    parameters = list(model.parameters())
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    clips = max(MIN_CLIPS, task.clips(step))

    def attempt(size: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = None
        count = micro_batches(clips, size)
        batch = task.batch(step)
        losses, counts = [], []
        with shared_momentum(norms, count):
            for part in task.split(batch, count) if count > 1 else [batch]:
                device = parameters[0].device.type
                with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                    outputs = task.forward(network, part)
                loss, counted = task.loss(outputs, part)
                losses.append(loss.detach())
                counts.append(counted)
                torch.autograd.backward(scaler.scale(loss))
        return torch.stack(losses).sum(), torch.stack(counts).sum(dim=0)

    if isinstance(network, nn.parallel.DistributedDataParallel):
        return attempt(clips)
    statistics = [buffer for layer in norms for buffer in layer.buffers()]
    saved = [buffer.clone() for buffer in statistics]

    def split(too_many: int, fewer: int) -> None:
        with torch.no_grad():
            for buffer, value in zip(statistics, saved, strict=True):
                buffer.copy_(value)
        on_split(too_many, fewer)

    return halving(attempt, min(limit or clips, clips), MIN_CLIPS, split)[0]


@contextlib.contextmanager
def shared_momentum(norms: Sequence[_BatchNorm], count: int) -> Iterator[None]:
    """Let `count` micro-batches together move the running statistics of batch norms as far as one batch would.

    Each is normalised by its own mean and variance: that micro-batches lead to other weights than a whole batch is due
    to this, to dropout and to rounding alone.
    """
    before = [layer.momentum for layer in norms]
    for layer in norms:
        if layer.momentum is not None and count > 1:  # None is the mean of all batches
            layer.momentum = 1 - (1 - layer.momentum) ** (1 / count)
    try:
        yield
    finally:
        for layer, momentum in zip(norms, before, strict=True):
            layer.momentum = momentum
