"""Device, precision, optimiser and seeds."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from digit_detector.errors import CheckpointError, ConfigError
from ml_training.config import TrainConfig
from ml_training.training.precomputed_features import build_model
from ml_training.training.setup import (
    choose_device,
    choose_precision,
    load_weights,
    make_optimizer,
    predict,
    predict_probabilities,
    step_seed,
)

CPU = torch.device("cpu")


def test_fp16_on_a_cpu_is_refused_not_turned_into_bfloat16() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        choose_precision(TrainConfig(precision="fp16"), CPU)


@pytest.mark.parametrize(("name", "dtype"), [("auto", None), ("fp32", None), ("bf16", torch.bfloat16)])
def test_precision_on_a_cpu(name: str, dtype: torch.dtype | None) -> None:
    assert choose_precision(TrainConfig(precision=name), CPU) is dtype


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_refused() -> None:
    assert choose_device(TrainConfig()) == CPU
    with pytest.raises(ConfigError, match="finds no CUDA device"):
        choose_device(TrainConfig(device="cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_is_found_and_trains_in_mixed_precision() -> None:
    device = choose_device(TrainConfig())
    assert device.type == "cuda"
    assert choose_precision(TrainConfig(), device) is torch.float16


def test_seeds_differ_for_every_place() -> None:
    places = [(s, e, t, r) for s in range(3) for e in range(5) for t in range(-1, 5) for r in range(3)]
    assert len({step_seed(*place) for place in places}) == len(places)
    assert all(0 <= step_seed(*place) < 2**63 for place in places)


def test_vectors_do_not_decay(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    optimizer = make_optimizer(model, tiny.config(weight_decay=0.25))
    decay = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[p] for name, p in model.named_parameters() if p.ndim == 1} == {
        name: 0.0 for name, p in model.named_parameters() if p.ndim == 1
    }
    assert {decay[p] for p in model.parameters() if p.ndim > 1} == {0.25}
    assert all(group["params"] for group in optimizer.param_groups)


def test_one_seed_builds_the_same_model_twice(tiny: ModuleType) -> None:
    first, same, other = (build_model(tiny.TINY, tiny.config(seed=s), tiny.bursts(10)) for s in (5, 5, 6))
    weight = "layers.1.weight"
    assert torch.equal(first.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], other.state_dict()[weight])


def test_probabilities_do_not_depend_on_batches(tiny: ModuleType) -> None:
    model = tiny.TinyModel()
    waveforms = tiny.bursts(300).waveforms
    probabilities = predict_probabilities(model, waveforms)
    assert probabilities.shape == (300, 10)
    assert probabilities.sum(axis=1) == pytest.approx(1.0, abs=1e-5)
    assert probabilities[290:] == pytest.approx(predict_probabilities(model, waveforms[290:]), abs=1e-5)
    heard = predict(model, waveforms)
    assert (heard.scores.shape, heard.digit.shape) == ((300, 10), (300,))
    torch.testing.assert_close(heard.digit[290:], predict(model, waveforms[290:]).digit)
    assert not heard.digit.requires_grad


def test_a_mask_takes_clips_whole(tiny: ModuleType) -> None:
    clips = tiny.bursts(10)
    taken = clips.select(clips.labels > 7)
    assert taken.labels.tolist() == [8, 9]
    assert torch.equal(taken.waveforms, clips.waveforms[8:])
    assert len(taken.lengths) == 2


def test_weights_of_another_network_are_refused(tiny: ModuleType) -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights(tiny.TinyModel(), {"foreign": torch.zeros(3)}, "somewhere")
