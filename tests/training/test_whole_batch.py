"""Parts of a batch that are heard as the whole: what is drawn, and what batch norm makes of it."""

from __future__ import annotations

import threading
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from ml_training.training.objective import Objective
from ml_training.training.whole_batch import Numbers, WholeBatch

ROWS = torch.tensor([1, 4, 9])


def test_what_is_drawn_for_a_clip_follows_from_its_place() -> None:
    generator = torch.Generator().manual_seed(3)

    def draws(clips: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        maps = torch.ones(clips, 4)
        return [
            torch.rand(clips), torch.rand(clips, 3), torch.randn((clips, 2)), torch.randint(7, (clips,)),
            torch.rand_like(maps), functional.dropout(maps, 0.5), nn.Dropout(0.3)(maps), torch.rand(clips),
        ]  # fmt: skip

    whole = draws(10)
    with WholeBatch(ROWS, 10):
        parts = draws(3)
        other, own = torch.rand(5), torch.rand(3, generator=generator)
    for expected, found in zip(whole, parts, strict=True):
        assert torch.equal(expected[ROWS], found)
    torch.manual_seed(0)
    draws(10)
    assert torch.equal(other, torch.rand(5)), "what is not drawn for each clip is drawn as ever"
    assert torch.equal(own, torch.rand(3, generator=torch.Generator().manual_seed(3)))


class Meeting:
    """Sums over two threads."""

    def __init__(self) -> None:
        self.barrier, self.values = threading.Barrier(2), [np.zeros(0), np.zeros(0)]

    def exchange(self, rank: int, mine: Numbers) -> Numbers:
        self.values[rank] = mine
        self.barrier.wait(10)
        total = self.values[0] + self.values[1]
        self.barrier.wait(10)
        return total


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("first", [1, 3, 5])
def test_batch_norm_of_two_parts_is_that_of_the_whole(affine: bool, channels_last: bool, first: int) -> None:
    torch.manual_seed(0)
    norm, maps, back = nn.BatchNorm2d(6, affine=affine), 2 + 3 * torch.randn(8, 6, 5, 7), torch.randn(8, 6, 5, 7)
    if channels_last:
        maps = maps.contiguous(memory_format=torch.channels_last)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    copies = [nn.BatchNorm2d(6, affine=affine) for _ in range(2)]
    for copy in copies:
        copy.load_state_dict(norm.state_dict())
    whole = maps.clone().requires_grad_()
    expected = norm(whole)
    expected.backward(back)
    parts = [part.clone().requires_grad_() for part in (maps[:first], maps[first:])]
    heard: list[torch.Tensor] = [maps, maps]
    meeting = Meeting()

    def hear(rank: int) -> None:
        with WholeBatch(torch.arange(len(parts[rank])), 8, lambda mine: meeting.exchange(rank, mine)):
            heard[rank] = copies[rank](parts[rank])
        heard[rank].backward((back[:first], back[first:])[rank])

    threads = [threading.Thread(target=hear, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert whole.grad is not None
    torch.testing.assert_close(torch.cat(heard), expected)
    torch.testing.assert_close(torch.cat([part.grad for part in parts if part.grad is not None]), whole.grad)
    for copy in copies:
        torch.testing.assert_close(copy.running_mean, norm.running_mean)
        torch.testing.assert_close(copy.running_var, norm.running_var)
        assert copy.num_batches_tracked == 1
    for name, parameter in norm.named_parameters():
        gradients = [copy.get_parameter(name).grad for copy in copies]
        torch.testing.assert_close(sum(gradients[1:], gradients[0]), parameter.grad)


@pytest.mark.parametrize("mixing", [0.0, 0.5])
@pytest.mark.parametrize("enabled", [True, False])
def test_parts_of_processes_are_the_batch_of_one(tiny: ModuleType, mixing: float, enabled: bool) -> None:
    changes = {"enabled": enabled, "mixup_probability": mixing, "reverb_probability": 0.3, "generated_share": 0.5}
    config = tiny.config(negative_share=0.25, augmentation=changes)
    clips, device, chosen = tiny.both(40, 20), torch.device("cpu"), torch.arange(16)

    def batch(rank: int, world: int, chosen: torch.Tensor = chosen) -> object:
        torch.manual_seed(5)
        return Objective(clips, config, device, None, rank, world).batch(chosen)

    whole, parts = batch(0, 1), [batch(rank, 3) for rank in range(3)]
    rows = torch.cat([part.rows for part in parts])
    assert torch.equal(rows.sort().values, torch.arange(len(whole.waveforms)))
    assert all(part.of == (16, len(whole.waveforms)) for part in parts)
    torch.testing.assert_close(torch.cat([part.waveforms for part in parts]), whole.waveforms[rows])
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    torch.testing.assert_close(torch.cat([part.targets for part in parts]), whole.targets)
    few = batch(1, 3, chosen[:2])
    assert (few.held_by, few.rows) == (3, None), "a part of one clip has no batch statistics"
