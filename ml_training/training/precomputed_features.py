"""Features that do not change, computed once: for validation always, for training without augmentation.

The feature cache keeps them for later runs. With and without a cache they are computed in the same cases and batches,
so that a run gives the same bits.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ml_training.config import TrainConfig
from ml_training.data import feature_cache
from ml_training.data.feature_cache import Block, Key
from ml_training.pipelines import base, features
from ml_training.pipelines.base import DigitModel
from ml_training.training.batches import Clips, MappedRows, Rows
from ml_training.training.seeding import CPU

AT_ONCE = 256  # clips


def with_features(model: nn.Module, clips: Clips, config: TrainConfig, inference: bool) -> Clips:
    """Clips with the features that `model`, still on the CPU, would compute again each time; unchanged without any.

    `inference` is for validation. In training, features change if clips are augmented or shown to a teacher.
    """
    changing = config.full_augmentation.enabled or config.teacher_dir is not None
    if not isinstance(model, DigitModel) or (not inference and (changing or model.is_stochastic)):
        return clips
    return replace(clips, features=compute_features(model, clips, inference))


def fit_normalizer(model: DigitModel, train: Clips) -> None:
    """Fit the feature normalization of a model, if it has one, on training clips."""
    if type(model).fit_normalizer is not DigitModel.fit_normalizer:
        features = compute_features(model, train, inference=False)
        model.fit_normalizer((train.waveforms if features is None else features)[:])


def compute_features(model: DigitModel, clips: Clips, inference: bool) -> Rows | None:
    """(N, ...) features, memory-mapped if the clips are; None without clips or for a model without features."""
    if not len(clips) or _compute_some(model, clips, 0, 1, inference) is None:
        return None

    def key() -> Key:
        return {"clips": _content_hash(clips.waveforms), "inference": inference, **front_end_key(model)}

    def blocks() -> Iterator[Block]:
        for start in range(0, len(clips), AT_ONCE):
            features = _compute_some(model, clips, start, start + AT_ONCE, inference)
            assert features is not None
            yield {"features": features.numpy()}

    array = feature_cache.get_or_compute("features", key, blocks)["features"]
    if not isinstance(array, np.memmap):
        return torch.from_numpy(array)
    mapped = MappedRows(array, np.arange(len(array)))
    return mapped if isinstance(clips.waveforms, MappedRows) else mapped[:]


def front_end_key(model: DigitModel) -> dict[str, str]:
    """Everything that decides the features of a clip: code, tables, torch version, CPU, threads."""
    own = [kind.__module__ for kind in type(model).__mro__ if issubclass(kind, DigitModel)]
    inner = [type(module).__module__ for module in model.modules() if not type(module).__module__.startswith("torch.")]
    modules = sorted({*own, *inner, base.__name__, features.__name__, __name__})
    tables, learnt = hashlib.sha256(), model.state_dict().keys()
    for name, table in model.named_buffers():
        if name not in learnt:
            tables.update(f"{name} {tuple(table.shape)} {table.dtype}\n".encode())
            tables.update(table.detach().cpu().contiguous().numpy().tobytes())
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "code": feature_cache.source_hash(*modules), "tables": tables.hexdigest(),
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {sys.platform}",
        "threads": str(torch.get_num_threads()),
    }  # fmt: skip


@torch.no_grad()
def _compute_some(model: DigitModel, clips: Clips, start: int, end: int, inference: bool) -> Tensor | None:
    mode = model.training
    model.eval()  # features may be random in training mode
    try:
        return model.features(clips.waveforms[start:end].to(CPU), inference)
    finally:
        model.train(mode)


def _content_hash(waveforms: Rows) -> str:
    """SHA-256 of the values, in memory or on disk."""
    digest = hashlib.sha256(f"{len(waveforms)}\n".encode())
    for start in range(0, len(waveforms), AT_ONCE):
        digest.update(waveforms[start : start + AT_ONCE].cpu().contiguous().numpy().data)
    return digest.hexdigest()
