"""What a step hears and what it costs: clips without a digit beside the digits, both kinds of equal weight."""

from __future__ import annotations

import math
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.training.objective import detection_loss
from ml_training.training.setup import predict

OTHERS = 30


def test_what_is_no_digit_is_learnt_beside_the_digits(tiny: ModuleType) -> None:
    config = tiny.config(epochs=16, negative_share=0.25)
    training = tiny.train(config, others=OTHERS)
    assert training.history[-1].validation_accuracy == 1.0
    model, unheard = tiny.TinyModel(), tiny.both(60, 60, seed=9)
    model.load_state_dict(training.best_weights)
    scores, is_digit = predict(model, unheard.waveforms).digit, unheard.labels != NOT_A_DIGIT
    assert (scores[~is_digit] < 0).all()
    assert scores[is_digit].min() > scores[~is_digit].max()


def test_without_a_share_they_change_nothing(tiny: ModuleType) -> None:
    config = tiny.config(epochs=2)
    torch.manual_seed(0)
    with_them = tiny.train_model(tiny.TinyModel(), tiny.both(81, 9), tiny.bursts(20), config)
    torch.manual_seed(0)
    clips = tiny.both(81, 9)
    alone = tiny.train_model(tiny.TinyModel(), clips.select(clips.labels != NOT_A_DIGIT), tiny.bursts(20), config)
    assert all(torch.equal(weights, alone.best_weights[name]) for name, weights in with_them.best_weights.items())
    assert [r.train_loss for r in with_them.history] == [r.train_loss for r in alone.history]


def test_the_validation_loss_counts_them_and_the_accuracy_does_not(tiny: ModuleType) -> None:
    config = tiny.config(epochs=3, negative_share=0.25)
    training = tiny.train(config, others=OTHERS)
    model, clips = tiny.TinyModel(), tiny.both(20, OTHERS, seed=1)
    model.load_state_dict(training.best_weights)
    heard, is_digit = predict(model, clips.waveforms), clips.labels != NOT_A_DIGIT
    scores, labels = heard.scores[is_digit].double(), clips.labels[is_digit]
    smoothed = is_digit.double() * 0.9 + 0.05
    missed = F.binary_cross_entropy_with_logits(heard.digit.double(), smoothed, reduction="none")
    loss = (
        F.cross_entropy(scores, labels, label_smoothing=0.1) + (missed[is_digit].mean() + missed[~is_digit].mean()) / 2
    )
    best = training.history[training.best_epoch - 1]
    assert config.label_smoothing == 0.1
    assert best.validation_loss == pytest.approx(float(loss), abs=1e-6)
    assert best.validation_accuracy == float((scores.argmax(dim=1) == labels).double().mean())


@pytest.mark.parametrize(("share", "beside"), [(0.0, 0), (0.25, 5), (0.5, 16)])
def test_a_step_takes_their_share_and_mixes_digits_alone(
    tiny: ModuleType, share: float, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixed: list[int] = []

    def mix(waveforms: torch.Tensor, labels: torch.Tensor, config: object) -> tuple[torch.Tensor, torch.Tensor]:
        mixed.append(len(waveforms))
        return waveforms, F.one_hot(labels, 10).float()

    class Counting(tiny.TinyModel):  # type: ignore[name-defined, misc]
        heard: list[int] = []  # noqa: RUF012

        def logits(self, waveforms: torch.Tensor) -> torch.Tensor:
            if self.training:
                self.heard.append(len(waveforms))
            scores: torch.Tensor = super().logits(waveforms)
            return scores

    monkeypatch.setattr("ml_training.training.objective.mix", mix)
    plain = tiny.config(epochs=1, negative_share=share)
    settings = replace(plain, augmentation=replace(plain.augmenting, mixup_probability=1.0))
    tiny.train(settings, build=Counting, others=OTHERS)
    assert mixed == [16] * 5
    assert Counting.heard == [16 + beside] * 5


def test_the_clips_themselves_stay_as_they_are(tiny: ModuleType) -> None:
    clips = tiny.both(81, OTHERS)
    before = clips.waveforms.clone()
    for share in (0.0, 0.25):
        augmentation = {"enabled": False, "mixup_probability": 1.0, "cutmix_probability": 0.5}
        config = tiny.config(epochs=1, negative_share=share, augmentation=augmentation)
        tiny.train_model(tiny.TinyModel(), clips, tiny.bursts(20), config)
    assert torch.equal(clips.waveforms, before)


def test_digits_and_others_weigh_the_same_however_many_there_are() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    by_hand = (math.log1p(math.exp(-2.0)) + (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(0.5))) / 2) / 2
    assert float(detection_loss(logits, 1, 0.0)) == pytest.approx(by_hand)
    many = torch.cat([logits, *[logits[1:]] * 9])
    assert float(detection_loss(many, 1, 0.0)) == pytest.approx(by_hand)
    level = torch.zeros(12, requires_grad=True)
    detection_loss(level, 3, 0.0).backward()
    assert level.grad is not None
    assert float(level.grad.sum()) == pytest.approx(0.0, abs=1e-7), "even odds stay even"
    assert float(level.grad[:3].sum()) == pytest.approx(-0.25)


def test_what_is_certain_costs_nothing_unless_targets_are_smoothed() -> None:
    certain = torch.tensor([40.0, 40.0, -40.0])
    assert float(detection_loss(certain, 2, 0.0)) < 1e-6
    best = torch.tensor([math.log(0.95 / 0.05), math.log(0.95 / 0.05), math.log(0.05 / 0.95)], requires_grad=True)
    loss = detection_loss(best, 2, 0.1)
    loss.backward()
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-6, "the least there is"
    assert float(loss.detach()) == pytest.approx(-0.95 * math.log(0.95) - 0.05 * math.log(0.05))
