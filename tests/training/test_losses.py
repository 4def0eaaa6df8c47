"""The loss: presence beside the digits, both kinds of clips with equal weight."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.training.classification import predict
from ml_training.training.losses import presence_loss

OTHERS = 30


def test_presence_is_learnt_beside_the_digits(tiny: ModuleType) -> None:
    training = tiny.train(tiny.config(epochs=16, negative_ratio=0.25), others=OTHERS)
    assert training.history[-1].validation_accuracy == 1.0
    model, clips = tiny.TinyModel(), tiny.both(60, 60, seed=9)
    model.load_state_dict(training.best_weights)
    presence, is_digit = predict(model, clips.waveforms).presence_logit, clips.labels != NOT_A_DIGIT
    assert (presence[~is_digit] < 0).all()
    assert presence[is_digit].min() > presence[~is_digit].max()


def test_clips_without_a_digit_change_nothing_at_a_ratio_of_0(tiny: ModuleType) -> None:
    clips, trainings = tiny.both(81, 9), []
    for train in (clips, clips.select(clips.labels != NOT_A_DIGIT)):
        torch.manual_seed(0)
        trainings.append(tiny.train_model(tiny.TinyModel(), train, tiny.bursts(20), tiny.config(epochs=2)))
    first, second = trainings
    assert all(torch.equal(weights, second.best_weights[name]) for name, weights in first.best_weights.items())


def test_the_validation_loss_counts_them_and_the_accuracy_does_not(tiny: ModuleType) -> None:
    config = tiny.config(epochs=3, negative_ratio=0.25)
    training = tiny.train(config, others=OTHERS)
    model, clips = tiny.TinyModel(), tiny.both(20, OTHERS, seed=1)
    model.load_state_dict(training.best_weights)
    outputs, is_digit = predict(model, clips.waveforms), clips.labels != NOT_A_DIGIT
    logits, labels = outputs.digit_logits[is_digit].double(), clips.labels[is_digit]
    bce = F.binary_cross_entropy_with_logits(
        outputs.presence_logit.double(), is_digit.double() * 0.9 + 0.05, reduction="none"
    )
    loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + (bce[is_digit].mean() + bce[~is_digit].mean()) / 2
    best = training.history[training.best_epoch - 1]
    assert config.label_smoothing == 0.1
    assert best.validation_loss == pytest.approx(float(loss), abs=1e-6)
    assert best.validation_accuracy == float((logits.argmax(dim=1) == labels).double().mean())


def test_digits_and_negatives_weigh_the_same_however_many_there_are() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5])
    by_hand = (math.log1p(math.exp(-2.0)) + (math.log1p(math.exp(-1.0)) + math.log1p(math.exp(0.5))) / 2) / 2
    assert float(presence_loss(logits, 1, 0.0)) == pytest.approx(by_hand)
    assert float(presence_loss(torch.cat([logits, *[logits[1:]] * 9]), 1, 0.0)) == pytest.approx(by_hand)
    level = torch.zeros(12, requires_grad=True)
    presence_loss(level, 3, 0.0).backward()
    assert level.grad is not None
    assert float(level.grad.sum()) == pytest.approx(0.0, abs=1e-7), "even odds stay even"
