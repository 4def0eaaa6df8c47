"""Memory that is available, errors that mean out of memory, and retries with half the size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

# Parts of the messages of numpy, onnxruntime, torch and what they call; the last is oneDNN's.
_SIGNS = ("bad_alloc", "allocate memory", "out of memory", "not enough memory", "_ALLOC_FAILED",
          "could not create a primitive")  # fmt: skip
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of a computation, on a CPU or a GPU, means that memory ran out."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _SIGNS)


def halving(
    compute: Callable[[int], Result], size: int, least: int, report: Callable[[int, int], None]
) -> tuple[Result, int]:
    """Return `compute(size)` and the size; each time memory runs out, try half of it and call `report(size, half)`.

    Raises the error of `compute` where half the size is below `least`.
    """
    while True:
        try:
            return compute(size), size
        except Exception as error:  # the libraries share no narrower base
            if not is_out_of_memory(error) or size // 2 < least:
                raise
        report(size, size // 2)  # here the traceback, which holds the memory of the attempt, is gone
        size //= 2


def available_memory() -> int | None:
    """Bytes that this process may still take, by the machine, its container and RLIMIT_AS; None outside Linux."""
    left = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        left.append(int(fields["MemAvailable"].split()[0]) << 10)
    for limit, used in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # ValueError: "max", there is no limit
            left.append(int((_CGROUP / limit).read_text()) - int((_CGROUP / used).read_text()))
    with contextlib.suppress(ImportError, OSError):  # Windows has no such module
        import resource

        own_limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if own_limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            left.append(own_limit - pages * resource.getpagesize())
    return max(0, min(left)) if left else None
