"""The inner layers of a network in 8 bits, held against the trained network before such a file may answer.

Static quantisation: weights by output channel, activations by ranges that calibration clips show, as QDQ nodes of plain
ONNX. In 8 bits are the convolutions and dense layers whose weights were learnt, and the additions between them. Float
stay the features, whose range no 8 bits hold; a first convolution over one map, which 8 bits make slower; and the last
layer, which costs nothing and decides everything. Large float tables are kept in 16 bits and widened on loading.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from digit_detector.audio import Floats
from digit_detector.errors import ExportError
from digit_detector.model_file import INPUT_NAME
from ml_training.deploy.export import Network, answers, quiet
from ml_training.results import Ints
from ml_training.utils.temporary import temporary_folder

METHODS = ("minmax", "entropy", "percentile")  # how ranges follow from what calibration clips show
MOST_LOST = 0.01  # share of the digits judged, or one of them, that int8 may get wrong and the network right
LEAST_AGREED = 0.97  # share of the clips judged on which both have to agree, in digit and in whether there is one
_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Relu", "Clip", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Transpose")
_SMALL = 1024  # numbers; of tables with fewer, 16 bits save nothing


@dataclass(frozen=True)
class Judges:
    """N clips that decide whether int8 may answer, and what the trained network makes of them."""

    waveforms: Floats  # (N, 8000)
    labels: Ints  # (N,) below 0 where no digit is said
    probabilities: Floats  # (N, 10)
    digit_scores: Floats  # (N,)


@dataclass(frozen=True)
class Verdict:
    """How int8 does beside the network it was made from."""

    clips: int
    digits: int  # clips in which one is said
    float_errors: int  # of the digits
    int8_errors: int
    agreed: float  # share of the digits answered alike
    agreed_whether: float  # share of the clips of which both say alike whether there is a digit; 1 if all have one
    divergence: float  # Kullback-Leibler of its probabilities and digit scores from the network's, nats a clip

    @property
    def faults(self) -> list[str]:
        """Why it may not answer; empty where it may."""
        most = max(1, int(MOST_LOST * self.digits))
        lost = self.int8_errors - self.float_errors
        faults = [f"it loses {lost} of {self.digits} digits, at most {most} may be lost"] if lost > most else []
        shares = {"of its answers": self.agreed, "of its decisions whether there is a digit": self.agreed_whether}
        return faults + [
            f"only {100 * share:.1f} % {what} are the network's, expected {100 * LEAST_AGREED:.0f} %"
            for what, share in shares.items()
            if not share >= LEAST_AGREED  # also when it is NaN
        ]

    def __str__(self) -> str:
        ours, theirs = (100 * (1 - errors / self.digits) for errors in (self.int8_errors, self.float_errors))
        alike = f"{100 * self.agreed:.1f} % answered alike"
        return f"{ours:.2f} % right of {self.digits} digits it was judged on (fp32 {theirs:.2f} %), {alike}"


@dataclass(frozen=True)
class Int8:
    """A graph in 8 bits that may answer."""

    proto: onnx.ModelProto  # without metadata
    method: str  # of METHODS
    layers: int  # in 8 bits
    verdict: Verdict


def quantised(network: Network, calibration: Floats, judges: Judges, methods: tuple[str, ...] = METHODS) -> Int8:
    """The network in 8 bits, by whichever of the methods comes nearest to it on the judges.

    `calibration` are clips (N, 8000) of the training part. Raises ExportError where no layer can be in 8 bits, or
    what comes out answers otherwise than the network by more than MOST_LOST and LEAST_AGREED allow.
    """
    chosen, layers = inner_nodes(network)
    best: Int8 | None = None
    fault = ""
    for method in methods:
        try:
            proto = halved(in_8_bits(network.proto, chosen, calibration, method))
        except Exception as error:  # of numpy, onnx or onnxruntime: histograms fail where ranges are next to nothing
            fault = f"{method}: {' '.join(str(error).split())}"
            continue
        found = Int8(proto, method, layers, judged(proto.SerializeToString(), judges))
        if best is None or found.verdict.divergence < best.verdict.divergence:
            best = found
    if best is None:
        raise ExportError(f"onnxruntime cannot quantise this network: {fault}")
    if best.verdict.faults:
        raise ExportError(f"int8 answers otherwise than the trained network: {'; '.join(best.verdict.faults)}")
    return best


def judged(content: bytes, judges: Judges) -> Verdict:
    """Hold the bytes of a model against the trained network."""
    scores, digit_scores = answers(content, judges.waveforms)
    probabilities = softmax(scores)
    said = judges.labels >= 0
    labels, ours, theirs = judges.labels[said], probabilities[said].argmax(1), judges.probabilities[said].argmax(1)
    alike = (digit_scores >= 0.5) == (judges.digit_scores >= 0.5)
    both = np.stack([judges.digit_scores, 1 - judges.digit_scores], 1), np.stack([digit_scores, 1 - digit_scores], 1)
    return Verdict(
        clips=len(said), digits=len(labels), float_errors=int((theirs != labels).sum()),
        int8_errors=int((ours != labels).sum()), agreed=float((ours == theirs).mean()),
        agreed_whether=1.0 if said.all() else float(alike.mean()),
        divergence=_divergence(judges.probabilities[said], probabilities[said]) + _divergence(*both),
    )  # fmt: skip


def softmax(scores: Floats) -> Floats:
    """(N, 10) scores -> (N, 10) probabilities."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _divergence(wanted: Floats, found: Floats) -> float:
    return float((wanted * np.log((wanted + 1e-6) / (found + 1e-6))).sum(axis=1).mean())


