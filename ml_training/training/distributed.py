"""Distributed data parallel (DDP) training, started by torchrun or Ray Train: one process per rank.

Each rank takes its share of every batch, with random numbers and batch statistics of its own, and
DistributedDataParallel averages the gradients, so weights are equal on all ranks. Rank 0 validates, writes checkpoints
and reports.
"""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from digit_detector.cli.torchrun_env import print_on_local_rank_zero, torchrun_rank
from digit_detector.errors import ConfigError, DataError, DigitError, PeerLostError
from ml_training.config import TrainConfig
from ml_training.training.seeding import choose_device, choose_precision

_TIMEOUT = timedelta(hours=1)  # rank 0 may load recordings, or test and export a model, while the others wait


class SingleProcess:
    """What the training loop needs from a process group; this implementation is one process alone."""

    rank, world_size = 0, 1

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module whose backward pass averages gradients over all ranks."""
        return model

    def reduce_step(self, loss: Tensor, counts: Tensor, signum: int | None) -> tuple[Tensor, Tensor, int | None]:
        """() loss and (2,) counts of this rank's share -> mean loss, sum of counts, stop signal of any rank."""
        return loss, counts, signum

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        """Run the body on local rank 0 of each machine before the others, which then find what it cached."""
        yield

    def check_same(self, what: str, digest: bytes) -> None:
        """Raise DataError where ranks have different digests."""

    def broadcast(self, *numbers: float) -> list[float]:
        """The numbers of rank 0."""
        return list(numbers)

    def broadcast_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Tensors and plain values of rank 0."""
        return state

    def barrier(self) -> None:
        """Wait until all ranks have come here."""


class ProcessGroup(SingleProcess):
    """The default group of torch.distributed, with this rank's tensors on `device`."""

    def __init__(self, device: torch.device, local_rank: int) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.device, self.local_rank = device, local_rank

    def wrap(self, model: nn.Module) -> nn.Module:
        return nn.parallel.DistributedDataParallel(model)

    def reduce_step(self, loss: Tensor, counts: Tensor, signum: int | None) -> tuple[Tensor, Tensor, int | None]:
        totals = torch.cat([loss[None].double(), counts.double()]).cpu()
        largest = torch.tensor(signum or 0)
        dist.all_reduce(totals)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        mean_loss, all_counts = (totals[0] / self.world_size).float(), totals[1:].long()
        return mean_loss.to(loss.device), all_counts.to(loss.device), int(largest) or None

    @contextlib.contextmanager
    def local_rank_zero_first(self) -> Iterator[None]:
        if self.local_rank:
            self.barrier()
        yield
        if not self.local_rank:
            self.barrier()

    def check_same(self, what: str, digest: bytes) -> None:
        own = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        every = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(every, own)
        others = [str(rank) for rank, digest_ in enumerate(every) if not torch.equal(digest_, every[0])]
        if others:
            raise DataError(
                f"process {', '.join(others)} of {self.world_size} has other {what} than process 0: "
                "give all of them the same files and the same flags"
            )

    def broadcast(self, *numbers: float) -> list[float]:
        values = torch.tensor(numbers, dtype=torch.float64)
        dist.broadcast(values, 0)
        return [float(value) for value in values]

    def broadcast_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        # Not broadcast_object_list, which unpickles.
        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save(state, buffer)
        (size,) = self.broadcast(buffer.tell())
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        dist.broadcast(content, 0)
        received: dict[str, Any] | None = torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
        return received

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1))


@contextlib.contextmanager
def process_group(config: TrainConfig, resume_command: str) -> Iterator[SingleProcess]:
    """The process group of torchrun or Ray Train, SingleProcess without them.

    Raises ConfigError for settings that DDP does not support, PeerLostError where another process is gone or cannot be
    reached; its message names `resume_command`.
    """
    place = torchrun_rank()
    if place is None:
        yield SingleProcess()
        return
    with print_on_local_rank_zero():
        if config.compile:
            raise ConfigError([f"compile: not supported with {place.world_size} processes, leave --compile out"])
        device = choose_device(config)
        choose_precision(config, device)
    backend = "gloo"
    if device.type == "cuda":
        device = torch.device("cuda", place.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        if place.local_world_size <= torch.cuda.device_count():  # NCCL needs a GPU for each process
            backend = "cpu:gloo,cuda:nccl"
    try:
        if not dist.is_initialized():  # Ray Train has done it
            dist.init_process_group(backend, timeout=_TIMEOUT)
        yield ProcessGroup(device, place.local_rank)
    except Exception as error:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun's, which would cut the message short
        who = f"process {place.rank} of {place.world_size}"
        if _is_connection_error(error):
            reason = " ".join(str(error).split())[:200]
            raise PeerLostError(
                f"{who} lost another one ({reason}); to resume from the last checkpoint: {resume_command}"
            ) from error
        if isinstance(error, DigitError) and place.rank:
            error.args = (f"{who}: {error}",)
        raise
    finally:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.destroy_process_group()


def _is_connection_error(error: Exception) -> bool:
    """Whether a collective failed because of another process: gloo raises a bare RuntimeError, others a DistError."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
