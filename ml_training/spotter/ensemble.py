"""Several spotters as one file that says the mean of what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, compose, helper

from digit_detector.errors import ConfigError, ModelError
from digit_detector.files import write_atomically
from digit_detector.model_file import is_intact
from digit_detector.spotter_file import (
    BLOCK_NAME,
    DILATIONS_KEY,
    DURATIONS_NAME,
    EARLIER_NAME,
    PROBABILITIES_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
    TAKEN_NAME,
    check_spotter,
)
from ml_training.deploy.export import serialize

_EACH = ("data", "data_hash", "steps", "seed", "git_commit")  # metadata that are told of every one
_SPLIT = (STATE_NAME, EARLIER_NAME)
_CONCATENATED = (STATE_AFTER_NAME, TAKEN_NAME)


def join_spotters(files: Sequence[Path], path: Path) -> None:
    """Write the mean of the spotters in `files` to `path`; its state and convolutions are theirs, one after the other.

    Networks that learnt apart err apart: the mean takes fewer other words for digits and loses no more of them. Raises
    ConfigError for fewer than two files or unlike networks, ModelError for a file that is no spotter.
    """
    if len(files) < 2:
        raise ConfigError([f"join: expected two spotters or more, got {len(files)}"], "train-spotter")
    graphs, metadata = [], []
    for file in files:
        content = _read(file)
        try:
            proto = onnx.load_from_string(content)
        except Exception as error:  # protobuf's own, of a package that onnx brings along
            raise ModelError(f"{file} is damaged or no ONNX model; copy or train it again") from error
        found = {entry.key: entry.value for entry in proto.metadata_props}
        check_spotter(found, str(file))
        if not is_intact(content, found):
            raise ModelError(f"{file} is damaged: its checksum is not that of its export; copy or train it again")
        graphs.append(proto)
        metadata.append(found)
    joined = {**metadata[0], "created": datetime.now(UTC).isoformat(timespec="seconds")}
    for key in _EACH:
        joined[key] = " + ".join(found[key] for found in metadata)
    joined[DILATIONS_KEY] = ",".join(found[DILATIONS_KEY] for found in metadata)
    write_atomically(path, serialize(_mean(graphs), joined))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error


def _mean(protos: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    shapes = [_shapes(proto) for proto in protos]
    channels = sorted({shape[EARLIER_NAME][2] for shape in shapes})
    if len(channels) > 1:
        raise ConfigError([f"join: expected networks of as many channels, got {channels}"], "train-spotter")
    nodes: list[onnx.NodeProto] = []
    inner: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    for name in _SPLIT:
        sizes = [shape[name][1] for shape in shapes]
        weights.append(helper.make_tensor(f"{name}_sizes", TensorProto.INT64, [len(sizes)], sizes))
        nodes.append(helper.make_node("Split", [name, f"{name}_sizes"], _of_each(protos, name), axis=1))
    for number, proto in enumerate(protos):
        prefix = f"{number}_"
        graph = compose.add_prefix(proto, prefix).graph
        for node in graph.node:  # all hear the same sound
            node.input[:] = [BLOCK_NAME if name == prefix + BLOCK_NAME else name for name in node.input]
        inner += graph.node
        weights += graph.initializer
    nodes += inner
    nodes += [helper.make_node("Mean", _of_each(protos, name), [name]) for name in (PROBABILITIES_NAME, DURATIONS_NAME)]
    nodes += [helper.make_node("Concat", _of_each(protos, name), [name], axis=1) for name in _CONCATENATED]

    def described(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        batch, *rest = shapes[0][value.name]
        if value.name in _SPLIT + _CONCATENATED:
            rest[0] = sum(shape[value.name][1] for shape in shapes)
        return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, [batch, *rest])

    first = protos[0].graph
    inputs, outputs = [described(value) for value in first.input], [described(value) for value in first.output]
    graph = helper.make_graph(nodes, "spotters", inputs, outputs, weights)
    proto = helper.make_model(graph, opset_imports=list(protos[0].opset_import), ir_version=protos[0].ir_version)
    onnx.checker.check_model(proto)
    return proto


def _shapes(proto: onnx.ModelProto) -> dict[str, list[Any]]:
    """Of the inputs and outputs; the name of the first axis, which is free."""
    return {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }


def _of_each(protos: Sequence[onnx.ModelProto], name: str) -> list[str]:
    return [f"{number}_{name}" for number in range(len(protos))]
