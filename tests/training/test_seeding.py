"""Device, precision, seeds, learning rates, and what follows from them."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from digit_detector.errors import ConfigError
from ml_training.config import TrainConfig
from ml_training.training.classification import predict, predict_batches, predict_probabilities
from ml_training.training.schedules import Schedule
from ml_training.training.seeding import CPU, choose_device, choose_precision


def test_fp16_on_a_cpu_is_refused_and_other_precisions_are_not() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        choose_precision(TrainConfig(precision="fp16"), CPU)
    found = {name: choose_precision(TrainConfig(precision=name), CPU) for name in ("auto", "fp32", "bf16")}
    assert found == {"auto": None, "fp32": None, "bf16": torch.bfloat16}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_refused() -> None:
    assert choose_device(TrainConfig()) == CPU
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        choose_device(TrainConfig(device="cuda"))


def test_outputs_do_not_depend_on_batches(tiny: ModuleType) -> None:
    model, waveforms = tiny.TinyModel(), tiny.bursts(300).waveforms
    probabilities = predict_probabilities(model, waveforms)
    assert probabilities.shape == (300, 10)
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    outputs = predict(model, waveforms)
    assert outputs.presence_logit.shape == (300,)
    assert not outputs.presence_logit.requires_grad
    for whole, parts in zip(outputs, predict_batches(model, waveforms, 7), strict=True):
        torch.testing.assert_close(whole, parts)


def rates(kind: str, peak: float, epochs: int, steps: int) -> list[float]:
    schedule = Schedule(kind, peak, epochs, steps, epochs * steps)
    return [schedule.rate(e, s) for e in range(epochs) for s in range(steps)]


def test_cosine_rises_for_a_tenth_then_falls_to_almost_nothing() -> None:
    all_rates = rates("cosine", 1e-3, epochs=10, steps=20)
    peak = all_rates.index(max(all_rates))
    assert max(all_rates) == pytest.approx(1e-3)
    assert 19 <= peak <= 20
    assert all_rates[: peak + 1] == sorted(all_rates[: peak + 1])
    assert all_rates[peak:] == sorted(all_rates[peak:], reverse=True)
    assert 0 < all_rates[0] < 1e-4
    assert 0 < all_rates[-1] < 1e-6
    assert rates("cosine", 0.5, epochs=1, steps=1) == [0.5]


def test_step_halves_after_each_fifth_of_the_epochs_and_plateau_by_its_count() -> None:
    assert rates("step", 1.0, 10, 1) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625]
    plateau = Schedule("plateau", 1.0, 10, 3, 30)
    assert [plateau.rate(7, 2, halvings) for halvings in range(3)] == [1.0, 0.5, 0.25]
