"""Sessions of the streaming networks in onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.audio import Floats
from digit_detector.errors import ModelError


def stack(arrays: Sequence[Floats]) -> Floats:
    """Equally long arrays as the rows of one; np.stack does the same in twice the time."""
    return np.concatenate(arrays).reshape(len(arrays), -1)


def open_session(content: bytes, file: Path) -> Any:
    """A session on one thread. Raises ModelError for a file that holds no valid model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"{file} is damaged or no ONNX model: {' '.join(str(error).split())}") from error