# --- which nodes, and how ------------------------------------------------------------------------


def inner_nodes(network: Network) -> tuple[list[str], int]:
    """Names of the nodes that go into 8 bits, and how many of them are layers. Raises ExportError where none can."""
    graph = network.proto.graph
    shapes = {table.name: list(table.dims) for table in graph.initializer}
    layers = {node.name for node in graph.node if node.op_type in _LAYERS and set(node.input[1:2]) & network.learnt}
    after, before = _downstream(graph.node, layers), _upstream(graph.node, layers)

    def over_one_map(node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and node.name not in after and shapes[node.input[1]][1] == 1

    inner = [n.name for n in graph.node if n.name in layers & before and not over_one_map(n)]
    if not inner:
        raise ExportError("int8 is for layers between the first and the last, and this network has none")
    between = [n.name for n in graph.node if n.op_type in _BETWEEN and n.name in after & before - layers]
    return [*inner, *between], len(inner)


def _downstream(nodes: Any, layers: set[str]) -> set[str]:
    """Names of the nodes that a layer comes before. Nodes lie in the order in which they are computed."""
    tensors: set[str] = set()
    found: set[str] = set()
    for node in nodes:
        if tensors & set(node.input):
            found.add(node.name)
        if node.name in found | layers:
            tensors |= set(node.output)
    return found


def _upstream(nodes: Any, layers: set[str]) -> set[str]:
    """Names of the nodes that a layer comes after."""
    tensors: set[str] = set()
    found: set[str] = set()
    for node in reversed(nodes):
        if tensors & set(node.output):
            found.add(node.name)
        if node.name in found | layers:
            tensors |= set(node.input)
    return found


def in_8_bits(
    proto: onnx.ModelProto, nodes: list[str], calibration: Floats, method: str, form: str = "QDQ"
) -> onnx.ModelProto:
    """A copy of a graph with some of its nodes in 8 bits, as QDQ, which is plain ONNX, or QOperator.

    Raises what onnxruntime raises.
    """
    with quiet():
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )

    class Clips(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.clips: Iterator[Floats] = iter(calibration[:, None])  # one by one: histograms take equal shapes alone

        def get_next(self) -> dict[str, Floats] | None:
            clip = next(self.clips, None)
            return None if clip is None else {INPUT_NAME: clip}

    copied = onnx.ModelProto()
    copied.CopyFrom(proto)  # it is changed on the way
    known = {
        "minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }  # fmt: skip
    with temporary_folder() as folder, quiet(), contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            copied, f"{folder}/int8.onnx", Clips(), quant_format=QuantFormat[form], nodes_to_quantize=nodes,
            per_channel=True, activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            # Weights of 7 bits: processors without VNNI add two products in 16 bits, where 8 would overflow.
            reduce_range=True, calibrate_method=known[method],
        )  # fmt: skip
        found = onnx.load(folder / "int8.onnx")
    found.graph.ClearField("value_info")
    return found


def halved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same with every large float table in 16 bits and a node that widens it, which onnxruntime does on loading."""
    tables, widened = [], []
    for table in proto.graph.initializer:
        values = numpy_helper.to_array(table)
        large = values.dtype == np.float32 and values.size >= _SMALL
        with np.errstate(over="ignore"):  # what becomes infinite stays float
            narrow = values.astype(np.float16)
        if not large or not np.allclose(narrow, values, rtol=1e-3, atol=1e-3 * float(np.abs(values).max())):
            tables.append(table)
            continue
        tables.append(numpy_helper.from_array(narrow, f"{table.name}_half"))
        widened.append(helper.make_node("Cast", [f"{table.name}_half"], [table.name], to=onnx.TensorProto.FLOAT))
    nodes = [*widened, *proto.graph.node]
    for field, items in (("initializer", tables), ("node", nodes)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(items)
    return proto
