"""Learning from trained models: what they say together, who they are, and that a student takes their word for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from digit_detector.errors import CheckpointError, DataError, Interrupted
from digit_detector.labels import PIPELINES
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel
from ml_training.training import distillation as teachers
from ml_training.training.checkpoint import BEST
from ml_training.training.distillation import EnsembleTeacher
from ml_training.training.trainer import NullCallback, Training

CPU = torch.device("cpu")
OTHERS = 30


@pytest.fixture
def of_tiny(tiny: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pipeline a checkpoint names, its network is the tiny one."""
    monkeypatch.setattr(teachers, "get_pipeline", lambda name: tiny.TINY)


def kept(tiny: ModuleType, model: DigitModel, folder: Path) -> Path:
    """The model as a training leaves it."""
    path: Path = tiny.store(folder, tiny.config()).save_best(1, model.state_dict(), {"loss": 1.0, "accuracy": 0.5})
    return path


def tiny_model(tiny: ModuleType, seed: int, temperature: float = 1.0) -> DigitModel:
    torch.manual_seed(seed)
    model: DigitModel = tiny.TinyModel()
    model.temperature.fill_(temperature)
    return model.eval()


@pytest.fixture(scope="module")
def contrary(tiny: ModuleType) -> DigitModel:
    """A model that knows bursts from hisses, and calls each digit by the name of the next and a digit a hiss."""
    config = tiny.config(epochs=16, negative_share=0.25)
    model: DigitModel = tiny.TinyModel()
    model.load_state_dict(tiny.train(config, others=OTHERS).best_weights)
    last: Any = model.layers[-1]  # type: ignore[index]
    with torch.no_grad():
        for rows in (last.weight, last.bias):
            rows.copy_(torch.cat([rows[:10].roll(1, dims=0), -rows[10:]]))
    return model.eval()


def same_weights(first: Training, second: Training) -> bool:
    return all(torch.equal(value, second.best_weights[name]) for name, value in first.best_weights.items())


# --- what they say -------------------------------------------------------------------------------


@pytest.mark.usefixtures("of_tiny")
@pytest.mark.parametrize("count", [1, 3])
def test_several_give_their_mean(tiny: ModuleType, tmp_path: Path, count: int) -> None:
    models = [tiny_model(tiny, seed) for seed in range(count)]
    for number, model in enumerate(models):
        kept(tiny, model, tmp_path / f"seed{number}" / "mfcc_classifier")
    clips = tiny.bursts(7).waveforms
    with torch.no_grad():
        outputs = torch.stack([model.logits(clips) for model in models])
    digits, presence = EnsembleTeacher(str(tmp_path), CPU).predict_proba(clips)
    torch.testing.assert_close(digits, outputs[:, :, :10].softmax(dim=2).mean(dim=0))
    torch.testing.assert_close(presence, outputs[:, :, 10].sigmoid().mean(dim=0))
    torch.testing.assert_close(digits.sum(dim=1), torch.ones(7))


@pytest.mark.usefixtures("of_tiny")
def test_their_temperature_plays_no_part(tiny: ModuleType, tmp_path: Path) -> None:
    kept(tiny, tiny_model(tiny, 0), tmp_path / "plain")
    kept(tiny, tiny_model(tiny, 0, temperature=4.0), tmp_path / "hot")
    clips = tiny.bursts(7).waveforms
    plain, hot = (EnsembleTeacher(str(tmp_path / name), CPU) for name in ("plain", "hot"))
    assert [float(each.models[0].temperature) for each in (plain, hot)] == [1.0, 4.0]
    torch.testing.assert_close(hot.predict_proba(clips), plain.predict_proba(clips), rtol=0, atol=0)


