"""Static quantization, its choice of nodes, and its check against the float network."""

import contextlib
import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from digit_detector.classifier import softmax
from digit_detector.errors import ExportError
from ml_training.deploy.export import convert_network, run_model
from ml_training.deploy.quantise import METHODS, HoldoutSet, QuantizationReport, quantize, to_float16_storage
from ml_training.pipelines.base import OUTPUTS, ModelOutput

MAPS = 8
INNER = ["model.second.0.weight", "model.third.0.weight", "model.fourth.weight"]


class Convolutions(nn.Module):
    """Log spectrum, a convolution over one map, one over eight with a residual, a depthwise one, two dense layers."""

    def __init__(self):
        super().__init__()
        half = torch.arange(65)[None] * torch.arange(128)[:, None] * (2 * torch.pi / 128)
        self.register_buffer("cosines", half.cos())
        self.register_buffer("sines", half.sin())
        self.first = nn.Sequential(nn.Conv2d(1, MAPS, 5, 2, bias=False), nn.BatchNorm2d(MAPS), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(MAPS, MAPS, 3, padding=1, bias=False), nn.BatchNorm2d(MAPS))
        self.third = nn.Sequential(nn.Conv2d(MAPS, MAPS, (1, 5), groups=MAPS, bias=False), nn.BatchNorm2d(MAPS))
        self.fourth = nn.Linear(29 * MAPS, 32)
        self.last = nn.Linear(32, OUTPUTS)

    def forward(self, waveforms):
        frames = waveforms[:, :7936].reshape(-1, 62, 128)
        logs = ((frames @ self.cosines).square() + (frames @ self.sines).square() + 1e-4).log().transpose(1, 2)
        maps = self.first(logs[:, None])
        maps = (self.second(maps) + maps).relu()
        maps = self.third(maps).relu().mean(dim=3)
        outputs = self.last(self.fourth(maps.flatten(1)[:, : 29 * MAPS]).relu())
        return ModelOutput(outputs[:, :-1], outputs[:, -1])


@pytest.fixture(scope="module")
def trained(tiny_corpus):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Convolutions()
        waveforms, labels = torch.from_numpy(tiny_corpus.waveforms[::2]), torch.from_numpy(tiny_corpus.labels[::2])
        noise = torch.randn(30, 8000) * torch.logspace(-2, -0.5, 30)[:, None]
        everything, is_digit = torch.cat([waveforms, noise]), torch.cat([torch.ones(len(labels)), torch.zeros(30)])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(80):
            optimizer.zero_grad()
            scores, digit = network(everything)
            loss = nn.functional.cross_entropy(scores[: len(labels)], labels)
            (loss + nn.functional.binary_cross_entropy_with_logits(digit, is_digit)).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def network(trained):
    return convert_network(trained)


@pytest.fixture(scope="module")
def holdout(trained, tiny_corpus):
    noise = np.random.default_rng(1).normal(0, 0.1, (20, 8000)).astype(np.float32)
    waveforms = np.concatenate([tiny_corpus.waveforms, noise])
    with torch.no_grad():
        scores, digit = trained(torch.from_numpy(waveforms))
    labels = np.concatenate([tiny_corpus.labels, np.full(20, -1)])
    return HoldoutSet(waveforms, labels, scores.softmax(1).numpy(), digit.sigmoid().numpy())


@pytest.fixture(scope="module")
def int8(network, holdout, tiny_corpus):
    return quantize(network, tiny_corpus.waveforms[::4], holdout)


