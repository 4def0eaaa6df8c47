"""Eight bits inside, float around them, and a judge between."""

import contextlib
import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from digit_detector.errors import ExportError
from ml_training.deploy import quantise
from ml_training.deploy.export import Network, answers, network_of
from ml_training.deploy.quantise import METHODS, Judges, Verdict, inner_nodes, judged, quantised
from ml_training.pipelines.base import OUTPUTS, Heard

MAPS = 8


class Convolving(nn.Module):
    """Log spectrum, a convolution over one map, one over eight with a residual, a depthwise one, two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        half = torch.arange(65)[None] * torch.arange(128)[:, None] * (2 * torch.pi / 128)
        self.register_buffer("cosines", half.cos())
        self.register_buffer("sines", half.sin())
        self.first = nn.Sequential(nn.Conv2d(1, MAPS, 5, 2, bias=False), nn.BatchNorm2d(MAPS), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(MAPS, MAPS, 3, padding=1, bias=False), nn.BatchNorm2d(MAPS))
        self.third = nn.Sequential(nn.Conv2d(MAPS, MAPS, (1, 5), groups=MAPS, bias=False), nn.BatchNorm2d(MAPS))
        self.fourth = nn.Linear(29 * MAPS, 32)
        self.last = nn.Linear(32, OUTPUTS)

    def forward(self, waveforms: Tensor) -> Heard:
        frames = waveforms[:, :7936].reshape(-1, 62, 128)
        logs = ((frames @ self.cosines).square() + (frames @ self.sines).square() + 1e-4).log().transpose(1, 2)
        maps = self.first(logs[:, None])
        maps = (self.second(maps) + maps).relu()
        maps = self.third(maps).relu().mean(dim=3)
        outputs = self.last(self.fourth(maps.flatten(1)[:, : 29 * MAPS]).relu())
        return Heard(outputs[:, :-1], outputs[:, -1])


@pytest.fixture(scope="module")
def trained(tiny_corpus) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Convolving()
        waveforms, labels = torch.from_numpy(tiny_corpus.waveforms[::2]), torch.from_numpy(tiny_corpus.labels[::2])
        noise = torch.randn(30, 8000) * torch.logspace(-2, -0.5, 30)[:, None]
        everything, is_digit = torch.cat([waveforms, noise]), torch.cat([torch.ones(len(labels)), torch.zeros(30)])
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        for _ in range(80):
            optimizer.zero_grad()
            heard = network(everything)
            loss = nn.functional.cross_entropy(heard.scores[: len(labels)], labels)
            (loss + nn.functional.binary_cross_entropy_with_logits(heard.digit, is_digit)).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def network(trained) -> Network:
    return network_of(trained)


@pytest.fixture(scope="module")
def judges(trained, tiny_corpus) -> Judges:
    noise = np.random.default_rng(1).normal(0, 0.1, (20, 8000)).astype(np.float32)
    waveforms = np.concatenate([tiny_corpus.waveforms, noise])
    with torch.no_grad():
        heard = trained(torch.from_numpy(waveforms))
    labels = np.concatenate([tiny_corpus.labels, np.full(20, -1)])
    return Judges(waveforms, labels, heard.scores.softmax(1).numpy(), heard.digit.sigmoid().numpy())


@pytest.fixture(scope="module")
def int8(network, judges, tiny_corpus):
    return quantised(network, tiny_corpus.waveforms[::4], judges)


def tables(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {table.name: numpy_helper.to_array(table) for table in proto.graph.initializer}


def test_layers_inside_are_chosen_and_nothing_else(network):
    names, layers = inner_nodes(network)
    nodes = {node.name: node for node in network.proto.graph.node}
    weights = [next((w for w in nodes[name].input[1:2] if "weight" in w), "") for name in names]
    assert [w for w in weights if w] == ["model.second.0.weight", "model.third.0.weight", "model.fourth.weight"]
    assert layers == 3
    assert {nodes[name].op_type for name in names[3:]} <= {"Add", "Relu", "Reshape"}
    assert "Add" in {nodes[name].op_type for name in names[3:]}  # the residual, and none of the features' and scores'
    assert sum(nodes[name].op_type == "Add" for name in names) == 1


def test_it_answers_as_the_network_does_and_is_much_smaller(int8, network, judges, tiny_corpus):
    content = int8.proto.SerializeToString()
    assert len(content) < 0.6 * len(network.proto.SerializeToString())
    scores, digit_scores = answers(content, judges.waveforms)
    np.testing.assert_allclose(quantise.softmax(scores), judges.probabilities, atol=0.1)
    np.testing.assert_allclose(digit_scores, judges.digit_scores, atol=0.1)
    assert not np.array_equal(quantise.softmax(scores), judges.probabilities)
    assert (scores[:200].argmax(1) == tiny_corpus.labels).mean() > 0.95
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [o.shape for o in session.run(None, {"waveform": tiny_corpus.waveforms[:1]})] == [(1, 10), (1,)]
    assert int8.method in METHODS
    assert int8.layers == 3


def test_weights_are_8_bits_of_which_7_are_used_and_large_tables_16(int8):
    found = tables(int8.proto)
    narrow = {name: table for name, table in found.items() if table.dtype == np.int8 and table.ndim > 1}
    assert {name.removesuffix("_quantized") for name in narrow} == {
        "model.second.0.weight", "model.third.0.weight", "model.fourth.weight"
    }  # fmt: skip
    assert all(np.abs(table.astype(int)).max() <= 64 for table in narrow.values())
    assert found["model.first.0.weight"].dtype == np.float32
    assert found["model.last.weight"].dtype == np.float32
    assert found["model.cosines_half"].dtype == np.float16
    scales = [table for name, table in found.items() if name == "model.second.0.weight_scale"]
    assert scales[0].shape == (MAPS,)  # one an output channel
    assert not [node for node in int8.proto.graph.node if node.domain]  # plain ONNX
    onnx.checker.check_model(int8.proto)


def test_the_float_graph_stays_and_nothing_is_said(network, judges, tiny_corpus, capfd, caplog):
    before = network.proto.SerializeToString(deterministic=True)
    quantised(network, tiny_corpus.waveforms[:20], judges)
    assert network.proto.SerializeToString(deterministic=True) == before
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_nearest_of_the_methods_is_taken(network, judges, tiny_corpus, int8):
    alone = {}
    for method in METHODS:
        with contextlib.suppress(ExportError):  # a histogram that cannot be made
            alone[method] = quantised(network, tiny_corpus.waveforms[::4], judges, (method,)).verdict.divergence
    assert len(alone) >= 2
    assert int8.verdict.divergence == min(alone.values()) == alone[int8.method]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"probabilities": lambda p: np.roll(p, 1, axis=1)}, r"it loses -?\d+ of|only .* % of its answers"),
        ({"digit_scores": lambda d: 1 - d}, "of its decisions whether there is a digit are the network's, expected 97"),
        ({"probabilities": lambda p: p * np.nan}, "only"),
    ],
)
def test_what_answers_otherwise_is_refused(network, judges, tiny_corpus, changes, message):
    others = dataclasses.replace(judges, **{name: change(getattr(judges, name)) for name, change in changes.items()})
    with pytest.raises(ExportError, match=message):
        quantised(network, tiny_corpus.waveforms[:20], others, ("minmax",))


def test_ranges_of_silence_are_refused(network, judges):
    """Calibrated on next to nothing, every layer is cut off there, and histograms cannot be made at all."""
    silence = np.full((5, 8000), 1e-6, np.float32)
    with pytest.raises(ExportError, match="int8 answers otherwise than the trained network: it loses"):
        quantised(network, silence, judges)
    with pytest.raises(ExportError, match="onnxruntime cannot quantise this network: percentile: Too many bins"):
        quantised(network, silence, judges, ("percentile",))


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({}, 0),
        ({"int8_errors": 6}, 0),  # one in a hundred may be lost
        ({"int8_errors": 7}, 1),
        ({"digits": 20, "int8_errors": 4}, 0),  # of few, one
        ({"digits": 20, "int8_errors": 5}, 1),
        ({"int8_errors": 0}, 0),  # gained
        ({"agreed": 0.97}, 0),
        ({"agreed": 0.96}, 1),
        ({"agreed_whether": 0.96}, 1),
        ({"agreed": float("nan"), "agreed_whether": 0.5, "int8_errors": 99}, 3),
    ],
)
def test_the_rule(changes, faults):
    usual = Verdict(
        clips=400, digits=300, float_errors=3, int8_errors=3, agreed=1.0, agreed_whether=1.0, divergence=0.0
    )
    assert len(dataclasses.replace(usual, **changes).faults) == faults


def test_a_verdict_in_words(int8, network, judges):
    verdict = judged(network.proto.SerializeToString(), judges)
    assert (verdict.clips, verdict.digits) == (220, 200)
    assert (verdict.agreed, verdict.agreed_whether) == (1, 1)
    assert verdict.divergence == pytest.approx(0, abs=1e-6)
    assert str(dataclasses.replace(verdict, float_errors=1, int8_errors=2, agreed=0.995)) == (
        "99.00 % right of 200 digits it was judged on (fp32 99.50 %), 99.5 % answered alike"
    )
    assert int8.verdict.divergence > verdict.divergence


def test_a_network_without_an_inside_is_refused(tiny_network, judges, tiny_corpus):
    with pytest.raises(ExportError, match="int8 is for layers between the first and the last"):
        quantised(network_of(tiny_network), tiny_corpus.waveforms[:5], judges)


def test_tables_that_16_bits_do_not_hold_stay_float(trained):
    proto = network_of(trained).proto
    large = next(table for table in proto.graph.initializer if table.name == "model.cosines")
    values = numpy_helper.to_array(large).copy()
    values[0, 0] = 1e6
    large.CopyFrom(numpy_helper.from_array(values, large.name))
    found = tables(quantise.halved(proto))
    assert found["model.cosines"].dtype == np.float32
    assert found["model.sines_half"].dtype == np.float16
