"""What a process that torchrun started knows about itself, without loading torch."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

from ml_training.errors import DigitError

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """Which of the processes this is."""

    rank: int  # 0 for the first of all
    world: int  # how many there are
    local_rank: int  # 0 for the first on its machine
    local_world: int  # how many this machine has
    restarts: int = 0  # how often torchrun has started them all again

    @property
    def machines(self) -> int:
        return -(-self.world // self.local_world)


def launched() -> Place | None:
    """The place that torchrun gave this process; None where it started none, or one alone."""
    if any(name not in os.environ for name in _VARIABLES) or os.environ["WORLD_SIZE"] == "1":
        return None
    rank, world, local_rank, local_world = (int(os.environ[name]) for name in _VARIABLES[:4])
    return Place(rank, world, local_rank, local_world, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """While all processes of a machine do the same, let its first speak: the others keep errors and help to themselves.

    For what comes before they have met; then `joined` sees to it.
    """
    place = launched()
    if place is None or place.local_rank == 0:
        yield
        return
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except DigitError as error:
        raise SystemExit(error.exit_code) from None
