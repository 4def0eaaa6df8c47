"""Metadata and graph of a model file, without torch; the graph needs the onnx package."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digit_detector.errors import ModelError
from digit_detector.labels import FP32
from digit_detector.model_file import CHECKSUM_KEY, FORMAT_KEY, is_intact
from digit_detector.onnx_session import open_session


@dataclass(frozen=True)
class Graph:
    """Size and cost of a model."""

    opset: int
    operators: Mapping[str, int]  # name -> nodes, the most frequent first
    numbers: Mapping[str, int]  # type -> parameters and constants in the file, the most frequent first
    multiply_adds: int  # of one clip, in convolutions and matrix products
    int8_multiply_adds: int  # those of int8 layers
    uncounted: int  # convolutions and products of unknown shape, included in neither


@dataclass(frozen=True)
class Inspection:
    """A model file of this program."""

    file: str
    size: int  # bytes
    sealed: bool  # it has a checksum
    intact: bool  # the checksum is right; True without one
    metadata: Mapping[str, str]
    inputs: Mapping[str, str]  # name -> type and shape
    outputs: Mapping[str, str]
    graph: Graph | None  # None without the onnx package

    @property
    def precision(self) -> str:
        return self.metadata.get("precision", FP32)


def inspect_model(path: str | Path) -> Inspection:
    """Inspect an ONNX file of this program.

    Raises ModelError for a file that is missing, cut off, no ONNX model or of another program. A file that was changed
    after its export is returned with `intact` False.
    """
    file = Path(path)
    content, metadata, inputs, outputs = _read(file)
    if FORMAT_KEY not in metadata:
        raise ModelError(f"{file} is an ONNX model, but no model of this package: its metadata has no {FORMAT_KEY!r}")
    return Inspection(
        file=str(file), size=len(content), sealed=CHECKSUM_KEY in metadata, intact=is_intact(content, metadata),
        metadata=metadata, inputs=inputs, outputs=outputs, graph=_read_graph(content),
    )  # fmt: skip


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata of a model file. Raises ModelError for one that is missing, no ONNX model or was changed."""
    content, metadata, _, _ = _read(Path(path))
    if not is_intact(content, metadata):
        raise ModelError(f"{path} is damaged: its checksum is not that of its export; copy, export or train it again")
    return metadata


def _read(file: Path) -> tuple[bytes, dict[str, str], dict[str, str], dict[str, str]]:
    """Content, metadata, inputs and outputs."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error
    session = open_session(content, file, optimize=False)
    try:
        inputs, outputs = ({n.name: _format_type(n.type, n.shape) for n in nodes}
                           for nodes in (session.get_inputs(), session.get_outputs()))  # fmt: skip
        return content, dict(session.get_modelmeta().custom_metadata_map), inputs, outputs
    except UnicodeDecodeError as error:
        raise ModelError(f"{file} is damaged: its names are no text; copy, export or train it again") from error


def _format_type(kind: str, shape: Sequence[Any]) -> str:
    sizes = ["N", *map(str, shape[1:])] if shape else []
    return f"{kind.removeprefix('tensor(').removesuffix(')')} ({', '.join(sizes)})"


def _read_graph(content: bytes) -> Graph | None:
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnx

    model = onnx.load_from_string(content)
    kinds = onnx.TensorProto.DataType
    numbers: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        kind = kinds.Name(tensor.data_type).lower()
        numbers["float32" if kind == "float" else kind] += math.prod(tensor.dims)
    total, int8, uncounted = _count_multiply_adds(model)
    return Graph(
        opset=next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0),
        operators=dict(Counter(node.op_type for node in model.graph.node).most_common()),
        numbers=dict(numbers.most_common()), multiply_adds=total, int8_multiply_adds=int8, uncounted=uncounted,
    )  # fmt: skip


def _count_multiply_adds(model: Any) -> tuple[int, int, int]:
    """Multiply-adds of one clip, those of layers with int8 weights, and the number of layers of unknown shape."""
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.ClearField("value_info")  # shapes for any number of clips
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if all(size.HasField("dim_value") for size in sizes):
            shapes.setdefault(value.name, [size.dim_value for size in sizes])
    dequantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    total, int8, uncounted = 0, 0, 0
    for node in model.graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        output, weight, first = (shapes.get(name) for name in (node.output[0], node.input[1], node.input[0]))
        if output is None or weight is None or first is None:
            uncounted += 1
            continue
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = math.prod(weight[1:]) if node.op_type == "Conv" else first[-2 if transposed else -1]
        total += math.prod(output) * inner
        int8 += math.prod(output) * inner * (node.input[1] in dequantized)
    return total, int8, uncounted
