"""The same bits as torch.optim, also from its state, and steps that a gradient scaler skips."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from ml_training.training.optimizer import Adam


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    layers[0].to(memory_format=torch.channels_last)
    return layers


def ours(model: nn.Module, decoupled: bool) -> Adam:
    return Adam([{"params": model.parameters(), "weight_decay": 0.1}], 0.01, decoupled)


def theirs(model: nn.Module, decoupled: bool) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    return kind([{"params": model.parameters(), "weight_decay": 0.1}], lr=0.01, fused=True)


def step(model: nn.Module, optimizer: Adam | torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    optimizer.zero_grad(set_to_none=True)
    optimizer.param_groups[0]["lr"] = 0.01 / (1 + seed)
    model(torch.randn(6, 3, 8, 8)).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


@pytest.mark.parametrize("decoupled", [True, False])
def test_the_bits_are_those_of_torch_and_states_pass_either_way(decoupled: bool) -> None:
    mine, other = network(), network()
    a, b = ours(mine, decoupled), theirs(other, decoupled)
    for seed in range(5):
        step(mine, a, seed)
        step(other, b, seed)
    assert same(mine, other)
    again, further = ours(mine, decoupled), theirs(other, decoupled)
    again.load_state_dict(b.state_dict())
    further.load_state_dict({**further.state_dict(), "state": a.state_dict()["state"]})
    for seed in range(5, 9):
        step(mine, again, seed)
        step(other, further, seed)
    assert same(mine, other)


def test_a_state_that_was_loaded_is_no_longer_whose_it_was() -> None:
    model = network()
    first, second = ours(model, True), ours(model, True)
    step(model, first, 0)
    second.load_state_dict(first.state_dict())
    before = [values["exp_avg"].clone() for values in first.state.values()]
    step(model, second, 1)
    assert all(torch.equal(a, b["exp_avg"]) for a, b in zip(before, first.state.values(), strict=True))


def test_a_state_of_other_parameters_is_refused() -> None:
    optimizer = ours(network(), True)
    with pytest.raises(ValueError, match="groups of"):
        optimizer.load_state_dict(ours(nn.Linear(2, 2), True).state_dict())
    larger = nn.Sequential(nn.Conv2d(3, 4, 5), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 5))
    found = ours(larger, True)
    step(larger, found, 0)
    with pytest.raises(ValueError, match="parameter 0"):
        optimizer.load_state_dict(found.state_dict())


def test_a_step_with_gradients_that_are_no_numbers_is_skipped_as_the_scaler_asks() -> None:
    model = network()
    optimizer = ours(model, True)
    step(model, optimizer, 0)
    before, count = weights(model), int(next(iter(optimizer.state.values()))["step"])
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))
    assert int(next(iter(optimizer.state.values()))["step"]) == count
    optimizer.found_inf = torch.zeros(())
    optimizer.grad_scale = torch.tensor(4.0)
    optimizer.step()
    assert not all(torch.equal(a, b) for a, b in zip(before, weights(model), strict=True))


def test_the_groups_of_a_training_decay_as_settings_say(tiny: ModuleType) -> None:
    from ml_training.training.setup import make_optimizer

    kinds = [make_optimizer(tiny.TinyModel(), tiny.config(optimizer=name))._apply for name in ("adam", "adamw")]
    assert kinds == [torch._fused_adam_, torch._fused_adamw_]
