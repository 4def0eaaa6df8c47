"""Export of the spotter to streaming ONNX, and ensembles of several spotters in one file.

digit_detector.spotter_file documents the inputs and outputs.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import Tensor, nn
from torch.nn import functional

from digit_detector import spotter_file
from digit_detector.audio import Floats
from digit_detector.errors import ConfigError, ExportError
from digit_detector.files import write_atomically
from digit_detector.spotter_file import BLOCK, DILATIONS_KEY, FRAMES, KERNEL, earlier_frames
from digit_detector.streaming.spotter import load_spotter
from ml_training.deploy.export import TOLERANCE, export_graph, serialize
from ml_training.spotter.model import BACKGROUND, ResidualBlock, Spotter

_MERGED_KEYS = ("data", "data_hash", "steps", "seed", "git_commit", DILATIONS_KEY)
_BLOCK = spotter_file.BLOCK_NAME
_OUTPUTS = (spotter_file.PROBABILITIES_NAME, spotter_file.DURATIONS_NAME)
_INPUT_STATES = (spotter_file.STATE_NAME, spotter_file.EARLIER_NAME)
_OUTPUT_STATES = (spotter_file.STATE_AFTER_NAME, spotter_file.TAKEN_NAME)


class StreamingStep(nn.Module):
    """The graph of one block: the network in an equivalent form that onnxruntime computes quickly.

    Channels come last, so that a depthwise convolution is products and a sum and a pointwise one a matrix product, and
    batch norms are folded into both; as Conv nodes of two frames they take three times as long. The caller keeps the
    ring buffer of earlier frames: moving it through the graph would cost more than the computation.
    """

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.spotter = spotter
        self.projection, self.projection_bias = _fold_pointwise(spotter.projection)
        self.head = spotter.head.weight[:, :, 0].T.contiguous()
        self.head_bias = spotter.head.get_parameter("bias")
        self.blocks: list[tuple[Tensor, Tensor, Tensor, int]] = []
        biases = []
        for block, dilation in zip(spotter.blocks, spotter.dilations, strict=True):
            assert isinstance(block, ResidualBlock)
            scale, bias = _fold_norm(block.norm)
            kernel = block.depthwise.convolution.weight[:, 0].T * scale  # (K, C)
            self.blocks.append((kernel, *_fold_pointwise(block.pointwise), dilation))
            biases.append(bias)
        kernels = torch.cat([kernel[:-1].repeat(FRAMES, 1) for kernel, *_ in self.blocks])
        # What belongs to the block itself is computed in `forward`.
        earlier = torch.tensor([back > 0 for _, back in earlier_frames(spotter.dilations)])[:, None]
        self.kernels = (kernels * earlier).reshape(len(self.blocks), FRAMES, KERNEL - 1, -1)
        self.biases = torch.stack(biases)[:, None]

    def forward(self, sound: Tensor, state: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tail, state1, state2 = self.spotter.unpack_state(state)
        features, tail = self.spotter.log_mel(sound, tail)
        x, state1, state2 = self.spotter.stem(features, state1, state2)
        x = (x.transpose(1, 2) @ self.projection + self.projection_bias).relu()  # (N, F, C)
        sums = (torch.unflatten(earlier, 1, self.kernels.shape[:3]) * self.kernels).sum(dim=3) + self.biases
        taken = []
        for (kernel, pointwise, bias, dilation), inner in zip(self.blocks, sums.unbind(1), strict=True):
            taken.append(x)
            inner = inner + x * kernel[-1]
            if dilation == 1:  # the second frame of the block depends on the first
                inner = inner + functional.pad(x[:, :-1] * kernel[-2], (0, 0, 1, 0))
            x = (x + inner.relu() @ pointwise + bias).relu()
        outputs = x @ self.head + self.head_bias
        posteriors = outputs[..., : BACKGROUND + 1].softmax(dim=2)[..., :BACKGROUND]
        after = torch.cat([part.flatten(1) for part in (tail, state1, state2)], dim=1)
        return posteriors, outputs[..., BACKGROUND + 1].exp() - 1.0, after, torch.cat(taken, dim=1)


def _fold_norm(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and bias (C,) of a batch norm in evaluation mode."""
    assert isinstance(norm, nn.BatchNorm1d)
    scale = norm.weight / (norm.get_buffer("running_var") + norm.eps).sqrt()
    return scale, norm.bias - norm.get_buffer("running_mean") * scale