def tensors(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_outputs_are_close_and_the_file_is_much_smaller(int8, network, holdout, tiny_corpus):
    content = int8.proto.SerializeToString()
    assert len(content) < 0.6 * len(network.proto.SerializeToString())
    scores, digit_scores = run_model(content, holdout.waveforms)
    np.testing.assert_allclose(softmax(scores), holdout.probabilities, atol=0.1)
    np.testing.assert_allclose(digit_scores, holdout.digit_scores, atol=0.1)
    assert not np.array_equal(softmax(scores), holdout.probabilities)
    assert (scores[:200].argmax(1) == tiny_corpus.labels).mean() > 0.95
    assert [outputs.shape for outputs in run_model(content, tiny_corpus.waveforms[:1])] == [(1, 10), (1,)]
    assert (int8.method in METHODS, int8.layers) == (True, 3)


def test_weights_use_7_of_8_bits_and_large_tensors_16(int8, trained):
    found = tensors(int8.proto)
    narrow = {name: values for name, values in found.items() if values.dtype == np.int8 and values.ndim > 1}
    assert {name.removesuffix("_quantized") for name in narrow} == set(INNER)
    assert all(np.abs(values.astype(int)).max() <= 64 for values in narrow.values())
    assert found["model.first.0.weight"].dtype == found["model.last.weight"].dtype == np.float32
    assert found["model.cosines_half"].dtype == np.float16
    assert found["model.second.0.weight_scale"].shape == (MAPS,)  # one per output channel
    assert not [node for node in int8.proto.graph.node if node.domain]  # plain ONNX
    onnx.checker.check_model(int8.proto)
    proto = convert_network(trained).proto
    large = next(tensor for tensor in proto.graph.initializer if tensor.name == "model.cosines")
    values = numpy_helper.to_array(large).copy()
    values[0, 0] = 1e6  # more than float16 holds
    large.CopyFrom(numpy_helper.from_array(values, large.name))
    found = tensors(to_float16_storage(proto))
    assert (found["model.cosines"].dtype, found["model.sines_half"].dtype) == (np.float32, np.float16)


def test_the_best_method_is_taken_in_silence_and_the_float_graph_stays(
    network, holdout, tiny_corpus, int8, capfd, caplog
):
    before = network.proto.SerializeToString(deterministic=True)
    alone = {}
    for method in METHODS:
        with contextlib.suppress(ExportError):  # a histogram that cannot be made
            alone[method] = quantize(network, tiny_corpus.waveforms[::4], holdout, (method,)).report.divergence
    assert len(alone) >= 2
    assert int8.report.divergence == min(alone.values()) == alone[int8.method]
    assert network.proto.SerializeToString(deterministic=True) == before
    assert (capfd.readouterr(), caplog.records) == (("", ""), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": lambda p: np.roll(p, 1, axis=1)}, r"it loses -?\d+ of|only .* % of its answers"),
        ({"digit_scores": lambda d: 1 - d}, "of its decisions whether there is a digit are the network's, expected 97"),
        ({"probabilities": lambda p: p * np.nan}, "only"),
    ],
)
def test_different_outputs_are_refused(network, holdout, tiny_corpus, changes, message):
    others = dataclasses.replace(holdout, **{name: change(getattr(holdout, name)) for name, change in changes.items()})
    with pytest.raises(ExportError, match=message):
        quantize(network, tiny_corpus.waveforms[:20], others, ("minmax",))


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({}, 0),
        ({"int8_errors": 6}, 0),  # one in a hundred may be lost
        ({"int8_errors": 7}, 1),
        ({"digits": 20, "int8_errors": 4}, 0),  # of few, one
        ({"digits": 20, "int8_errors": 5}, 1),
        ({"int8_errors": 0}, 0),
        ({"agreed": 0.97}, 0),
        ({"agreed": 0.96}, 1),
        ({"agreed_presence": 0.96}, 1),
        ({"agreed": float("nan"), "agreed_presence": 0.5, "int8_errors": 99}, 3),
    ],
)
def test_limits_of_the_report(changes, faults):
    usual = QuantizationReport(
        clips=400, digits=300, float_errors=3, int8_errors=3, agreed=1.0, agreed_presence=1.0, divergence=0.0
    )
    assert len(dataclasses.replace(usual, **changes).faults) == faults
