"""The model files that the browser-only mode fetches: the very files that the server answers with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from digit_detector.classifier import model_file
from digit_detector.labels import PIPELINES
from digit_detector.spotter_file import FILE, dilations_of, earlier_frames
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.spotter import find_spotter, load_spotter
from digit_detector.streaming.vad import find_silero


class ModelFiles:
    """Files by the name that they are asked for."""

    def __init__(
        self, model_dir: str, pipelines: Sequence[str], thresholds: DetectorConfig, own_spotter: str | None = None
    ) -> None:
        """`pipelines` confirm live words; `own_spotter` takes the place of the spotter that ships.

        Raises what load_classifier raises for a folder without models.
        """
        found = {f"{name}.onnx": model_file(model_dir, name) for name in PIPELINES}
        self.files: dict[str, Path] = {name: file for name, file in found.items() if file.is_file()}
        self.files[FILE] = find_spotter(own_spotter)
        self.files["silero_vad.onnx"] = find_silero()
        earlier = earlier_frames(dilations_of(load_spotter(own_spotter).metadata))
        self.decisions = json.dumps({"config": asdict(thresholds), "pipelines": list(pipelines), "earlier": earlier})
