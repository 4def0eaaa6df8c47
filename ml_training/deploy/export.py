"""A trained network as one ONNX file that answers exactly like it, or no file at all."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from digit_detector.audio import NUM_SAMPLES, Floats
from digit_detector.errors import ExportError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS
from digit_detector.model_file import DIGIT_NAME, INPUT_NAME, SCORES_NAME, model_metadata, seal, unsealed

__all__ = [
    "TOLERANCE", "Network", "answers", "export_onnx", "model_metadata", "network_of", "quiet", "reference_of", "sealed",
]  # fmt: skip

OPSET = 18
TOLERANCE = 1e-4  # largest difference of a score between torch and the file
_BATCH = 64
_SINGLES = 4


@dataclass(frozen=True)
class Network:
    """A trained network as a graph, and what of it was learnt."""

    proto: onnx.ModelProto  # without metadata
    learnt: frozenset[str]  # names of its weights of two and more dimensions


class _Graph(nn.Module):
    """What the file computes: scores, and the digit score as a probability."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        scores, digit = self.model(waveforms)
        return scores, digit.sigmoid()


def export_onnx(model: nn.Module, path: Path, metadata: Mapping[str, str], parity_waveforms: Floats) -> float:
    """Write `model` to `path` as ONNX: "waveform" (N, 8000) float32 -> "logits" (N, 10) and "digit_score" (N,).

    `metadata` (see digit_detector.model_file) goes into the file. The file is then compared with
    the model on `parity_waveforms` (at least one, float32 (N, 8000), real clips), in batches and
    one by one, and put in its place only if they agree. Returns the largest |difference| of a score,
    before a temperature below 1 that the model may have.

    The model itself is left as it is, mode and device included. Raises ExportError when the two
    differ by more than TOLERANCE or the network has no ONNX form, TrainingError when the file cannot
    be written; a file that stood at `path` then stays.
    """
    if parity_waveforms.ndim != 2 or parity_waveforms.shape[1] != NUM_SAMPLES or not len(parity_waveforms):
        raise ExportError(f"comparing needs clips of shape (N, {NUM_SAMPLES}), got {parity_waveforms.shape}")
    waveforms = np.ascontiguousarray(parity_waveforms, dtype=np.float32)
    reference = reference_of(model)
    content = sealed(_to_onnx(reference), metadata)
    # A temperature below 1 stretches the scores and their rounding alike: compared is what it divides.
    stretch = max(1.0, 1.0 / float(getattr(reference.model, "temperature", 1.0)))
    difference = _largest_difference(reference, content, waveforms, stretch)
    if not difference <= TOLERANCE:  # also when it is NaN
        raise ExportError(
            f"the exported {path.name} differs from the trained network by {difference:.2g} in a score, "
            f"at most {TOLERANCE:g} is allowed: nothing was written"
        )
    write_atomically(path, content)
    return difference


def network_of(model: nn.Module) -> Network:
    """A trained model as a graph that nobody has compared with it yet. Raises ExportError as export_onnx does."""
    reference = reference_of(model)
    learnt = frozenset(name for name, weight in reference.named_parameters() if weight.ndim > 1)
    return Network(_to_onnx(reference), learnt)


def sealed(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a file: a graph with its metadata and checksum."""
    onnx.helper.set_model_props(proto, unsealed(metadata))
    return seal(proto.SerializeToString())


def answers(content: bytes, waveforms: Floats) -> tuple[Floats, Floats]:
    """What the bytes of a model make of (N, 8000) waveforms: (N, 10) scores and (N,) digit scores."""
    session = _session(content)
    batches = [waveforms[i : i + _BATCH] for i in range(0, len(waveforms), _BATCH)]
    heard = [session.run([SCORES_NAME, DIGIT_NAME], {INPUT_NAME: batch}) for batch in batches]
    return np.concatenate([scores for scores, _ in heard]), np.concatenate([digits for _, digits in heard])


def reference_of(model: nn.Module) -> _Graph:
    """A copy of a trained model that gives what its file is to give, on the CPU and in evaluation mode."""
    return _Graph(copy.deepcopy(model).cpu()).eval()


def _to_onnx(model: nn.Module) -> onnx.ModelProto:
    example = torch.zeros(2, NUM_SAMPLES)  # two clips: with one the exporter takes the batch for a constant
    return graph_of(model, (example,), [INPUT_NAME], [SCORES_NAME, DIGIT_NAME])


def graph_of(model: nn.Module, examples: tuple[Tensor, ...], inputs: list[str], outputs: list[str]) -> onnx.ModelProto:
    """`model` as a graph, its inputs' and outputs' first axis of any size. Raises ExportError where it has none."""
    first = torch.export.Dim("batch")
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                model,
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=inputs,
                output_names=outputs,
                dynamic_shapes=tuple({0: first} for _ in examples),
                external_data=False,
                verbose=False,
            )
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"torch cannot express this network as ONNX: {error}") from error
    assert program is not None
    proto = program.model_proto
    # The exporter leaves a stack trace of this machine's paths on each node; nobody needs them to answer.
    for node in proto.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    onnx.checker.check_model(proto)
    return proto


def _largest_difference(model: nn.Module, content: bytes, waveforms: Floats, stretch: float) -> float:
    session = _session(content)
    singles = [waveforms[i : i + 1] for i in range(min(_SINGLES, len(waveforms)))]
    batches = [waveforms[i : i + _BATCH] for i in range(0, len(waveforms), _BATCH)]
    largest = 0.0
    for batch in (*batches, *singles):
        with torch.no_grad():
            expected = [outputs.numpy() for outputs in model(torch.from_numpy(batch))]
        try:
            found = session.run([SCORES_NAME, DIGIT_NAME], {INPUT_NAME: batch})
        except Exception as error:  # as below
            raise ExportError(f"the exported network fails on {len(batch)} clips: {error}") from error
        shapes, wanted = [outputs.shape for outputs in found], [(len(batch), len(LABELS)), (len(batch),)]
        if shapes != wanted:
            raise ExportError(
                f"the exported network gives scores of shapes {shapes} for {len(batch)} clips, expected {wanted}"
            )
        scores, digits = (float(np.abs(ours - theirs).max()) for ours, theirs in zip(expected, found, strict=True))
        largest = max(largest, scores / stretch, digits, key=lambda d: (d != d, d))  # NaN is largest
    return largest


def _session(content: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ExportError(f"onnxruntime cannot load the exported network: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Neither warnings nor log lines of the exporters: what they warn of, the comparison checks."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", None)  # the last, the root, is the quantiser's
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
