"""A pipeline that the package does not hold: trained, resumed, exported, answering and reported like the three."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from digit_detector.classifier import load_classifier, model_file
from digit_detector.errors import ConfigError
from digit_detector.labels import PIPELINES, PRETRAINED, model_folder
from digit_detector.processors import load_processors
from ml_training import registry
from ml_training.config import TrainConfig, load_config
from ml_training.pipelines.base import Pipeline

ROOT = Path(__file__).resolve().parents[1]
SPEC = "my_package.strided:STRIDED"
MODULE = """
from torch import Tensor, nn

from ml_training.config import Recipe
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline
from ml_training.pipelines.features import normalise_level


class StridedNetwork(DigitModel):
    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv1d(1, 16, 80, 16), nn.ReLU(), nn.Conv1d(16, 32, 7, 4), nn.ReLU())
        self.scores = nn.Linear(32, OUTPUTS)

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        return self.scores(self.convolutions(normalise_level(waveforms)[:, None, :]).mean(dim=2))


STRIDED = Pipeline("strided", StridedNetwork, Recipe(epochs=2, batch_size=32, learning_rate=0.01, weight_decay=0.0))
NOT_ONE = StridedNetwork
"""


def run(command: str, folder: Path, *words: str | Path) -> str:
    """What a command prints, run in `folder`; both streams."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ml_training.cli", command, *map(str, words)], cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module, and what its training, a resumed one and the export left."""
    folder = tmp_path_factory.mktemp("fourth")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "strided.py").write_text(MODULE)
    flags = ("--data_dir", tiny_folder, "--dataset", "folder", "--synthetic_voices", "2", "--keep_checkpoints", "all")
    run("train", folder, "--pipeline", SPEC, *flags)
    assert "epoch 1" in run("train", folder, "--pipeline", SPEC, *flags, "--resume", "1")
    return folder


def test_training_leaves_model_checkpoints_and_report(trained: Path) -> None:
    models = trained / "models" / "strided_classifier"
    assert {"best_model.pt", "model.onnx", "checkpoint_epoch_002.pt"} <= {path.name for path in models.iterdir()}
    logs = trained / "train_logs"
    assert "strided" in (logs / "plots" / "training_report.html").read_text()
    assert (logs / "plots" / "training_history_strided.png").is_file()
    settings = load_config(next(logs.glob("config_strided*.json")))
    assert TrainConfig(**settings).pipeline == SPEC, "the settings of a run can be used again"


def test_a_checkpoint_finds_its_class_again(trained: Path) -> None:
    before = (trained / "models" / "strided_classifier" / "model.onnx").read_bytes()
    assert "strided" in run("export", trained, "--pipeline", "strided", "--precision", "fp32", "--output", "exported")
    exported = trained / "exported" / "strided_classifier" / "model.onnx"
    assert exported.stat().st_size == pytest.approx(len(before), rel=0.01)


def test_answering_needs_the_file_alone(trained: Path, tiny_folder: Path, tmp_path: Path) -> None:
    models = shutil.copytree(trained / "models", tmp_path / "models")  # away from the module
    clip = tiny_folder / "7_speaker0_0.wav"
    assert "your own strided" in run("predict", tmp_path, "--pipeline", "strided", "--model_dir", "models", clip)
    assert "your own strided" in run("predict", tmp_path, "--model_dir", "models", clip)
    assert load_classifier(models, "strided").predict(clip)["predicted_digit"] in range(10)
    others = shutil.copytree(tiny_folder, tmp_path / "others", ignore=shutil.ignore_patterns("*_4.wav"))
    scored = run("evaluate", tmp_path, "--pipeline", "strided", "--protocol", "strangers", "--folder", others)
    assert "strided" in scored
    assert "strided" in (tmp_path / "evaluation_results" / "evaluation_report.html").read_text()
    assert "1" in run("versions", tmp_path, "list", "--models_dir", "models")
    with pytest.raises(ConfigError, match="strided"):
        load_classifier(models, "stride")


def test_the_ensemble_takes_it(trained: Path, tmp_path: Path) -> None:
    models = shutil.copytree(trained / "models", tmp_path / "models")
    for name in PIPELINES:
        model_folder(models, name).mkdir()
        shutil.copy(model_file(PRETRAINED, name), model_folder(models, name) / "model.onnx")
    assert load_processors(["ensemble"], models)["ensemble"].about["pipelines"] == ", ".join((*PIPELINES, "strided"))
    assert load_processors(["ensemble"])["ensemble"].about["pipelines"] == ", ".join(PIPELINES)


@pytest.fixture
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    monkeypatch.setattr(registry, "_loaded", dict(registry._loaded))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "my_package"]:
        del sys.modules[name]


@pytest.mark.usefixtures("own_registry")
def test_a_registered_pipeline_is_offered_by_name(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    with pytest.raises(ConfigError, match="expected one of all, mfcc, mel_cnn, raw_cnn"):
        TrainConfig(pipeline="strided")
    pipeline = registry.get_pipeline(SPEC)
    assert registry.get_pipeline("strided") is registry.get_pipeline(SPEC) is pipeline
    assert TrainConfig(pipeline="strided").pipelines == ("strided",)
    assert TrainConfig().pipelines == (*PIPELINES, "strided")
    assert TrainConfig(pipeline="strided").resolve("strided", pipeline.recipe).pipeline == SPEC
    other = Pipeline("strided", pipeline.build, pipeline.recipe)
    with pytest.raises(ConfigError, match=SPEC):
        registry.register_pipeline(other)
    assert registry.register_pipeline(pipeline) is pipeline
    for name in ("mine", "mine"):  # a later one replaces an earlier one
        registry.register_pipeline(mine := Pipeline(name, pipeline.build, pipeline.recipe))
    assert registry.get_pipeline("mine") is mine
    for taken in ("mfcc", "not-a-name"):
        with pytest.raises(ConfigError, match=taken):
            registry.register_pipeline(Pipeline(taken, pipeline.build, pipeline.recipe))
    for spec, reason in (
        ("my_package.none:STRIDED", "my_package.none"), ("my_package.strided:NONE", "NONE"),
        ("my_package.strided:NOT_ONE", "expected a Pipeline"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=reason):
            registry.get_pipeline(spec)
