"""Quantize a network to int8, checked against the float network on held-out clips.

Static quantization in QDQ format: weights per output channel, activation ranges from calibration clips. Convolutions
and dense layers with trained weights, and the additions between them, become int8. The features stay float, since 8
bits do not hold their range; so do a first convolution over one channel, which int8 makes slower, and the last layer,
which costs nothing and decides everything. Large float tensors are stored as float16 and widened on loading.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from digit_detector.audio import Floats
from digit_detector.classifier import softmax
from digit_detector.errors import ExportError
from digit_detector.labels import IS_DIGIT
from digit_detector.model_file import INPUT_NAME
from ml_training.deploy.export import Network, run_model, silence_exporters
from ml_training.results import Ints
from ml_training.utils.temporary import temporary_folder

METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}  # of onnxruntime's calibration
MOST_LOST = 0.01  # share of the digits, and at least one of them, that int8 may misclassify beyond fp32
LEAST_AGREED = 0.97  # share of the clips on which int8 and fp32 have to agree, in digit and in presence of a digit
_LAYERS = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Relu", "Clip", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Transpose")
_SMALL = 1024  # elements; float16 saves nothing for smaller tensors


@dataclass(frozen=True)
class HoldoutSet:
    """N held-out clips and the float network's outputs for them."""

    waveforms: Floats  # (N, 8000)
    labels: Ints  # (N,) below 0 without a digit
    probabilities: Floats  # (N, 10)
    digit_scores: Floats  # (N,)


@dataclass(frozen=True)
class QuantizationReport:
    """int8 against the float network on a HoldoutSet."""

    clips: int
    digits: int  # clips with a digit
    float_errors: int  # of the digits
    int8_errors: int
    agreed: float  # share of the digits classified alike
    agreed_presence: float  # share of the clips with the same decision on whether there is a digit; 1 if all have one
    divergence: float  # Kullback-Leibler of probabilities and digit scores, nats a clip

    @property
    def faults(self) -> list[str]:
        """Why int8 is refused; empty where it passes."""
        most, lost = max(1, int(MOST_LOST * self.digits)), self.int8_errors - self.float_errors
        faults = [f"it loses {lost} of {self.digits} digits, at most {most} may be lost"] if lost > most else []
        shares = {"of its answers": self.agreed, "of its decisions whether there is a digit": self.agreed_presence}
        return faults + [
            f"only {100 * share:.1f} % {what} are the network's, expected {100 * LEAST_AGREED:.0f} %"
            for what, share in shares.items()
            if not share >= LEAST_AGREED  # also when it is NaN
        ]

    def __str__(self) -> str:
        int8, fp32 = (100 * (1 - errors / self.digits) for errors in (self.int8_errors, self.float_errors))
        agreed = f"{100 * self.agreed:.1f} % agreement"
        return f"{int8:.2f} % accuracy on {self.digits} held-out digits (fp32 {fp32:.2f} %), {agreed}"


@dataclass(frozen=True)
class Quantized:
    """A network in int8 that passed."""

    proto: onnx.ModelProto  # without metadata
    method: str  # of METHODS
    layers: int  # in int8
    report: QuantizationReport


def quantize(
    network: Network, calibration: Floats, holdout: HoldoutSet, methods: Iterable[str] = tuple(METHODS)
) -> Quantized:
    """Quantize with the method whose outputs are nearest to the network's on `holdout`.

    `calibration` are clips (N, 8000) of the training part. Raises ExportError where no layer can be quantized, or the
    best result differs by more than MOST_LOST and LEAST_AGREED allow.
    """
    nodes, layers = select_nodes(network)
    best: Quantized | None = None
    failure = ""
    for method in methods:
        try:
            proto = to_float16_storage(quantize_static(network.proto, nodes, calibration, method))
        except Exception as error:  # of numpy, onnx or onnxruntime: histograms fail where ranges are next to nothing
            failure = f"{method}: {' '.join(str(error).split())}"
            continue
        found = Quantized(proto, method, layers, compare(proto.SerializeToString(), holdout))
        if best is None or found.report.divergence < best.report.divergence:
            best = found
    if best is None:
        raise ExportError(f"onnxruntime cannot quantise this network: {failure}")
    if best.report.faults:
        raise ExportError(f"int8 answers otherwise than the trained network: {'; '.join(best.report.faults)}")
    return best


