"""The spotter as an ONNX file that takes sound block by block, compared with the network before it is put in place."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from digit_detector.audio import Floats
from digit_detector.errors import ExportError
from digit_detector.files import write_atomically
from digit_detector.spotter_file import (
    BLOCK,
    BLOCK_NAME,
    DILATIONS_KEY,
    DURATIONS_NAME,
    EARLIER_NAME,
    FRAMES,
    KERNEL,
    PROBABILITIES_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
    TAKEN_NAME,
    earlier_frames,
)
from ml_training.deploy.export import TOLERANCE, export_graph, serialize
from ml_training.spotter.model import NOTHING, Block, Spotter


class _Step(nn.Module):
    """What the file computes of a block of sound and the state before it: the network laid out for onnxruntime.

    Channels come last, so that a convolution over time is products and a sum, and one across channels a matrix product;
    batch norms are part of both. As convolutions onnxruntime takes them three times as long for two frames. What was
    taken in earlier stays with the caller: to move all of it through the graph costs more than to compute with it.
    """

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.spotter = spotter
        self.entrance, self.entrance_bias = _across(spotter.entrance)
        assert spotter.exit.bias is not None
        self.exit, self.exit_bias = spotter.exit.weight[:, :, 0].T.contiguous(), spotter.exit.bias
        self.blocks: list[tuple[Tensor, Tensor, Tensor, int]] = []
        biases = []
        for block, dilation in zip(spotter.blocks, spotter.dilations, strict=True):
            assert isinstance(block, Block)
            scale, bias = _scale(block.norm)
            kernel = block.over_time.convolution.weight[:, 0].T * scale  # (K, C)
            self.blocks.append((kernel, *_across(block.across), dilation))
            biases.append(bias)
        earlier = earlier_frames(spotter.dilations)
        of_each = [kernel[:-1].repeat(FRAMES, 1) for kernel, *_ in self.blocks]
        before = torch.tensor([back > 0 for _, back in earlier])[:, None]  # not in the block itself
        self.kernels = (torch.cat(of_each) * before).reshape(len(of_each), FRAMES, KERNEL - 1, -1)
        self.biases = torch.stack(biases)[:, None]

    def forward(self, sound: Tensor, state: Tensor, earlier: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        before, *convolved = self.spotter.parts_of(state)
        features, tail = self.spotter.features(sound, before)
        x, first, second = self.spotter.front(features, *convolved)
        x = (x.transpose(1, 2) @ self.entrance + self.entrance_bias).relu()  # (N, F, C)
        sums = (torch.unflatten(earlier, 1, self.kernels.shape[:3]) * self.kernels).sum(dim=3) + self.biases
        taken = []
        for (kernel, across, across_bias, dilation), inner in zip(self.blocks, sums.unbind(1), strict=True):
            taken.append(x)
            inner = inner + x * kernel[-1]
            if dilation == 1:  # the block's second frame hears its first
                inner = inner + functional.pad(x[:, :-1] * kernel[-2], (0, 0, 1, 0))
            x = (x + inner.relu() @ across + across_bias).relu()
        said = x @ self.exit + self.exit_bias
        probabilities = said[..., : NOTHING + 1].softmax(dim=2)[..., :NOTHING]
        after = torch.cat([part.flatten(1) for part in (tail, first, second)], dim=1)
        return probabilities, said[..., NOTHING + 1].exp() - 1.0, after, torch.cat(taken, dim=1)


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
    """Write the spotter to `path`; see digit_detector.spotter_file for what goes in and out.

    It is compared with the network on `sound` (T,) as a stream. Returns the largest difference of a probability. Raises
    ExportError where that is more than TOLERANCE or the network has no ONNX form.
    """
    model = copy.deepcopy(model).eval()
    content = serialize(_to_onnx(model), {**metadata, DILATIONS_KEY: ",".join(map(str, model.dilations))})
    with torch.no_grad():
        whole = sound[: len(sound) // BLOCK * BLOCK]
        expected = model(torch.from_numpy(whole[None])).logits.softmax(dim=2)[0, :, :NOTHING].numpy()
    difference = float(np.abs(_answers(content, whole, model.dilations) - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the exported {path.name} differs from the network by {difference:.2g}: nothing was written")
    write_atomically(path, content)
    return difference


def _to_onnx(model: Spotter) -> onnx.ModelProto:
    step = _Step(model)
    *before, channels = step.kernels.shape
    examples = (
        torch.zeros(2, BLOCK), torch.zeros(2, model.front_size), torch.zeros(2, math.prod(before), channels),
    )  # fmt: skip
    return export_graph(
        step, examples, [BLOCK_NAME, STATE_NAME, EARLIER_NAME],
        [PROBABILITIES_NAME, DURATIONS_NAME, STATE_AFTER_NAME, TAKEN_NAME],
    )  # fmt: skip


def _answers(content: bytes, sound: Floats, dilations: Sequence[int]) -> Floats:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _, size, (_, _, channels) = (value.shape for value in session.get_inputs())
    state = np.zeros((1, size[1]), dtype=np.float32)
    longest = (KERNEL - 1) * max(dilations)
    taken = np.zeros((len(dilations), longest + len(sound) // BLOCK * FRAMES, channels), dtype=np.float32)
    probabilities = []
    for i in range(len(sound) // BLOCK):
        now = longest + i * FRAMES
        earlier = np.stack([taken[number, now - back] for number, back in earlier_frames(dilations)])
        fed = {BLOCK_NAME: sound[None, i * BLOCK : (i + 1) * BLOCK], STATE_NAME: state, EARLIER_NAME: earlier[None]}
        said, _, state, new = session.run(None, fed)
        taken[:, now : now + FRAMES] = new[0].reshape(len(dilations), FRAMES, channels)
        probabilities.append(said[0])
    return np.concatenate(probabilities)
