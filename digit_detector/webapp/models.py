"""The model files that the browser-only mode fetches: the very files that the server answers with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import ml_training
from digit_detector.streaming.models import silero_file, spotter
from digit_detector.streaming.thresholds import Thresholds
from ml_training.config import PIPELINES
from ml_training.deploy.spotter_file import FILE, dilations_of, earlier_frames
from ml_training.inference import model_file


class ModelFiles:
    """Files by the name that they are asked for."""

    def __init__(self, model_dir: str, pipelines: Sequence[str], thresholds: Thresholds) -> None:
        """`pipelines` confirm live words. Raises what load_classifier raises for a folder without models."""
        found = {f"{name}.onnx": model_file(model_dir, name) for name in PIPELINES}
        self.files: dict[str, Path] = {name: file for name, file in found.items() if file.is_file()}
        self.files[FILE] = Path(ml_training.__file__).parent / "pretrained" / FILE
        self.files["silero_vad.onnx"] = silero_file()
        earlier = earlier_frames(dilations_of(spotter().metadata))
        self.decisions = json.dumps(
            {"thresholds": asdict(thresholds), "pipelines": list(pipelines), "earlier": earlier}
        )
