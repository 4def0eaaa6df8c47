"""Features that do not change, computed once: for validation always, for training without augmentation.

The cache in use keeps them for later runs. With a cache and without, they are computed in the same cases and the same
batches, so that a run gives the same bits.
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


def with_features(model: nn.Module, clips: Clips, config: TrainConfig, answering: bool) -> Clips:
    """Clips with the features that `model`, still on the CPU, would compute anew for them each time; or as they are.

    `answering` is for validation. In training, features change where clips are augmented or taught about by others.
    """
    changing = config.augmenting.enabled or config.teacher_dir is not None
    if not isinstance(model, DigitModel) or (not answering and (changing or model.varies)):
        return clips
    return replace(clips, features=features_of(model, clips, answering))


def fit_statistics(model: DigitModel, train: Clips) -> None:
    """Let a model learn the normalisation of its features, if it has one, from training clips."""
    found = None
    if type(model).fit_features is not DigitModel.fit_features:
        found = features_of(model, train, answering=False)
    if found is not None:
        model.fit_features(found[:])
    elif type(model).fit_statistics is not DigitModel.fit_statistics:
        model.fit_statistics(train.waveforms[:])


def features_of(model: DigitModel, clips: Clips, answering: bool) -> Rows | None:
    """(N, ...) features of clips, memory-mapped where these are; None of no clips or where the model has none."""
    if not len(clips) or _few(model, clips, 0, 1, answering) is None:
        return None

    def key() -> Key:
        return {"clips": _content_hash(clips.waveforms), "answering": answering, **front_end(model)}

    def blocks() -> Iterator[Block]:
        for start in range(0, len(clips), AT_ONCE):
            found = _few(model, clips, start, start + AT_ONCE, answering)
            assert found is not None
            yield {"features": found.numpy()}

    array = feature_cache.get_or_compute("features", key, blocks, len(clips))["features"]
    if not isinstance(array, np.memmap):
        return torch.from_numpy(array)
    mapped = MappedRows(array, np.arange(len(array)))
    return mapped if isinstance(clips.waveforms, MappedRows) else mapped[:]


def front_end(model: DigitModel) -> dict[str, str]:
    """What decides the features of a clip: code, tables, and what computes them."""
    own = [kind.__module__ for kind in type(model).__mro__ if issubclass(kind, DigitModel)]
    inner = [type(module).__module__ for module in model.modules() if not type(module).__module__.startswith("torch.")]
    modules = sorted({*own, *inner, base.__name__, features.__name__, __name__})
    tables = hashlib.sha256()
    learnt = model.state_dict().keys()
    for name, table in model.named_buffers():
        if name not in learnt:
            tables.update(f"{name} {tuple(table.shape)} {table.dtype}\n".encode())
            tables.update(table.detach().cpu().contiguous().numpy().tobytes())
    return {
        "model": f"{type(model).__module__}.{type(model).__qualname__}",
        "code": feature_cache.source_hash(*modules),
        "tables": tables.hexdigest(),
        # The last bits depend on these.
        "torch": f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {sys.platform}",
        "threads": str(torch.get_num_threads()),
    }


@torch.no_grad()
def _few(model: DigitModel, clips: Clips, start: int, end: int, answering: bool) -> Tensor | None:
    mode = model.training
    model.eval()  # a mode of training may vary them
    try:
        return model.features(clips.waveforms[start:end].to(CPU), answering)
    finally:
        model.train(mode)


def _content_hash(waveforms: Rows) -> str:
    """SHA-256 of the values, wherever they lie."""
    digest = hashlib.sha256(f"{len(waveforms)}\n".encode())
    for start in range(0, len(waveforms), AT_ONCE):
        digest.update(waveforms[start : start + AT_ONCE].cpu().contiguous().numpy().data)
    return digest.hexdigest()
