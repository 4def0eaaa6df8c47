"""Seeds of steps, deterministic algorithms, CPU threads, the device and the precision of a training."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator

import torch

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig

CPU = torch.device("cpu")


def step_seed(seed: int, epoch: int, step: int, rollbacks: int = 0) -> int:
    """63 random bits that follow from the position in a training. Step -1 is the order of the clips."""
    digest = hashlib.blake2b(f"{seed},{epoch},{step},{rollbacks}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def choose_device(config: TrainConfig) -> torch.device:
    """The device to train on. Raises ConfigError when CUDA is wanted but missing."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ConfigError(["device is 'cuda', but torch finds no CUDA device: use cpu or auto"])
    return torch.device("cuda" if available and config.device != "cpu" else "cpu")


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None for plain float32.

    Raises ConfigError for fp16 on a CPU, where torch would silently compute in bfloat16.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(["precision fp16 needs a CUDA device: on a CPU use fp32, or bf16 where it is faster"])
    if config.precision == "auto" and device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= (5, 3) else torch.bfloat16
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.precision)


@contextlib.contextmanager
def deterministic(compiling: bool = False) -> Iterator[None]:
    """Deterministic algorithms where torch has them; the previous mode comes back afterwards.

    `compiling` sets the mode for torch.compile too, which has to load the compiler for that: a second.
    """
    mode = torch.get_deterministic_debug_mode()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if compiling:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and we read none
    try:
        yield
    finally:
        if compiling:
            torch.use_deterministic_algorithms(False)
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads in torch, 0 for torch's own choice; and set what CUDA needs to be deterministic."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
