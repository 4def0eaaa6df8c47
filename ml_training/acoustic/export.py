"""Export of the acoustic model to streaming ONNX; digit_detector.acoustic_file documents the inputs and outputs."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from digit_detector.acoustic_file import (
    BLOCK,
    BLOCK_NAME,
    KEYS,
    POSTERIORS_NAME,
    SPEECH_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
)
from digit_detector.audio import Floats
from digit_detector.errors import ConfigError, ExportError
from digit_detector.files import write_atomically
from digit_detector.streaming.acoustic import AcousticSession, load_acoustic_model
from ml_training.acoustic.model import AcousticModel
from ml_training.deploy.export import TOLERANCE, export_graph, serialize


class StreamingStep(nn.Module):
    """The graph of one block: convolutions and GRUs of one frame as matrix products, batch norms folded into them.

    onnxruntime computes it several times as fast as Conv and GRU nodes of one frame.
    """

    def __init__(self, model: AcousticModel) -> None:
        super().__init__()
        self.model = model
        scale, shift = _fold(model.input_norm)
        self.scale, self.shift = scale[:, None], shift[:, None]
        layers = ((model.conv1, model.norm1), (model.conv2, model.norm2), (model.conv3, model.norm3))
        self.kernels = [_fold_convolution(convolution, norm) for convolution, norm in layers]
        self.head = model.head.weight.T.contiguous()

    def forward(self, sound: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tail, mel, hidden1, gru1, hidden3, gru2 = self.model.unpack_state(state)
        features, tail = self.model.log_mel(sound, tail)
        window = torch.cat([mel, features * self.scale + self.shift], dim=2)
        mel = window[:, :, 2:]
        x = _multiply(window, self.kernels[0]).relu()
        window = torch.cat([hidden1, x[:, :, None]], dim=2)
        hidden1 = window[:, :, 1:]
        x = _multiply(window, self.kernels[1]).relu()
        gru1 = _gru(self.model.gru1, x, gru1)
        x = x + gru1
        window = torch.cat([hidden3, x[:, :, None]], dim=2)
        hidden3 = window[:, :, 1:]
        x = x + _multiply(window, self.kernels[2]).relu()
        gru2 = _gru(self.model.gru2, x, gru2)
        outputs = (x + gru2) @ self.head + self.model.head.bias
        states = (tail, mel, hidden1, gru1, hidden3, gru2)
        return (
            outputs[:, :-1].softmax(dim=1), outputs[:, -1].sigmoid(), torch.cat([s.flatten(1) for s in states], dim=1)
        )  # fmt: skip


def _fold(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in evaluation mode."""
    scale = norm.weight / (norm.get_buffer("running_var") + norm.eps).sqrt()
    return scale, norm.bias - norm.get_buffer("running_mean") * scale


def _fold_convolution(convolution: nn.Conv1d, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """A convolution (D, C, K) and the norm after it as a matrix (C * K, D) and a bias (D,)."""
    scale, shift = _fold(norm)
    return (convolution.weight * scale[:, None, None]).flatten(1).T.contiguous(), shift


def _multiply(window: Tensor, kernel: tuple[Tensor, Tensor]) -> Tensor:
    """(N, C, K) inputs of a convolution -> its one output (N, D)."""
    return window.flatten(1) @ kernel[0] + kernel[1]


def _gru(layer: nn.GRU, x: Tensor, hidden: Tensor) -> Tensor:
    """One step of a GRU: (N, C) input and (N, C) hidden state -> the next (N, C)."""
    weight = layer.get_parameter
    inner = x @ weight("weight_ih_l0").T + weight("bias_ih_l0")
    recurrent = hidden @ weight("weight_hh_l0").T + weight("bias_hh_l0")
    (r, z, n), (hr, hz, hn) = inner.chunk(3, dim=1), recurrent.chunk(3, dim=1)
    reset, update = (r + hr).sigmoid(), (z + hz).sigmoid()
    candidate = (n + reset * hn).tanh()
    return candidate + update * (hidden - candidate)


def export_acoustic(model: AcousticModel, path: Path, metadata: Mapping[str, str], sound: Floats) -> float:
    """Write `model` to `path` and return the largest difference of a posterior from the network's on `sound` (T,).

    The file is compared as a stream, in the runtime that detects digits, before it is put in place. Raises ExportError
    where the difference exceeds TOLERANCE or the network has no ONNX form.
    """
    model = copy.deepcopy(model).eval()
    proto = export_graph(
        StreamingStep(model), (torch.zeros(2, BLOCK), model.initial_state(2)), [BLOCK_NAME, STATE_NAME],
        [POSTERIORS_NAME, SPEECH_NAME, STATE_AFTER_NAME],
    )  # fmt: skip
    content = serialize(proto, metadata)
    blocks = sound[: len(sound) // BLOCK * BLOCK].reshape(-1, 1, BLOCK)
    with torch.no_grad():
        output = model(torch.from_numpy(blocks.reshape(1, -1)))
    expected = torch.cat([output.logits.softmax(dim=2)[0], output.speech.sigmoid()[0, :, None]], dim=1).numpy()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        file.write_bytes(content)
        session = AcousticSession(file)
    state, frames = session.initial_state()[None], []
    for block in blocks:
        posteriors, speech, state = session(block, state)
        frames.append(np.concatenate([posteriors, speech[:, None]], axis=1))
    difference = float(np.abs(np.concatenate(frames) - expected).max())
    if not difference <= TOLERANCE:
        raise ExportError(f"the exported {path.name} differs from the network by {difference:.2g}: nothing was written")
    write_atomically(path, content)
    return difference


def average_models(files: Sequence[Path], out: Path) -> None:
    """Write a model whose weights are the mean of those in `files`, which should come from one training.

    It often hears other speakers better than the last of them (model soups, Wortsman et al. 2022). The metadata is that
    of the last file. Raises ConfigError for fewer than two files or other shapes, ModelError for a file that is none.
    """
    if len(files) < 2:
        raise ConfigError([f"average: expected two files or more, got {len(files)}"], "train-live")
    metadata = [load_acoustic_model(file).metadata for file in files]
    protos = [onnx.load(str(file)) for file in files]
    weights = [{each.name: numpy_helper.to_array(each) for each in proto.graph.initializer} for proto in protos]
    if any({n: w.shape for n, w in each.items()} != {n: w.shape for n, w in weights[0].items()} for each in weights):
        raise ConfigError(["average: the files have networks of other shapes"], "train-live")
    for initializer in protos[-1].graph.initializer:
        values = [each[initializer.name] for each in weights]
        if values[0].dtype == np.float32:
            mean = np.asarray(np.mean(np.stack(values), axis=0, dtype=np.float64), dtype=np.float32)
            initializer.CopyFrom(numpy_helper.from_array(mean, initializer.name))
    del protos[-1].metadata_props[:]
    kept = {key: value for key, value in metadata[-1].items() if key in KEYS}
    write_atomically(out, serialize(protos[-1], kept))
