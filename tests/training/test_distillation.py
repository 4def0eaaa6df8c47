"""Distillation: the mean of the teachers, which files teach, and that a student learns from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from digit_detector.errors import CheckpointError, DataError
from digit_detector.labels import PIPELINES
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel
from ml_training.training import distillation
from ml_training.training.checkpoint import BEST
from ml_training.training.distillation import EnsembleTeacher
from ml_training.training.seeding import CPU
from ml_training.training.trainer import NullCallback, Training

OTHERS = 30


@pytest.fixture
def of_tiny(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network of any pipeline that a checkpoint names is the tiny one."""
    monkeypatch.setattr(distillation, "get_pipeline", lambda name: tiny.TINY)


def save(tiny: ModuleType, model: DigitModel, folder: Path) -> Path:
    """Write the model as a training does."""
    path: Path = tiny.store(folder, tiny.config()).save_best(1, model.state_dict(), {"loss": 1.0, "accuracy": 0.5})
    return path


def tiny_model(tiny: ModuleType, seed: int, temperature: float = 1.0) -> DigitModel:
    torch.manual_seed(seed)
    model: DigitModel = tiny.TinyModel()
    model.temperature.fill_(temperature)
    return model.eval()


@pytest.fixture(scope="module")
def contrary(tiny: ModuleType) -> DigitModel:
    """A model that calls each digit by the name of the next one, a digit a hiss and a hiss a digit."""
    model: DigitModel = tiny.TinyModel()
    model.load_state_dict(tiny.train(tiny.config(epochs=16, negative_ratio=0.25), others=OTHERS).best_weights)
    last: Any = model.layers[-1]  # type: ignore[index]
    with torch.no_grad():
        for rows in (last.weight, last.bias):
            rows.copy_(torch.cat([rows[:10].roll(1, dims=0), -rows[10:]]))
    return model.eval()


@pytest.mark.usefixtures("of_tiny")
@pytest.mark.parametrize("count", [1, 3])
def test_several_give_their_mean_whatever_their_temperature(tiny: ModuleType, tmp_path: Path, count: int) -> None:
    models = [tiny_model(tiny, seed, temperature=1.0 + 3 * seed) for seed in range(count)]
    for number, model in enumerate(models):
        save(tiny, model, tmp_path / f"seed{number}" / "mfcc_classifier")
    clips = tiny.bursts(7).waveforms
    with torch.no_grad():
        outputs = torch.stack([model.forward_waveform(clips) for model in models])
    digits, presence = EnsembleTeacher(str(tmp_path), CPU).predict_proba(clips)
    torch.testing.assert_close(digits, outputs[:, :, :10].softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(presence, outputs[:, :, 10].sigmoid().mean(dim=0))


@pytest.mark.parametrize("name", PIPELINES)
def test_each_pipeline_can_teach(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    model, clips = get_pipeline(name).build().eval(), tiny.bursts(4).waveforms
    store = tiny.store(tmp_path, tiny.config())
    store.identity = replace(store.identity, pipeline=name)
    store.save_best(1, model.state_dict(), {})
    with torch.no_grad():
        outputs = model.forward_waveform(clips)
    digits, presence = EnsembleTeacher(str(tmp_path), CPU).predict_proba(clips)
    torch.testing.assert_close(digits, outputs[:, :10].softmax(dim=1))
    torch.testing.assert_close(presence, outputs[:, 10].sigmoid())


@pytest.mark.usefixtures("of_tiny")
def test_all_best_models_in_and_below_the_folder_teach(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("taught", "taught/a/mfcc_classifier", "taught/b/c"):
        save(tiny, tiny_model(tiny, 0), tmp_path / place)
    tiny.store(tmp_path / "taught", tiny.config()).save_epoch(1, {})
    (tmp_path / "taught" / "model.onnx").write_bytes(b"")
    assert len(EnsembleTeacher("~/taught", CPU).models) == 3
    with pytest.raises(DataError, match=r"none has no best_model\.pt"):
        EnsembleTeacher(str(tmp_path / "none"), CPU)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def change(path: Path, **changes: Any) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in {**content, **changes}.items() if value is not None}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "is damaged"),
        (lambda path: torch.save({"weights": {}}, path), "is not a checkpoint of this program"),
        (lambda path: change(path, weights=None), "has no weights to teach with"),
        (lambda path: change(path, pipeline="wavelets"), "cannot teach: .*got 'wavelets'"),
        (lambda path: None, "do not fit this network"),  # its pipeline is mfcc, its weights are not
    ],
)
def test_a_file_that_cannot_teach_is_named(
    tiny: ModuleType, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(save(tiny, tiny_model(tiny, 1), tmp_path))
    with pytest.raises(CheckpointError, match=rf"{BEST} {message}"):
        EnsembleTeacher(str(tmp_path), CPU)


@pytest.mark.usefixtures("of_tiny")
def test_a_student_learns_from_its_teacher_instead_of_the_labels(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path
) -> None:
    save(tiny, contrary, tmp_path)
    clips = tiny.both(40, OTHERS, seed=5)
    is_digit = clips.labels != NOT_A_DIGIT

    def rates(weight: float) -> tuple[float, float, float]:
        """How often a student names the digit, the next digit, and tells digits from hisses."""
        taught = {"teacher_dir": str(tmp_path), "distillation_weight": weight}
        student = tiny.TinyModel()
        config = tiny.config(epochs=16, negative_ratio=0.25, patience=0, **taught)
        tiny.train(config, others=OTHERS, build=lambda: student)
        with torch.no_grad():
            outputs = student.eval().forward_waveform(clips.waveforms)
        predicted, labels = outputs[is_digit, :10].argmax(dim=1), clips.labels[is_digit]
        right = (predicted == labels, predicted == (labels + 1) % 10, (outputs[:, 10] > 0) == is_digit)
        first, second, third = (float(each.float().mean()) for each in right)
        return first, second, third

    by_labels, by_teacher = rates(0.0), rates(1.0)
    assert by_labels[0] > 0.9
    assert by_labels[2] > 0.8
    assert by_teacher[1] > 0.9
    assert by_teacher[2] < 0.35


@pytest.mark.usefixtures("of_tiny")
@pytest.mark.parametrize("negative_ratio", [0.0, 0.25])
def test_the_loss_is_interpolated(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path, negative_ratio: float
) -> None:
    class First(NullCallback):
        loss = 0.0

        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
            self.loss = loss if step == 1 else self.loss

    def train(**changes: Any) -> tuple[float, Training]:
        """The loss of the first step, in which all have the same weights, and the training."""
        first = First()
        config = tiny.config(epochs=1, negative_ratio=negative_ratio, **changes)
        training = tiny.train(config, others=OTHERS, callback=first)
        return first.loss, training

    save(tiny, contrary, tmp_path)
    alone, *taught = (
        train(),
        *(train(teacher_dir=str(tmp_path), distillation_weight=weight) for weight in (0.0, 0.3, 1.0)),
    )
    assert taught[0][0] == alone[0] != taught[2][0]
    assert taught[1][0] == pytest.approx(0.7 * taught[0][0] + 0.3 * taught[2][0])
    assert all(torch.equal(w, taught[0][1].best_weights[name]) for name, w in alone[1].best_weights.items())
