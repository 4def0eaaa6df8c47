"""A trained network as a program for ExecuTorch, the runtime of phones and small devices; it needs its own extra."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from digit_detector.audio import NUM_SAMPLES, Floats
from digit_detector.errors import ExportError, MissingExtraError
from digit_detector.files import write_atomically
from ml_training.deploy.export import TOLERANCE, quiet, reference_of

METADATA_METHOD = "metadata"  # of the program: gives what the file says of itself, as JSON


def export_executorch(model: nn.Module, path: Path, metadata: Mapping[str, str], parity_waveforms: Floats) -> float:
    """Write `model` to `path` for XNNPACK: a waveform (1, 8000) float32 -> scores (1, 10) and digit score (1,).

    `metadata` is what the method METADATA_METHOD of the program gives. The program is compared with the model on
    `parity_waveforms` (N, 8000), one by one, and put in its place only if they agree; returns the largest |difference|.
    Raises MissingExtraError without the extra [executorch], ExportError where the two differ by more than TOLERANCE or
    the network has no such form.
    """
    if importlib.util.find_spec("executorch") is None:
        raise MissingExtraError("export for ExecuTorch", "executorch")
    reference = reference_of(model)
    for module in reference.modules():  # XNNPACK takes neither channels that come last nor buffers that are not saved
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, buffer)
    for weight in reference.parameters():
        weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
    program = _program(reference, metadata)
    stretch = max(1.0, 1.0 / float(getattr(reference.model, "temperature", 1.0)))  # see export_onnx
    difference = _largest_difference(reference, program, parity_waveforms, stretch)
    if not difference <= TOLERANCE:  # also when it is NaN
        raise ExportError(
            f"{path.name} differs from the trained network by {difference:.2g} in a score, at most {TOLERANCE:g} is "
            "allowed: nothing was written"
        )
    write_atomically(path, program)
    return difference


def _program(reference: nn.Module, metadata: Mapping[str, str]) -> bytes:
    with quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            exported = torch.export.export(reference, (torch.zeros(1, NUM_SAMPLES),))
            lowered = to_edge_transform_and_lower(
                exported, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_METHOD: json.dumps(metadata)}
            )
            content: bytes = lowered.to_executorch().buffer
        except Exception as error:  # of torch or of many passes, which share no narrower base
            reason = " ".join(str(error).split())
            raise ExportError(f"this network cannot be lowered for ExecuTorch: {reason}") from error
    return content


def _largest_difference(reference: nn.Module, program: bytes, waveforms: Floats, stretch: float) -> float:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(program).load_method("forward")
    largest = 0.0
    for waveform in torch.from_numpy(np.ascontiguousarray(waveforms, dtype=np.float32)):
        with torch.no_grad():
            scores, digit = reference(waveform[None])
        found = method.execute([waveform[None]])
        differences = float((found[0] - scores).abs().max()) / stretch, float((found[1] - digit).abs().max())
        largest = max(largest, *differences, key=lambda d: (d != d, d))  # NaN is largest
    return largest