def _fold_pointwise(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """A pointwise convolution (C, D, 1) and the norm after it as a matrix (D, C) and a bias (C,)."""
    convolution = layers[0]
    assert isinstance(convolution, nn.Conv1d)
    scale, bias = _fold_norm(layers[1])
    return (convolution.weight[:, :, 0] * scale[:, None]).T.contiguous(), bias


def export_spotter(model: Spotter, path: Path, metadata: Mapping[str, str], sound: Floats) -> float:
    """Write `model` to `path` and return the largest difference of a posterior from the network's on `sound` (T,).

    The file is compared as a stream, in the runtime that detects digits, before it is put in place. Raises ExportError
    where the difference exceeds TOLERANCE or the network has no ONNX form.
    """
    model = copy.deepcopy(model).eval()
    step = StreamingStep(model)
    examples = (
        torch.zeros(2, BLOCK), torch.zeros(2, model.stem_state_size),
        torch.zeros(2, len(earlier_frames(model.dilations)), step.biases.shape[-1]),
    )  # fmt: skip
    proto = export_graph(step, examples, [_BLOCK, *_INPUT_STATES], [*_OUTPUTS, *_OUTPUT_STATES])
    content = serialize(proto, {**metadata, DILATIONS_KEY: ",".join(map(str, model.dilations))})
    blocks = sound[: len(sound) // BLOCK * BLOCK].reshape(-1, 1, BLOCK)
    with torch.no_grad():
        expected = model(torch.from_numpy(blocks.reshape(1, -1))).logits.softmax(dim=2)[0, :, :BACKGROUND].numpy()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_bytes(content)
        streaming = load_spotter(file)
    states = [streaming.initial_state()]
    posteriors = np.concatenate([streaming(block, states)[0][0] for block in blocks])
    difference = float(np.abs(posteriors - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the exported {path.name} differs from the network by {difference:.2g}: nothing was written")
    write_atomically(path, content)
    return difference


def join_spotters(files: Sequence[Path], path: Path) -> None:
    """Write an ensemble to `path` that averages the posteriors of the spotters in `files`.

    Raises ConfigError for fewer than two files or networks with different numbers of channels, ModelError for a file
    that is not a spotter.
    """
    if len(files) < 2:
        raise ConfigError([f"join: expected two spotters or more, got {len(files)}"], "train-spotter")
    metadata = [load_spotter(file).metadata for file in files]
    proto = _average([onnx.load(str(file)) for file in files])
    merged = {key: " + ".join(values[key] for values in metadata) for key in _MERGED_KEYS}
    merged[DILATIONS_KEY] = ",".join(values[DILATIONS_KEY] for values in metadata)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomically(path, serialize(proto, {**metadata[0], **merged, "created": created}))


def _average(protos: Sequence[onnx.ModelProto]) -> onnx.ModelProto:
    """One graph of all networks; its states are theirs, one after the other."""
    channels = sorted({_shapes(proto)[_INPUT_STATES[1]][2] for proto in protos})
    if len(channels) > 1:
        raise ConfigError([f"join: expected networks of as many channels, got {channels}"], "train-spotter")
    merged = copy.deepcopy(protos[0])
    graph = merged.graph
    for part in (graph.node, graph.initializer, graph.value_info):
        del part[:]

    def of_each(name: str) -> list[str]:
        return [f"{number}_{name}" for number in range(len(protos))]

    for name in _INPUT_STATES:
        sizes = [_shapes(proto)[name][1] for proto in protos]
        graph.initializer.append(helper.make_tensor(f"{name}_sizes", TensorProto.INT64, [len(sizes)], sizes))
        graph.node.append(helper.make_node("Split", [name, f"{name}_sizes"], of_each(name), axis=1))
    for number, proto in enumerate(protos):
        network = compose.add_prefix(proto, f"{number}_").graph
        for node in network.node:  # all take the same block
            node.input[:] = [_BLOCK if name == f"{number}_{_BLOCK}" else name for name in node.input]
        graph.node.extend(network.node)
        graph.initializer.extend(network.initializer)
    graph.node.extend(helper.make_node("Mean", of_each(name), [name]) for name in _OUTPUTS)
    graph.node.extend(helper.make_node("Concat", of_each(name), [name], axis=1) for name in _OUTPUT_STATES)
    for value in (*graph.input, *graph.output):
        if value.name in _INPUT_STATES + _OUTPUT_STATES:
            size = sum(_shapes(proto)[value.name][1] for proto in protos)
            value.type.tensor_type.shape.dim[1].dim_value = size
    onnx.checker.check_model(merged)
    return merged


def _shapes(proto: onnx.ModelProto) -> dict[str, list[int]]:
    """Shapes of the inputs and outputs; the first axis, which is free, is 0."""
    values = (*proto.graph.input, *proto.graph.output)
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values}
