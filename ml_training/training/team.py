"""Several processes that train one model, as torchrun starts them: who they are, and what goes round between them.

Each process holds some of the clips of every step. Gradients are summed by DistributedDataParallel; what batch norms,
losses and requests to stop come to goes round beside them, always as much at once. So a process whose memory is not
enough can say so in the place of whatever the others wait for next, and all take the step again in smaller parts.
"""

from __future__ import annotations

import contextlib
import io
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ml_training.errors import DataError, PeerLostError
from ml_training.pipelines.base import Heard
from ml_training.training.objective import Batch
from ml_training.training.observer import StopRequest
from ml_training.training.rounds import SharedMemory, Sum, all_reduce, can_share_memory
from ml_training.training.setup import Clips
from ml_training.training.whole_batch import Numbers, WholeBatch
from ml_training.utils.memory import is_out_of_memory
from ml_training.utils.signals import STOPS

Answer = TypeVar("Answer")


class Team:
    """What the training loop asks of those it shares the work with; here of nobody: one process trains by itself."""

    rank, world = 0, 1
    training = False  # from when a model is made for it until that is trained: who fails then, fails for all

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """What the first process of a machine does before the others, which then find what it made or fetched."""
        yield

    def agree(self, what: str, told: bytes) -> None:
        """See that all processes say the same. Raises DataError where one does not."""

    def take(self, model: nn.Module) -> None:
        """Begin to train `model`, which becomes that of the first process."""

    @contextlib.contextmanager
    def hearing(self, model: nn.Module, part: Batch, last: bool) -> Iterator[nn.Module]:
        """The network to hear a part of a step with; `last` where its gradients end the step."""
        yield model

    def bring(self, loss: Tensor, right: Tensor, stop: StopRequest | None) -> None:
        """What a step comes to here, said before its last gradients are computed."""
        self._brought = loss, right

    def brought(self) -> tuple[Tensor, Tensor]:
        """() loss of the step and () digits that were right, of all processes."""
        return self._brought

    def stopping(self, stop: StopRequest | None) -> int | None:
        """The signal after which all are to stop; None as long as there is none."""
        return None if stop is None else stop.signum

    def tried(self, work: Callable[[], Answer]) -> Answer:
        """What `work` makes of a step. Where memory is not enough for one process, an error says so in each."""
        return work()

    def some(self, clips: Clips) -> Clips:
        """Those of the clips that this process judges."""
        return clips

    def joined(self, heard: Heard, count: int) -> Heard:
        """What all made of theirs, which are so many together."""
        return heard

    def of_first(self, *numbers: float) -> Sequence[float]:
        """The numbers of the first process, who decides."""
        return numbers

    def state_of_first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Tensors and plain values of the first process."""
        return state

    def wait(self) -> None:
        """Go on when all have come so far."""


class _OthersShortError(MemoryError):
    """Another process had not enough memory for its part of a step."""


class Together(Team):
    """This process as one of the group that torch.distributed knows, its tensors on `device`."""

    def __init__(self, device: torch.device, local_rank: int = 0, one_machine: bool = False) -> None:
        self.rank, self.world, self.device = dist.get_rank(), dist.get_world_size(), device
        self.local_rank = local_rank
        self._shares_memory = one_machine and can_share_memory()
        self._add: Sum = all_reduce
        self._model: nn.Module | None = None
        self._parallel: nn.parallel.DistributedDataParallel | None = None
        self._round = torch.zeros(0, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, torch.futures.Future[Tensor]]] = []
        self._mine: list[Tensor | bool] = []
        self._told: Numbers = self._round.numpy()
        self._signum: int | None = None

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        if self.local_rank:
            self.wait()
        yield
        if not self.local_rank:
            self.wait()

    def agree(self, what: str, told: bytes) -> None:
        mine = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        every = [torch.empty_like(mine) for _ in range(self.world)]
        _going(dist.all_gather, every, mine)
        others = [str(rank) for rank, its in enumerate(every) if not torch.equal(its, every[0])]
        if others:
            raise DataError(
                f"process {', '.join(others)} of {self.world} has other {what} than process 0: "
                "give all of them the same files and the same flags"
            )

    def take(self, model: nn.Module) -> None:
        norms = [layer.num_features for layer in model.modules() if isinstance(layer, _BatchNorm)]
        # Whether there was a shortage, and at most what a batch norm says or a step comes to.
        self._round = torch.zeros(1 + max(2 * max(norms, default=0) + 1, 4), dtype=torch.float64)
        self._model, self._signum = model, None
        if self._shares_memory:
            size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
            size = max(size, 8 * len(self._round))
            self._add = all_reduce
            with contextlib.suppress(OSError):  # slower, but a container with little of it trains all the same
                self._add = SharedMemory(self.rank, self.world, size, self._name_of_first)
        self._make_parallel()

    def _make_parallel(self) -> nn.parallel.DistributedDataParallel:
        assert self._model is not None
        # Batch norms see to their own statistics. Weights and statistics become those of the first process.
        make = partial(nn.parallel.DistributedDataParallel, self._model, forward_sync_buffers=False)
        self._parallel = _going(make)
        self._parallel.register_comm_hook(None, lambda state, bucket: self._sum(bucket))
        self._waiting.clear()
        return self._parallel

    @contextlib.contextmanager
    def hearing(self, model: nn.Module, part: Batch, last: bool) -> Iterator[nn.Module]:
        parallel = self._parallel or self._make_parallel()
        with contextlib.ExitStack() as stack:
            if not last:
                stack.enter_context(parallel.no_sync())
            if part.rows is not None:
                stack.enter_context(WholeBatch(part.rows, part.of.clips, self._exchange))
            yield parallel

    def _exchange(self, values: Numbers) -> Numbers:
        """(V,) -> (V,), the sum over all processes. Raises _OthersShortError where one has not enough memory."""
        size, around = len(values) + 1, self._round.numpy()
        around[1:size] = values
        around[size:] = around[0] = 0.0
        self._go_round()
        return around[1:size].copy()

    def _go_round(self) -> None:
        _going(self._add, self._round)
        if self._round.numpy()[0]:
            raise _OthersShortError("not enough memory in another process")

    def _sum(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Sum gradients when DistributedDataParallel has the last of them ready, and what the step came to before."""
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        self._waiting.append((bucket.buffer(), done))
        if bucket.is_last():
            self._told = self._exchange(np.array([float(value) for value in self._mine]))
            for buffer, summed in self._waiting:
                _going(self._add if self.device.type == "cpu" else all_reduce, buffer)
                summed.set_result(buffer)
            self._waiting.clear()
        return done

    def bring(self, loss: Tensor, right: Tensor, stop: StopRequest | None) -> None:
        signum = None if stop is None else stop.signum
        self._mine = [loss, right, *(signum == kind for kind in STOPS)]

    def brought(self) -> tuple[Tensor, Tensor]:
        loss, right, *asked = self._told
        for kind, count in zip(STOPS, asked, strict=True):
            if count:
                self._signum = int(kind)
        return torch.tensor(loss, device=self.device).float(), torch.tensor(round(right), device=self.device)

    def stopping(self, stop: StopRequest | None) -> int | None:
        return self._signum

    def tried(self, work: Callable[[], Answer]) -> Answer:
        try:
            return work()
        except Exception as error:
            if is_out_of_memory(error):
                self._parallel = None  # it is in the middle of a step that nobody ends
                if not isinstance(error, _OthersShortError):
                    self._round.zero_()
                    self._round[0] = 1
                    with contextlib.suppress(_OthersShortError):
                        self._go_round()
            raise

    def some(self, clips: Clips) -> Clips:
        mine = torch.zeros(len(clips), dtype=torch.bool, device=clips.labels.device)
        mine[self._mine_of(len(clips))] = True
        return clips.of(mine)

    def _mine_of(self, count: int) -> slice:
        return slice(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def joined(self, heard: Heard, count: int) -> Heard:
        both = []
        for mine in heard:
            whole = torch.zeros((count, *mine.shape[1:]), dtype=mine.dtype, device=mine.device)
            whole[self._mine_of(count)] = mine
            _going(dist.all_reduce, whole)
            both.append(whole)
        return Heard(*both)

    def of_first(self, *numbers: float) -> Sequence[float]:
        told = torch.tensor(numbers, dtype=torch.float64)
        _going(dist.broadcast, told, 0)
        return [float(number) for number in told]

    def state_of_first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save(state, buffer)
        size = torch.tensor(buffer.tell())
        _going(dist.broadcast, size, 0)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        _going(dist.broadcast, content, 0)
        found: dict[str, Any] | None = torch.load(io.BytesIO(content.numpy().tobytes()), weights_only=True)
        return found

    def _name_of_first(self, name: str) -> str:
        told = self.state_of_first({"name": name})
        assert told is not None
        return str(told["name"])

    def wait(self) -> None:
        _going(dist.all_reduce, torch.zeros(1))


def _going(work: Callable[..., Answer], *words: Any) -> Answer:
    """What goes round. Raises PeerLostError where somebody it has to pass is gone."""
    try:
        return work(*words)
    except RuntimeError as error:
        with contextlib.suppress(ValueError):  # not in the main thread
            # torchrun ends who is left when one is gone: not before it was told why.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = " ".join(str(error).split())
        short = reason.rpartition("cc:")[2].partition("] ")[2].partition(". ")[0]  # without the place in the source
        raise PeerLostError(short or reason) from error
