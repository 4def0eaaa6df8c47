"""Precomputed features: the same bits with a cache and without, in memory and on disk, and never outdated ones."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from digit_detector.labels import MEL_CNN, MFCC
from ml_training.config import AugmentationConfig, TrainConfig
from ml_training.data.feature_cache import FOLDER_VARIABLE, Cache, use_cache
from ml_training.pipelines import get_pipeline
from ml_training.training import precomputed_features
from ml_training.training.batches import Clips
from ml_training.training.checkpoint import BEST, weights_hash
from ml_training.training.classification import build_model, predict_batches
from ml_training.training.experiment import run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def trained(recordings: Path, place: Path, pipeline: str, **changes: Any) -> tuple[str, list[float]]:
    config = TrainConfig(
        pipeline=pipeline, dataset="folder", data_dir=str(recordings), models_dir=str(place / "models"),
        log_dir=str(place / "logs"), device="cpu", epochs=2, synthetic_voices=2, **changes,
    )  # fmt: skip
    (result,) = run(config).results
    saved = torch.load(place / "models" / f"{pipeline}_classifier" / BEST, weights_only=True)
    return weights_hash(saved["weights"]), [record.validation_loss for record in result.history]


@pytest.mark.parametrize("augmented", [False, True])
def test_a_training_has_the_same_bits_without_a_cache_filling_one_with_a_full_one_and_from_disk(
    augmented: bool, tiny_folder: Path, tmp_path: Path, folder: Path
) -> None:
    settings: dict[str, Any] = {"augmentation": AugmentationConfig(enabled=augmented)}
    without = trained(tiny_folder, tmp_path / "0", MFCC, cache=False, **settings)
    assert not folder.exists()
    assert trained(tiny_folder, tmp_path / "1", MFCC, **settings) == without
    made = {entry.kind: entry.path.stat().st_mtime_ns for entry in Cache().entries()}
    assert set(made) >= {"recordings", "features", "words"}
    assert trained(tiny_folder, tmp_path / "2", MFCC, **settings) == without
    assert trained(tiny_folder, tmp_path / "3", MFCC, clip_storage="mapped", **settings) == without
    assert {entry.kind for entry in Cache().entries()} == set(made), "nothing was made again under another name"


@pytest.mark.parametrize("pipeline", [MFCC, MEL_CNN])
@pytest.mark.parametrize("inference", [False, True])
def test_a_network_says_of_features_what_it_says_of_the_clips(
    pipeline: str, inference: bool, tiny: ModuleType, tmp_path: Path
) -> None:
    clips = tiny.bursts(30)
    model = built(pipeline, clips)
    with use_cache(Cache(tmp_path)):
        features = precomputed_features.compute_features(model, clips, inference)
    assert features is not None
    if inference:
        outputs, of_features = (
            predict_batches(model, clips.waveforms, 30),
            predict_batches(model, features, 30, precomputed=True),
        )
        assert torch.equal(outputs.digit_logits, of_features.digit_logits)
        assert torch.equal(outputs.presence_logit, of_features.presence_logit)


def built(pipeline: str, clips: Clips) -> Any:
    config = TrainConfig(augmentation=AugmentationConfig(enabled=False))
    found = get_pipeline(pipeline)
    return build_model(found, config.resolve(pipeline, found.recipe), clips)


def test_other_clips_another_mode_and_another_front_end_have_other_entries(tiny: ModuleType, tmp_path: Path) -> None:
    clips = tiny.bursts(30)
    model = built(MFCC, clips)
    with use_cache(kept := Cache(tmp_path)):
        for _ in range(2):
            precomputed_features.compute_features(model, clips, True)
        assert (kept.hits, kept.misses) == (1, 1)
        precomputed_features.compute_features(model, tiny.bursts(30, seed=1), True)
        precomputed_features.compute_features(model, clips, False)
        name, table = next((n, b) for n, b in model.named_buffers() if n not in model.state_dict())
        table.mul_(1.001)
        precomputed_features.compute_features(model, clips, True)
    assert (kept.hits, kept.misses) == (1, 4), name
