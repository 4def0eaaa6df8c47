"""The spotter as an ONNX file that takes sound block by block, compared with the network before it is put in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from ml_training.audio import Floats
from ml_training.deploy.export import TOLERANCE, graph_of, sealed
from ml_training.deploy.spotter_file import (
    BLOCK_NAME,
    DURATIONS_NAME,
    PROBABILITIES_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
)  # fmt: skip
from ml_training.errors import ExportError
from ml_training.spotting.network import BLOCK, HOP, NOTHING, Block, Spotter
from ml_training.utils.files import write_atomically

FRAMES = BLOCK // HOP


class _Step(nn.Module):
    """What the file computes of a block of sound and the state before it: the network laid out for onnxruntime.

    Channels come last, so that a convolution over time is products and a sum, and one across channels a matrix product;
    batch norms are part of both. As convolutions onnxruntime takes them three times as long for two frames. What the
    frames before the block add to all convolutions over time is computed at once: moving them costs more than adding.
    """

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.spotter = spotter
        self.entrance, self.entrance_bias = _across(spotter.entrance)
        assert spotter.exit.bias is not None
        self.exit, self.exit_bias = spotter.exit.weight[:, :, 0].T.contiguous(), spotter.exit.bias
        self.blocks: list[tuple[Tensor, Tensor, Tensor, int, int]] = []
        kernels, biases, earlier, begin = [], [], [], 0
        for block, dilation in zip(spotter.blocks, spotter.dilations, strict=True):
            assert isinstance(block, Block)
            scale, bias = _scale(block.norm)
            kernel = block.over_time.convolution.weight[:, 0].T * scale  # (K, C); its last is of the frame itself
            past = (len(kernel) - 1) * dilation
            for frame in range(FRAMES):
                heard = [frame + k * dilation for k in range(len(kernel) - 1)]  # of what lies before, and the block
                earlier += [begin + (at if at < past else 0) for at in heard]
                kernels += [weight * (at < past) for weight, at in zip(kernel, heard, strict=False)]
            biases.append(bias)
            self.blocks.append((kernel, *_across(block.across), begin, past))
            begin += past
        count, channels = len(self.blocks), len(biases[0])
        self.earlier = torch.tensor(earlier)  # frames before the block that its frames are told of, layer by layer
        self.kernels = torch.stack(kernels).reshape(count, FRAMES, -1, channels)
        self.biases = torch.stack(biases)[:, None]

    def forward(self, sound: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = self.spotter.parts_of(state)
        features, tail = self.spotter.features(sound, parts[0])
        x, first, second = self.spotter.front(features, parts[1], parts[2])
        x = (x.transpose(1, 2) @ self.entrance + self.entrance_bias).relu()  # (N, F, C)
        channels = x.shape[2]
        size = sum(past for *_, past in self.blocks) * channels
        before = torch.unflatten(state[:, state.shape[1] - size :], 1, (-1, channels))  # (N, frames of all layers, C)
        heard = torch.unflatten(before.index_select(1, self.earlier), 1, self.kernels.shape[:3])
        sums = ((heard * self.kernels).sum(dim=3) + self.biases).unbind(1)  # (N, F, C) each
        states = [tail, first, second]
        for (kernel, across, across_bias, begin, past), earlier in zip(self.blocks, sums, strict=True):
            states += [before[:, begin + FRAMES : begin + past], x]
            inner = earlier + x * kernel[-1]
            if past == len(kernel) - 1:  # the block's first frame is told to its second
                inner = inner + functional.pad(x[:, :-1] * kernel[-2], (0, 0, 1, 0))
            x = (x + inner.relu() @ across + across_bias).relu()
        said = x @ self.exit + self.exit_bias
        after = torch.cat([part.flatten(1) for part in states], dim=1)
        return said[..., : NOTHING + 1].softmax(dim=2)[..., :NOTHING], said[..., NOTHING + 1].exp() - 1.0, after


def _scale(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a batch norm in evaluation mode multiplies by and adds, (C,) each."""
    assert isinstance(norm, nn.BatchNorm1d)
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = norm.weight / (variance + norm.eps).sqrt()
    return scale, norm.bias - mean * scale


def _across(layers: nn.Sequential) -> tuple[Tensor, Tensor]:
    """A convolution of kernel 1 (C, D, 1) and the norm after it as a matrix (D, C) and a bias (C,)."""
    convolution = layers[0]
    assert isinstance(convolution, nn.Conv1d)
    scale, bias = _scale(layers[1])
    return (convolution.weight[:, :, 0] * scale[:, None]).T.contiguous(), bias


def export_spotter(model: Spotter, path: Path, metadata: Mapping[str, str], sound: Floats) -> float:
    """Write the spotter to `path`; see ml_training.deploy.spotter_file for what goes in and out.

    It is compared with the network on `sound` (T,) as a stream. Returns the largest difference of a probability. Raises
    ExportError where that is more than TOLERANCE or the network has no ONNX form.
    """
    model = copy.deepcopy(model).eval()
    content = sealed(_to_onnx(model), metadata)
    with torch.no_grad():
        whole = sound[: len(sound) // BLOCK * BLOCK]
        expected = model(torch.from_numpy(whole[None])).logits.softmax(dim=2)[0, :, :NOTHING].numpy()
    difference = float(np.abs(_answers(content, whole) - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the exported {path.name} differs from the network by {difference:.2g}: nothing was written")
    write_atomically(path, content)
    return difference


def _to_onnx(model: Spotter) -> onnx.ModelProto:
    examples = (torch.zeros(2, BLOCK), model.quiet(2))
    return graph_of(
        _Step(model), examples, [BLOCK_NAME, STATE_NAME], [PROBABILITIES_NAME, DURATIONS_NAME, STATE_AFTER_NAME]
    )


def _answers(content: bytes, sound: Floats) -> Floats:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    state = np.zeros((1, session.get_inputs()[1].shape[1]), dtype=np.float32)
    probabilities = []
    for i in range(0, len(sound), BLOCK):
        said, _, state = session.run(None, {BLOCK_NAME: sound[None, i : i + BLOCK], STATE_NAME: state})
        probabilities.append(said[0])
    return np.concatenate(probabilities)