def compare(content: bytes, holdout: HoldoutSet) -> QuantizationReport:
    """Compare the bytes of a model with the float network."""
    scores, digit_scores = run_model(content, holdout.waveforms)
    is_digit = holdout.labels >= 0
    wanted, found = holdout.probabilities[is_digit], softmax(scores)[is_digit]
    labels, float_digits, int8_digits = holdout.labels[is_digit], wanted.argmax(1), found.argmax(1)
    agreed_presence = (digit_scores >= IS_DIGIT) == (holdout.digit_scores >= IS_DIGIT)
    presence = [np.stack([p, 1 - p], 1) for p in (holdout.digit_scores, digit_scores)]
    return QuantizationReport(
        clips=len(is_digit), digits=len(labels), float_errors=int((float_digits != labels).sum()),
        int8_errors=int((int8_digits != labels).sum()), agreed=float((int8_digits == float_digits).mean()),
        agreed_presence=1.0 if is_digit.all() else float(agreed_presence.mean()),
        divergence=_divergence(wanted, found) + _divergence(*presence),
    )  # fmt: skip


def _divergence(wanted: Floats, found: Floats) -> float:
    return float((wanted * np.log((wanted + 1e-6) / (found + 1e-6))).sum(axis=1).mean())


def select_nodes(network: Network) -> tuple[list[str], int]:
    """Names of the nodes to quantize, and how many of them are layers. Raises ExportError where there are none."""
    nodes = network.proto.graph.node
    shapes = {tensor.name: list(tensor.dims) for tensor in network.proto.graph.initializer}
    layers = {n.name for n in nodes if n.op_type in _LAYERS and set(n.input[1:2]) & network.weights}
    after = _reach(layers, [(n.name, n.input, n.output) for n in nodes])
    before = _reach(layers, [(n.name, n.output, n.input) for n in reversed(nodes)])

    def is_first_of_one_channel(node: onnx.NodeProto) -> bool:
        return node.op_type == "Conv" and node.name not in after and shapes[node.input[1]][1] == 1

    inner = [n.name for n in nodes if n.name in layers & before and not is_first_of_one_channel(n)]
    if not inner:
        raise ExportError("int8 is for layers between the first and the last, and this network has none")
    between = [n.name for n in nodes if n.op_type in _BETWEEN and n.name in after & before - layers]
    return [*inner, *between], len(inner)


def _reach(layers: set[str], nodes: Iterable[tuple[str, Any, Any]]) -> set[str]:
    """Names of the nodes, of (name, sources, targets) in order of computation, that are reached from a layer."""
    tensors: set[str] = set()
    reached: set[str] = set()
    for name, sources, targets in nodes:
        if tensors & set(sources):
            reached.add(name)
        if name in reached | layers:
            tensors |= set(targets)
    return reached


def quantize_static(
    proto: onnx.ModelProto, nodes: list[str], calibration: Floats, method: str, form: str = "QDQ"
) -> onnx.ModelProto:
    """A copy of a graph with int8 nodes, in the form QDQ, which is plain ONNX, or QOperator. Raises as onnxruntime."""
    with silence_exporters():
        from onnxruntime import quantization as ort

    class Clips(ort.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.clips = iter(calibration[:, None])  # one by one: histograms need equal shapes

        def get_next(self) -> dict[str, Floats] | None:
            clip = next(self.clips, None)
            return None if clip is None else {INPUT_NAME: clip}

    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    with temporary_folder() as folder, silence_exporters(), contextlib.redirect_stdout(io.StringIO()):
        ort.quantize_static(
            changed, f"{folder}/int8.onnx", Clips(), quant_format=ort.QuantFormat[form], nodes_to_quantize=nodes,
            per_channel=True, activation_type=ort.QuantType.QUInt8, weight_type=ort.QuantType.QInt8,
            # Weights of 7 bits: processors without VNNI add two products in 16 bits, where 8 would overflow.
            reduce_range=True, calibrate_method=ort.CalibrationMethod[METHODS[method]],
        )  # fmt: skip
        quantized = onnx.load(folder / "int8.onnx")
    quantized.graph.ClearField("value_info")
    return quantized


def to_float16_storage(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Store every large float tensor as float16 with a Cast, which onnxruntime computes once on loading."""
    tensors, casts = [], []
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor)
        large = values.dtype == np.float32 and values.size >= _SMALL
        with np.errstate(over="ignore"):  # what becomes infinite stays float
            narrow = values.astype(np.float16)
        if not large or not np.allclose(narrow, values, rtol=1e-3, atol=1e-3 * float(np.abs(values).max())):
            tensors.append(tensor)
            continue
        tensors.append(numpy_helper.from_array(narrow, f"{tensor.name}_half"))
        casts.append(helper.make_node("Cast", [f"{tensor.name}_half"], [tensor.name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    for field, items in (("initializer", tensors), ("node", nodes)):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(items)
    return proto
