"""Batches: how many negatives, where they come from, that the clips stay unchanged, micro-batches."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from ml_training.training.batches import Batch, BatchMaker
from ml_training.training.gradients import micro_batches
from ml_training.training.losses import loss_fn


def maker(tiny: ModuleType, others: int, ratio: float = 0.5, digits: int = 40) -> BatchMaker:
    augmentation = replace(tiny.AUGMENTATION, enabled=False)
    clips = tiny.both(digits, others) if others else tiny.bursts(digits)
    return BatchMaker.of(clips, ratio, augmentation)


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_half_of_the_negatives_are_corrupted_digits(tiny: ModuleType, count: int) -> None:
    made = maker(tiny, others=15)
    torch.manual_seed(0)
    batch = made.batch(torch.arange(count))
    assert batch.inputs.shape == (2 * count, 8000)
    assert torch.equal(batch.inputs[:count], made.digits.waveforms[:count])
    known = {row.numpy().tobytes() for row in made.others.waveforms}
    recorded = [row.numpy().tobytes() in known for row in batch.inputs[count:]]
    assert recorded == [False] * (count - count // 2) + [True] * (count // 2)


def test_only_digits_are_mixed(tiny: ModuleType) -> None:
    made = BatchMaker.of(
        tiny.both(40, 15), 0.5, replace(tiny.AUGMENTATION, noise_probability=0.0, mixup_probability=1.0)
    )
    torch.manual_seed(0)
    batch = made.batch(torch.arange(10))
    assert batch.targets.shape == (10, 10)
    assert not torch.equal(batch.targets, F.one_hot(batch.labels, 10).float())
    assert batch.inputs.shape == (20, 8000)


@pytest.mark.parametrize(("digits", "others"), [(16, 0), (15, 5), (3, 9), (2, 1), (7, 6)])
def test_micro_batches_hold_every_clip_once_and_a_fair_share_of_digits(digits: int, others: int) -> None:
    clips = digits + others
    batch = Batch(torch.arange(clips)[:, None] * torch.ones(3), torch.arange(digits), torch.arange(digits))
    for limit in range(2, clips + 1):
        count = micro_batches(clips, limit)
        parts = batch.split(count)
        assert len(parts) == count
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        assert torch.equal(torch.cat([part.inputs[len(part.labels) :] for part in parts]), batch.inputs[digits:])
        for part in parts:
            assert 2 <= len(part.inputs) <= limit + (clips // 2 < -(-clips // limit))
            assert torch.equal(part.inputs[: len(part.labels), 0], part.labels.float())
            assert abs(len(part.labels) - digits * len(part.inputs) / clips) < 1


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.75])
@pytest.mark.parametrize("taught", [False, True])
def test_losses_of_micro_batches_add_up(tiny: ModuleType, ratio: float, taught: bool) -> None:
    torch.manual_seed(0)
    model, teacher = (tiny.TinyModel().double().eval() for _ in range(2))
    batch = maker(tiny, others=20, ratio=ratio).batch(torch.arange(16))
    batch = batch._replace(inputs=batch.inputs.double())

    def loss(part: Batch) -> torch.Tensor:
        scores, presence = teacher(part.inputs)
        teachers = (scores.softmax(dim=1).float(), presence.sigmoid().float()) if taught else None
        return loss_fn(model(part.inputs), part, 0.1, teachers, 0.7)

    whole = loss(batch)
    for count in (1, 2, 3, len(batch.inputs) // 2):
        torch.testing.assert_close(torch.stack([loss(part) for part in batch.split(count)]).sum(), whole)
