"""The rank that torchrun gave this process, read without importing torch."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

from digit_detector.errors import DigitError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Rank:
    """This process among those of a distributed training, in torchrun's terms."""

    rank: int  # 0 to world_size - 1
    world_size: int
    local_rank: int  # 0 to local_world_size - 1, on this machine
    local_world_size: int
    restarts: int = 0  # how often torchrun has restarted all processes

    @property
    def machines(self) -> int:
        return -(-self.world_size // self.local_world_size)


def torchrun_rank() -> Rank | None:
    """The rank from torchrun's environment variables; None without torchrun, or with a single process."""
    if any(name not in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return None
    rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in _VARIABLES[:4])
    return Rank(rank, world_size, local_rank, local_world_size, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextlib.contextmanager
def print_on_local_rank_zero() -> Iterator[None]:
    """Suppress output, and the text of errors, on every local rank but 0: all ranks would print the same."""
    place = torchrun_rank()
    if place is None or place.local_rank == 0:
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except DigitError as error:
        raise SystemExit(error.exit_code) from None
