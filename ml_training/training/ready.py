"""Features that do not change, computed once: for validation always, for training where nothing varies the clips.

With a cache in use they are there for the next run too. Where they are used does not depend on there being one, and
they are computed by the same clips at once: a run has the same bits with a cache and without.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ml_training.config import TrainConfig
from ml_training.data import cache
from ml_training.data.array_file import Block, Key
from ml_training.data.rows import Rows, Source, identity_of
from ml_training.pipelines import base, features
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.training.setup import CPU, Clips, OnDisk, Sound, step_seed

AT_ONCE = 256  # clips


def build_model(pipeline: Pipeline, config: TrainConfig, train: Clips) -> DigitModel:
    """A fresh model of a pipeline, its weights decided by the seed, its features by the training clips."""
    torch.manual_seed(step_seed(config.seed, 0, 0))
    model = pipeline.model(config.width)
    model.configure(config.augmenting)
    fit_statistics(model, train)
    return model


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


def features_for_training(model: nn.Module, waveforms: Tensor) -> Tensor | None:
    """(B, 8000) new clips -> (B, ...) features beside those that were ready."""
    assert isinstance(model, DigitModel)
    return model.features(waveforms, answering=False)


def features_of(model: DigitModel, clips: Clips, answering: bool) -> Sound | None:
    """(N, ...) features of clips, on disk where these are too; None where the model has none or there are no clips."""
    if not len(clips) or _few(model, clips, 0, 1, answering) is None:
        return None

    def key() -> Key:
        return {"clips": clips.identity or _identity(clips.waveforms), "answering": answering, **front_end(model)}

    def blocks() -> Iterator[Block]:
        for start in range(0, len(clips), AT_ONCE):
            found = _few(model, clips, start, start + AT_ONCE, answering)
            assert found is not None
            yield {"features": found.numpy()}

    stored = cache.kept("features", key, blocks, len(clips))
    array = stored.arrays["features"]
    if "features" not in stored.places:
        return torch.from_numpy(array)
    on_disk = OnDisk(Rows([Source(array, stored.places["features"])]))
    return on_disk if isinstance(clips.waveforms, OnDisk) else on_disk[:]


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
        "code": cache.code_hash(*modules),
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


def _identity(waveforms: Sound) -> str:
    return waveforms.rows.identity if isinstance(waveforms, OnDisk) else identity_of(waveforms.cpu().numpy())
