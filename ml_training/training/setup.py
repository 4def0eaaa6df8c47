"""What the training loop is built from: data in memory, device, precision, model, optimiser, seeds."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from digit_detector.errors import CheckpointError, ConfigError
from digit_detector.memory import halving
from ml_training.config import TrainConfig
from ml_training.data.feature_cache import AnyArray
from ml_training.data.mapped_arrays import take
from ml_training.pipelines.base import Heard
from ml_training.results import Floats, Ints

EVALUATION_BATCH = 256

Weights = dict[str, Tensor]
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Some rows of a memory-mapped array: indexing reads the wanted ones into a tensor on `device`."""

    array: AnyArray  # (M, ...)
    rows: Ints  # (N,) positions in it
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, wanted: Tensor | slice) -> Tensor:
        return torch.from_numpy(take(self.array, self.select(wanted).rows)).to(self.device)

    def select(self, wanted: Tensor | slice) -> MappedRows:
        """Some of the rows, by position or mask, without reading them."""
        return replace(self, rows=self.rows[wanted if isinstance(wanted, slice) else wanted.cpu().numpy()])

    def to(self, device: torch.device) -> MappedRows:
        return replace(self, device=device)


Rows = Tensor | MappedRows


@dataclass(frozen=True)
class Clips:
    """One part of the data, in memory or on disk. N clips."""

    waveforms: Rows  # (N, 8000) float32
    lengths: Tensor  # (N,) int64, samples before padding
    labels: Tensor  # (N,) int64, NOT_A_DIGIT where a clip says none
    features: Rows | None = None  # (N, ...) for the one mode of the one model that they were computed for

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, chosen: Tensor) -> Clips:
        """The clips that a mask (N,) names."""
        features = None if self.features is None else _select(self.features, chosen)
        return Clips(_select(self.waveforms, chosen), self.lengths[chosen], self.labels[chosen], features)

    def to(self, device: torch.device) -> Clips:
        features = None if self.features is None else self.features.to(device)
        return Clips(self.waveforms.to(device), self.lengths.to(device), self.labels.to(device), features)


def _select(rows: Rows, chosen: Tensor) -> Rows:
    return rows.select(chosen) if isinstance(rows, MappedRows) else rows[chosen]


def step_seed(seed: int, epoch: int, step: int, rollbacks: int = 0) -> int:
    """63 random bits that follow from where training stands. Step -1 is the order of the clips."""
    digest = hashlib.blake2b(f"{seed},{epoch},{step},{rollbacks}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def choose_device(config: TrainConfig) -> torch.device:
    """The device to train on. Raises ConfigError when CUDA is asked for and not there."""
    there = torch.cuda.is_available()
    if config.device == "cuda" and not there:
        raise ConfigError(["device 'cuda' was asked for, but torch finds no CUDA device here: take cpu or auto"])
    return torch.device("cuda" if there and config.device != "cpu" else "cpu")


def choose_precision(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None for plain float32.

    Raises ConfigError for fp16 on a CPU, where torch would quietly compute in bfloat16.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise ConfigError(["precision fp16 needs a CUDA device: on a CPU take fp32, or bf16 where it is faster"])
    if config.precision == "auto" and device.type == "cuda":
        return torch.float16 if torch.cuda.get_device_capability(device) >= (5, 3) else torch.bfloat16
    return {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.precision)


def compiled(model: nn.Module) -> nn.Module:
    """The same network with its weights, compiled when it is first asked."""
    return cast(nn.Module, torch.compile(model))


def predict(model: nn.Module, waveforms: Rows) -> Heard:
    """What a model makes of (N, 8000) clips, in float32, in evaluation mode; fewer at once where memory is short."""
    return halving(lambda at_once: predict_by(at_once, model, waveforms), EVALUATION_BATCH, 1, _unheeded)[0]


def predict_by(at_once: int, model: nn.Module, waveforms: Rows, precomputed: bool = False) -> Heard:
    """As `predict`, so many clips at once and no fewer; of features where they are `precomputed`."""
    model.eval()
    # Networks that know no features, as those of tests and examples, take one argument.
    more = {"precomputed": True} if precomputed else {}
    with torch.no_grad():
        parts = [
            model(waveforms[start : start + at_once], **more) for start in range(0, max(1, len(waveforms)), at_once)
        ]
    return Heard(*(torch.cat([outputs.float() for outputs in each]) for each in zip(*parts, strict=True)))


def _unheeded(_too_much: int, _next: int) -> None:
    pass  # answers do not depend on who is asked along


def predict_probabilities(model: nn.Module, waveforms: Tensor) -> Floats:
    """(N, 8000) -> (N, 10) probabilities in float32, in evaluation mode."""
    probabilities: Floats = predict(model, waveforms).scores.softmax(dim=1).cpu().numpy().astype(np.float32)
    return probabilities


def load_weights(model: nn.Module, weights: Weights, where: Path | str) -> None:
    """Put trained weights into a model. Raises CheckpointError when they are of another network."""
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"the weights in {where} do not fit this network ({reason}): train anew") from error


def weights_hash(weights: Weights) -> str:
    """SHA-256 of all values of a model, buffers included."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW or Adam; biases and normalisation weights (vectors) do not decay."""
    assert config.learning_rate is not None
    assert config.weight_decay is not None
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    there = [group for group in groups if group["params"]]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(there, lr=config.learning_rate, fused=True)


def copied(value: Any) -> Any:
    """A deep copy whose tensors are on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v) for v in value)
    return value


@contextlib.contextmanager
def deterministic(compiling: bool = False) -> Iterator[None]:
    """Deterministic algorithms wherever torch has them; the process's own choice comes back afterwards.

    `compiling` networks asks their compiler for them too, which has to be loaded for that: a second that others keep.
    """
    before = torch.get_deterministic_debug_mode()
    filling = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if compiling:
        torch.use_deterministic_algorithms(True, warn_only=True)
    else:
        torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it costs time, we read none
    try:
        yield
    finally:
        if compiling:
            torch.use_deterministic_algorithms(False)
        torch.set_deterministic_debug_mode(before)
        torch.utils.deterministic.fill_uninitialized_memory = filling  # type: ignore[attr-defined]


def peak_memory_mb() -> float:
    """The most memory this process ever held, in MB; NaN where the system does not tell (Windows)."""
    if sys.platform == "win32":
        return math.nan
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """So many CPU threads for torch, 0 for its own choice; and what CUDA needs to be deterministic."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
