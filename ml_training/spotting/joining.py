"""Several spotters as one file that says the mean of what they say."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import onnx
from onnx import TensorProto, compose, helper

from ml_training.deploy.export import sealed
from ml_training.deploy.metadata import is_intact
from ml_training.deploy.spotter_file import (
    BLOCK,
    BLOCK_NAME,
    DURATIONS_NAME,
    PROBABILITIES_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
    check_spotter,
)  # fmt: skip
from ml_training.errors import ConfigError, ModelError
from ml_training.utils.files import write_atomically

_EACH = ("data", "data_hash", "steps", "seed", "git_commit")  # metadata that are told of every one


def join_spotters(files: Sequence[Path], path: Path) -> None:
    """Write the mean of the spotters in `files` to `path`; its state is theirs, one after the other.

    Networks that learnt apart err apart: the mean takes fewer other words for digits and loses no more of them. Raises
    ConfigError for fewer than two files, ModelError for one that is no spotter.
    """
    if len(files) < 2:
        raise ConfigError([f"join: expected two spotters or more, got {len(files)}"], "train-spotter")
    graphs, metadata = [], []
    for file in files:
        content = _read(file)
        proto = onnx.load_from_string(content)
        found = {entry.key: entry.value for entry in proto.metadata_props}
        check_spotter(found, str(file))
        if not is_intact(content, found):
            raise ModelError(f"{file} is damaged: its checksum is not that of its export; copy or train it again")
        graphs.append(proto)
        metadata.append(found)
    joined = {**metadata[0], "created": datetime.now(UTC).isoformat(timespec="seconds")}
    for key in _EACH:
        joined[key] = " + ".join(found[key] for found in metadata)
    write_atomically(path, sealed(_mean(graphs), joined))


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read {file}: {error.strerror or error}") from error


def _mean(protos: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    sizes = [proto.graph.input[1].type.tensor_type.shape.dim[1].dim_value for proto in protos]
    states, nodes, weights = [], [], [helper.make_tensor("sizes", TensorProto.INT64, [len(sizes)], sizes)]
    said: dict[str, list[str]] = {PROBABILITIES_NAME: [], DURATIONS_NAME: [], STATE_AFTER_NAME: []}
    for number, proto in enumerate(protos):
        prefix = f"{number}_"
        graph = compose.add_prefix(proto, prefix).graph
        for node in graph.node:  # all hear the same sound
            node.input[:] = [BLOCK_NAME if name == prefix + BLOCK_NAME else name for name in node.input]
        states.append(prefix + STATE_NAME)
        nodes += graph.node
        weights += graph.initializer
        for name, of_each in said.items():
            of_each.append(prefix + name)
    nodes = [
        helper.make_node("Split", [STATE_NAME, "sizes"], states, axis=1),
        *nodes,
        helper.make_node("Mean", said[PROBABILITIES_NAME], [PROBABILITIES_NAME]),
        helper.make_node("Mean", said[DURATIONS_NAME], [DURATIONS_NAME]),
        helper.make_node("Concat", said[STATE_AFTER_NAME], [STATE_AFTER_NAME], axis=1),
    ]
    first = protos[0].graph
    shapes = {BLOCK_NAME: ["batch", BLOCK], STATE_NAME: ["batch", sum(sizes)], STATE_AFTER_NAME: ["batch", sum(sizes)]}
    for value in first.output[:2]:
        shapes[value.name] = [dim.dim_value or "batch" for dim in value.type.tensor_type.shape.dim]

    def described(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])

    graph = helper.make_graph(
        nodes, "spotters", [described(BLOCK_NAME), described(STATE_NAME)],
        [described(PROBABILITIES_NAME), described(DURATIONS_NAME), described(STATE_AFTER_NAME)], weights,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=list(protos[0].opset_import), ir_version=protos[0].ir_version)
    onnx.checker.check_model(proto)
    return proto