@pytest.mark.parametrize("name", PIPELINES)
def test_each_pipeline_can_teach(tiny: ModuleType, tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = get_pipeline(name).build().eval()
    store = tiny.store(tmp_path, tiny.config())
    store.identity = replace(store.identity, pipeline=name)
    store.save_best(1, model.state_dict(), {})
    clips = tiny.bursts(4).waveforms
    with torch.no_grad():
        outputs = model.logits(clips)
    digits, presence = EnsembleTeacher(str(tmp_path), CPU).predict_proba(clips)
    torch.testing.assert_close(digits, outputs[:, :10].softmax(dim=1))
    torch.testing.assert_close(presence, outputs[:, 10].sigmoid())


# --- who they are --------------------------------------------------------------------------------


@pytest.mark.usefixtures("of_tiny")
def test_all_in_and_below_the_folder_teach_and_nothing_else(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("taught", "taught/a/mfcc_classifier", "taught/b/c"):
        kept(tiny, tiny_model(tiny, 0), tmp_path / place)
    tiny.store(tmp_path / "taught", tiny.config()).save_epoch(1, {})
    (tmp_path / "taught" / "model.onnx").write_bytes(b"")
    assert len(EnsembleTeacher(str(tmp_path / "taught"), CPU).models) == 3
    assert len(EnsembleTeacher("~/taught", CPU).models) == 3


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_models_is_an_error_of_the_data(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "none"
    if there:
        folder.mkdir()
    with pytest.raises(DataError, match=r"teacher_dir .*none has no best_model\.pt: expected a folder of trained"):
        EnsembleTeacher(str(folder), CPU)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def foreign(path: Path) -> None:
    torch.save({"weights": {}}, path)


def without_weights(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    del content["weights"]
    torch.save(content, path)


@pytest.mark.usefixtures("of_tiny")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, r"best_model\.pt is damaged or no checkpoint"),
        (foreign, r"best_model\.pt is not a checkpoint of this program"),
        (without_weights, r"best_model\.pt has no weights to teach with: expected a best_model\.pt of this program"),
    ],
)
def test_a_file_that_cannot_teach_says_why(
    tiny: ModuleType, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    kept(tiny, tiny_model(tiny, 0), tmp_path / "good")
    spoil(kept(tiny, tiny_model(tiny, 1), tmp_path / "bad"))
    with pytest.raises(CheckpointError, match=message):
        EnsembleTeacher(str(tmp_path), CPU)


def test_weights_of_another_network_are_named(tiny: ModuleType, tmp_path: Path) -> None:
    kept(tiny, tiny_model(tiny, 0), tmp_path)  # says mfcc and is none
    with pytest.raises(CheckpointError, match=rf"the weights in .*{BEST} do not fit this network"):
        EnsembleTeacher(str(tmp_path), CPU)


def test_an_unknown_pipeline_cannot_teach(tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = kept(tiny, tiny_model(tiny, 0), tmp_path)
    content = torch.load(path, weights_only=True)
    monkeypatch.setattr(teachers, "load_checkpoint", lambda path: {**content, "pipeline": "wavelets"})
    with pytest.raises(CheckpointError, match=rf"{BEST} cannot teach: .*got 'wavelets'"):
        EnsembleTeacher(str(tmp_path), CPU)


# --- what is learnt ------------------------------------------------------------------------------


@pytest.mark.usefixtures("of_tiny")
def test_a_student_believes_its_teacher_more_than_what_was_said(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path
) -> None:
    kept(tiny, contrary, tmp_path)
    clips = tiny.both(40, OTHERS, seed=5)
    is_digit = clips.labels != NOT_A_DIGIT

    def right(share: float) -> tuple[float, float, float]:
        """How often a student calls a digit by its name, by the name of the next, and tells digits from hisses."""
        config = tiny.config(epochs=16, negative_share=0.25, teacher_dir=str(tmp_path), teacher_share=share, patience=0)
        student = tiny.TinyModel()
        tiny.train(config, others=OTHERS, build=lambda: student)
        with torch.no_grad():
            outputs = student.eval().logits(clips.waveforms)
        said, labels = outputs[is_digit, :10].argmax(dim=1), clips.labels[is_digit]
        found = (said == labels, said == (labels + 1) % 10, (outputs[:, 10] > 0) == is_digit)
        first, second, third = (float(each.float().mean()) for each in found)
        return first, second, third

    own, theirs = right(0.0), right(1.0)
    assert own[0] > 0.9
    assert own[2] > 0.8
    assert theirs[1] > 0.9
    assert theirs[2] < 0.35


@pytest.mark.usefixtures("of_tiny")
@pytest.mark.parametrize("negative_share", [0.0, 0.25])
def test_their_share_decides_how_much_is_theirs(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path, negative_share: float
) -> None:
    class First(NullCallback):
        loss = 0.0

        def step(self, epoch: int, step: int, steps: int, loss: float, accuracy: float, rate: float) -> None:
            self.loss = loss if step == 1 else self.loss

    def trained(**changes: Any) -> tuple[float, Training]:
        """The loss of the first step, which the same weights took whoever taught, and what came of it."""
        first = First()
        config = tiny.config(epochs=1, negative_share=negative_share, **changes)
        training = tiny.train(config, others=OTHERS, callback=first)
        return first.loss, training

    def trained_by(share: float) -> tuple[float, Training]:
        return trained(teacher_dir=str(tmp_path), teacher_share=share)

    kept(tiny, contrary, tmp_path)
    alone, (said, none), (mixed, some), (believed, _) = trained(), *map(trained_by, (0.0, 0.3, 1.0))
    assert said == alone[0] != believed
    assert mixed == pytest.approx(0.7 * said + 0.3 * believed)
    assert same_weights(alone[1], none)
    assert not same_weights(alone[1], some)


@pytest.mark.usefixtures("of_tiny")
def test_they_hear_what_the_student_hears_and_stay_as_they_are(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_student: list[Tensor] = []
    by_teachers: list[Tensor] = []
    there: list[EnsembleTeacher] = []
    hear = EnsembleTeacher.predict_proba

    def listening(self: EnsembleTeacher, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        there[:] = [self]
        by_teachers.append(waveforms.clone())
        return hear(self, waveforms)

    class Listening(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def logits(self, waveforms: Tensor) -> Tensor:
            if self.training:
                by_student.append(waveforms.clone())
            scores: Tensor = super().logits(waveforms)
            return scores

    monkeypatch.setattr(EnsembleTeacher, "predict_proba", listening)
    kept(tiny, contrary, tmp_path)
    before = copy.deepcopy(contrary.state_dict())
    tiny.train(tiny.config(epochs=2, negative_share=0.25, teacher_dir=str(tmp_path)), build=Listening, others=OTHERS)
    assert len(by_teachers) == len(by_student) == 10
    assert all(torch.equal(*pair) for pair in zip(by_student, by_teachers, strict=True))
    assert by_teachers[0].shape == (21, 8000), "digits and what is none"
    ((model,),) = [each.models for each in there]
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.usefixtures("of_tiny")
def test_stopped_and_resumed_with_a_teacher_gives_the_same_bits(
    tiny: ModuleType, contrary: DigitModel, tmp_path: Path
) -> None:
    class Impatient:
        looks = 8

        @property
        def signum(self) -> int | None:
            self.looks -= 1
            return 15 if self.looks < 0 else None

    kept(tiny, contrary, tmp_path / "teachers")
    config = tiny.config(teacher_dir=str(tmp_path / "teachers"))
    whole = tiny.train(config)
    with pytest.raises(Interrupted):
        tiny.train(config, tmp_path / "student", stop=Impatient())
    resumed = tiny.train(replace(config, resume="latest"), tmp_path / "student")
    assert same_weights(whole, resumed)
