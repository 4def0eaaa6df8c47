"""Export a trained network as one ONNX file, written only if it computes what the network computes."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from digit_detector.audio import NUM_SAMPLES, Floats
from digit_detector.errors import ExportError
from digit_detector.files import write_atomically
from digit_detector.labels import LABELS
from digit_detector.model_file import DIGIT_NAME, INPUT_NAME, SCORES_NAME, add_checksum, reserve_checksum
from digit_detector.onnx_session import open_session

OPSET = 18
TOLERANCE = 1e-4  # largest |difference| of an output between torch and the file
_BATCH = 64
_SINGLES = 4


@dataclass(frozen=True)
class Network:
    """A trained network as an ONNX graph."""

    proto: onnx.ModelProto  # without metadata
    weights: frozenset[str]  # names of the trained weights of two and more dimensions


class ExportModule(nn.Module):
    """The outputs of a model file: (N, 10) scores and the (N,) digit score as a probability."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        self.eval()

    def forward(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        scores, digit = self.model(waveforms)
        return scores, digit.sigmoid()


def export_onnx(model: nn.Module, path: Path, metadata: Mapping[str, str], parity_waveforms: Floats) -> float:
    """Write `model` to `path` as ONNX: "waveform" (N, 8000) float32 -> "logits" (N, 10) and "digit_score" (N,).

    The file, with `metadata` (see digit_detector.model_file), is compared with the model on `parity_waveforms`
    (N, 8000), real clips, in batches and one by one, before it replaces a file at `path`. Returns the largest
    |difference|, see `check_parity`. The model is left as it is, mode and device included.

    Raises ExportError where the two differ or the network has no ONNX form, TrainingError where the file cannot be
    written; a file that existed at `path` is kept then.
    """
    if parity_waveforms.ndim != 2 or parity_waveforms.shape[1] != NUM_SAMPLES or not len(parity_waveforms):
        raise ExportError(f"comparing needs clips of shape (N, {NUM_SAMPLES}), got {parity_waveforms.shape}")
    waveforms = np.ascontiguousarray(parity_waveforms, dtype=np.float32)
    module = ExportModule(model)
    content = serialize(_convert(module), metadata)
    session = open_session(content, path)
    batches = [*_split(waveforms, _BATCH), *_split(waveforms[:_SINGLES], 1)]
    difference = check_parity(
        path.name, module, lambda batch: session.run([SCORES_NAME, DIGIT_NAME], {INPUT_NAME: batch}), batches
    )
    write_atomically(path, content)
    return difference


def convert_network(model: nn.Module) -> Network:
    """Convert a trained model without comparing it. Raises ExportError where it has no ONNX form."""
    module = ExportModule(model)
    weights = frozenset(name for name, weight in module.named_parameters() if weight.ndim > 1)
    return Network(_convert(module), weights)


def serialize(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a model file: a graph with its metadata and checksum."""
    onnx.helper.set_model_props(proto, reserve_checksum(metadata))
    return add_checksum(proto.SerializeToString())


def run_model(content: bytes, waveforms: Floats) -> tuple[Floats, Floats]:
    """Run the bytes of a model on (N, 8000) waveforms: (N, 10) scores and (N,) digit scores."""
    session = open_session(content, Path("model.onnx"))
    outputs = [session.run([SCORES_NAME, DIGIT_NAME], {INPUT_NAME: batch}) for batch in _split(waveforms, _BATCH)]
    return np.concatenate([scores for scores, _ in outputs]), np.concatenate([digits for _, digits in outputs])


def check_parity(
    name: str, module: ExportModule, run: Callable[[Floats], Sequence[Floats]], batches: Iterable[Floats]
) -> float:
    """Compare an exported program, `run`, with `module`; returns the largest |difference| of an output.

    A temperature below 1 stretches the scores and their rounding alike, so the scores before it are compared. Raises
    ExportError where the program fails, has other shapes or differs by more than TOLERANCE.
    """
    stretch = max(1.0, 1.0 / float(getattr(module.model, "temperature", 1.0)))
    largest = 0.0
    for batch in batches:
        with torch.no_grad():
            expected = [outputs.numpy() for outputs in module(torch.from_numpy(batch))]
        try:
            found = run(batch)
        except Exception as error:  # the exceptions of the runtimes share no narrower base
            raise ExportError(f"the exported network fails on {len(batch)} clips: {error}") from error
        shapes, wanted = [outputs.shape for outputs in found], [(len(batch), len(LABELS)), (len(batch),)]
        if shapes != wanted:
            raise ExportError(
                f"the exported network gives scores of shapes {shapes} for {len(batch)} clips, expected {wanted}"
            )
        scores, digits = (float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
        largest = max(largest, scores / stretch, digits, key=lambda d: (d != d, d))  # NaN is largest
    if not largest <= TOLERANCE:  # also when it is NaN
        raise ExportError(
            f"the exported {name} differs from the trained network by {largest:.2g} in a score, "
            f"at most {TOLERANCE:g} is allowed: nothing was written"
        )
    return largest


def export_graph(
    model: nn.Module, examples: tuple[Tensor, ...], inputs: list[str], outputs: list[str]
) -> onnx.ModelProto:
    """Convert `model` to a graph whose inputs and outputs have a first axis of any size. Raises ExportError."""
    first = torch.export.Dim("batch")
    try:
        with silence_exporters(), torch.no_grad():
            program = torch.onnx.export(
                model, examples, dynamo=True, opset_version=OPSET, input_names=inputs, output_names=outputs,
                dynamic_shapes=tuple({0: first} for _ in examples), external_data=False, verbose=False,
            )  # fmt: skip
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        raise ExportError(f"torch cannot express this network as ONNX: {error}") from error
    assert program is not None
    proto = program.model_proto
    for node in proto.graph.node:  # the exporter adds stack traces with paths of this machine
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        value.ClearField("metadata_props")
    proto.graph.ClearField("metadata_props")
    onnx.checker.check_model(proto)
    return proto


@contextlib.contextmanager
def silence_exporters() -> Iterator[None]:
    """Suppress warnings and log messages of the exporters; what they warn of, the comparison checks."""
    names = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", None)  # None: the root, used by quantization
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


def _convert(module: ExportModule) -> onnx.ModelProto:
    example = torch.zeros(2, NUM_SAMPLES)  # with one clip the exporter takes the batch size for a constant
    return export_graph(module, (example,), [INPUT_NAME], [SCORES_NAME, DIGIT_NAME])


def _split(waveforms: Floats, size: int) -> list[Floats]:
    return [waveforms[start : start + size] for start in range(0, len(waveforms), size)]
