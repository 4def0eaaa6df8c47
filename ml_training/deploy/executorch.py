"""Export a trained network for ExecuTorch, the runtime of phones and small devices; needs the extra [executorch]."""

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
from ml_training.deploy.export import ExportModule, check_parity, silence_exporters

METADATA_METHOD = "metadata"  # of the program; returns the metadata as JSON


def export_executorch(model: nn.Module, path: Path, metadata: Mapping[str, str], parity_waveforms: Floats) -> float:
    """Write `model` to `path` for XNNPACK: a waveform (1, 8000) float32 -> scores (1, 10) and digit score (1,).

    The program is compared with the model on `parity_waveforms` (N, 8000), one by one, before it is written; returns
    the largest |difference|. Raises MissingExtraError without the extra [executorch], ExportError where the two differ
    or the network cannot be lowered.
    """
    if importlib.util.find_spec("executorch") is None:
        raise MissingExtraError("export for ExecuTorch", "executorch")
    module = ExportModule(model)
    for part in module.modules():  # XNNPACK takes neither channels-last weights nor buffers that are not saved
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(name, buffer)
    for weight in module.parameters():
        weight.data = weight.detach().clone(memory_format=torch.contiguous_format)
    content = _lower(module, metadata)
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(content).load_method("forward")
    clips = np.ascontiguousarray(parity_waveforms, dtype=np.float32)[:, None]
    difference = check_parity(
        path.name, module, lambda clip: [t.numpy() for t in method.execute([torch.from_numpy(clip)])], clips
    )
    write_atomically(path, content)
    return difference


def _lower(module: nn.Module, metadata: Mapping[str, str]) -> bytes:
    with silence_exporters():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        try:
            exported = torch.export.export(module, (torch.zeros(1, NUM_SAMPLES),))
            lowered = to_edge_transform_and_lower(
                exported, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_METHOD: json.dumps(metadata)}
            )
            content: bytes = lowered.to_executorch().buffer
        except Exception as error:  # the exceptions of torch and of the passes share no narrower base
            reason = " ".join(str(error).split())
            raise ExportError(f"this network cannot be lowered for ExecuTorch: {reason}") from error
    return content
