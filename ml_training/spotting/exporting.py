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

from ml_training.audio import Floats
from ml_training.deploy.export import OPSET, TOLERANCE, quiet, sealed
from ml_training.deploy.spotter_file import (
    BLOCK_NAME,
    DURATIONS_NAME,
    PROBABILITIES_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
)  # fmt: skip
from ml_training.errors import ExportError
from ml_training.spotting.network import BLOCK, NOTHING, Spotter
from ml_training.utils.files import write_atomically


class _Step(nn.Module):
    """What the file computes of a block of sound and the state before it."""

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        self.spotter = spotter

    def forward(self, sound: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        said, after = self.spotter.step(sound, state)
        return said.logits.softmax(dim=2)[..., :NOTHING], said.frames.exp() - 1.0, after


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
    streams = torch.export.Dim("streams")
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Step(model),
                (torch.zeros(2, BLOCK), model.quiet(2)),
                dynamo=True,
                opset_version=OPSET,
                input_names=[BLOCK_NAME, STATE_NAME],
                output_names=[PROBABILITIES_NAME, DURATIONS_NAME, STATE_AFTER_NAME],
                dynamic_shapes=({0: streams}, {0: streams}),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"torch cannot express the spotter as ONNX: {error}") from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    onnx.checker.check_model(proto)
    return proto


def _answers(content: bytes, sound: Floats) -> Floats:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    state = np.zeros((1, session.get_inputs()[1].shape[1]), dtype=np.float32)
    probabilities = []
    for i in range(0, len(sound), BLOCK):
        said, _, state = session.run(None, {BLOCK_NAME: sound[None, i : i + BLOCK], STATE_NAME: state})
        probabilities.append(said[0])
    return np.concatenate(probabilities)
