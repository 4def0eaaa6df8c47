"""onnxruntime sessions of model files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from digit_detector.errors import ModelError


def open_session(content: bytes, file: Path, threads: int = 1, optimize: bool = True) -> Any:
    """A CPU session of an ONNX model.

    Args:
        content: the bytes of the model.
        file: where they come from, for messages.
        threads: CPU threads of one operator.
        optimize: let onnxruntime fuse nodes; without it a session opens faster, for reading metadata.

    Raises ModelError for bytes that are no valid model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        reason = " ".join(str(error).split())
        raise ModelError(f"{file} ({len(content)} bytes) is damaged or no ONNX model: {reason}") from error
