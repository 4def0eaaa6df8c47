"""How much memory there is, and which errors say that it was not enough."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# What numpy, onnxruntime, torch and what lies below them say. oneDNN, the last, fails so for want of memory.
_SIGNS = (
    "bad_alloc",
    "allocate memory",
    "out of memory",
    "not enough memory",
    "_ALLOC_FAILED",
    "could not create a primitive",
)
_GROUPS = Path("/sys/fs/cgroup")

Answer = TypeVar("Answer")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a computation, on a CPU or a GPU, means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def halving(
    work: Callable[[int], Answer], size: int, least: int, told: Callable[[int, int], None]
) -> tuple[Answer, int]:
    """What `work` makes of `size` or, as often as memory is not enough for that, of half of it; and of which size.

    `told` hears which size was too much and which is next. The error that a size below `least` would follow is raised.
    """
    while True:
        try:
            return work(size), size
        except Exception as error:  # what lies below shares no narrower base
            if not is_out_of_memory(error) or size // 2 < least:
                raise
        # Here nothing holds on any more to what the attempt took.
        told(size, size // 2)
        size //= 2


def available_memory() -> int | None:
    """Bytes that this process may still take: the least that machine, container and its own limit leave.

    None where nobody tells, as outside of Linux.
    """
    left = [_machine(), *_container(), _own_limit()]
    return min((max(0, bytes_left) for bytes_left in left if bytes_left is not None), default=None)


def used_memory() -> int | None:
    """Bytes of this process that lie in memory; None where nobody tells."""
    return _own_pages(1)


def _machine() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _container() -> list[int | None]:
    """By the second version of control groups and by the first, each as a container sees its own."""
    pairs = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    found: list[int | None] = []
    for limit, used in pairs:
        with contextlib.suppress(OSError, ValueError):  # the word "max" is no number: no limit
            found.append(int((_GROUPS / limit).read_text()) - int((_GROUPS / used).read_text()))
    return found


def _own_limit() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, taken = resource.getrlimit(resource.RLIMIT_AS)[0], _own_pages(0)
    return None if limit == resource.RLIM_INFINITY or taken is None else limit - taken


def _own_pages(column: int) -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[column]) * os.sysconf("SC_PAGE_SIZE")
    return None
