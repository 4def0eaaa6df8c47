"""Small versions: their model.onnx is one word."""

from dataclasses import replace

import pytest

from digit_detector.versions import Provenance, Version
from ml_training.deploy import version_store

PROVENANCE = Provenance(
    pipeline="mfcc", data="tiny", data_hash="ab" * 32, synthetic=False, split="official", git_commit="c" * 40,
    package_version="0.1.0", settings={"epochs": 3, "augmentation": {"time_shift": 1.0}}, training={"best_epoch": 2},
    weights_hash="w",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """The pipeline's folder that `make` adds to."""
    return tmp_path / "models" / "mfcc_classifier"


@pytest.fixture
def make(folder, tmp_path):
    """Add a version with the given word as model.onnx; with `bare`, without other files."""

    def add(word, bare=False, **options):
        made = tmp_path / f"made_{word}"
        made.mkdir(exist_ok=True)
        (made / "model.onnx").write_text(word, encoding="utf-8")
        for name in () if bare else ("best_model.pt", "scaler.pkl"):
            (made / name).write_text(f"{name} of {word}", encoding="utf-8")
        metrics = {"official": {"tiny": {"accuracy": 0.9, "clips": 100}}}
        provenance = replace(PROVENANCE, weights_hash=word)
        version: Version = version_store.add(folder, made, provenance, metrics, **options).version
        return version

    return add
