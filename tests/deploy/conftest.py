"""Versions made of a few bytes, and the script that is killed while it makes them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from digit_detector.versions import Version
from ml_training.deploy import version_store


@pytest.fixture(scope="session")
def killed() -> ModuleType:
    path = Path(__file__).with_name("killed.py")
    spec = importlib.util.spec_from_file_location("killed_versions", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def make(killed: ModuleType, tmp_path: Path) -> Callable[..., Version]:
    """Add a version whose model.onnx is the word given, to the pipeline's folder models/mfcc_classifier."""

    def add(word: str, folder: Path = tmp_path / "models" / "mfcc_classifier", **options: object) -> Version:
        made = tmp_path / f"made_{word}"
        made.mkdir(exist_ok=True)
        for name in ("best_model.pt", "model.onnx", "scaler.pkl"):
            (made / name).write_text(word if name == "model.onnx" else f"{name} of {word}", encoding="utf-8")
        metrics = {"official": {"tiny": {"accuracy": 0.9, "clips": 100}}}
        version: Version = version_store.add(folder, made, killed.origin(weights_hash=word), metrics, **options).version
        return version

    return add


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The pipeline's folder that `make` adds to."""
    return tmp_path / "models" / "mfcc_classifier"
