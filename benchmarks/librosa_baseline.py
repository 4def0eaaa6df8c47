"""The network of an exported model in eager torch on features by librosa, with the weights of the exported file."""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import ModelError
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel
from ml_training.pipelines.features import HOP, WINDOW, Deltas, LogMel

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class LibrosaLogMel(nn.Module):
    """(B, T) -> (B, M, F) in dB, one clip after the other."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.bands = bands

    def forward(self, waveforms: Tensor) -> Tensor:
        found = [
            librosa.power_to_db(
                librosa.feature.melspectrogram(
                    y=clip, sr=SAMPLE_RATE, n_fft=WINDOW, hop_length=HOP, n_mels=self.bands, pad_mode="constant"
                ),
                top_db=None,
            )
            for clip in waveforms.numpy()
        ]
        return torch.from_numpy(np.stack(found).astype(np.float32))

    def power_by_banks(self, waveforms: Tensor, banks: Tensor) -> Tensor:
        """(B, T) -> (B, V, M, F): librosa's power spectrogram through the filter banks of each vocal tract."""
        found = [
            banks.numpy() @ np.abs(librosa.stft(clip, n_fft=WINDOW, hop_length=HOP, pad_mode="constant")) ** 2
            for clip in waveforms.numpy()
        ]
        return torch.from_numpy(np.stack(found).astype(np.float32))


class LibrosaDeltas(nn.Module):
    """(B, C, F) -> first and second derivative over time, each (B, C, F)."""

    def forward(self, cepstra: Tensor) -> tuple[Tensor, Tensor]:
        first, second = (librosa.feature.delta(cepstra.numpy(), order=order, axis=-1) for order in (1, 2))
        return torch.from_numpy(first), torch.from_numpy(second)


def eager_model(file: Path, pipeline: str) -> tuple[DigitModel, float]:
    """The network of an exported model with librosa before it, and how large its weights are, MB.

    Raises ModelError for a file whose weights are not those of this version's network.
    """
    model = network_in(file, pipeline)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LogMel):
                setattr(parent, name, LibrosaLogMel(child.bands))
            elif isinstance(child, Deltas):
                setattr(parent, name, LibrosaDeltas())
    state = model.state_dict()
    return model, sum(tensor.numel() * tensor.element_size() for tensor in state.values()) / 1e6


def network_in(file: Path, pipeline: str) -> DigitModel:
    """The network of an exported model, with our front end.

    The export folded batch normalisation into the weights before it; here it is there again, and changes nothing but
    the time. Raises ModelError for a file whose weights are not those of this version's network.
    """
    initializers = {value.name: numpy_helper.to_array(value) for value in onnx.load(file).graph.initializer}
    weights = {name.removeprefix("model."): value for name, value in initializers.items()}
    model = get_pipeline(pipeline).build().eval()
    state = model.state_dict()
    before = ""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            before = name
        elif isinstance(module, _NORMS):
            folded = weights.get(f"{before}.weight_bias")
            state[f"{name}.running_var"].fill_(1.0 - module.eps)
            if folded is not None:
                state[f"{name}.bias"].copy_(torch.from_numpy(folded.copy()))
    for name, tensor in state.items():
        if name in weights and weights[name].shape == tuple(tensor.shape):
            tensor.copy_(torch.from_numpy(weights[name].copy()))
        elif name.endswith(".weight") and tensor.ndim > 1:
            raise ModelError(f"{file} has no {tuple(tensor.shape)} weights {name}: export it again with this version")
    model.load_state_dict(state)
    return model
