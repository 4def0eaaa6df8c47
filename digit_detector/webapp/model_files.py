"""Model files for the browser-only mode: the files that the server itself uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from digit_detector.classifier import model_file
from digit_detector.labels import trained_pipelines
from digit_detector.spotter_file import FILE, dilations_of, earlier_frames
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.spotter import find_spotter, load_spotter
from digit_detector.streaming.vad import find_silero


class ModelFiles:
    """Files by their name in the URL."""

    def __init__(
        self, model_dir: str, pipelines: Sequence[str], config: DetectorConfig, own_spotter: str | None = None
    ) -> None:
        """`pipelines` confirm live digits; `own_spotter` replaces the bundled spotter.

        Raises the errors of load_classifier for a folder without models.
        """
        found = {f"{name}.onnx": model_file(model_dir, name) for name in trained_pipelines(model_dir)}
        self.files: dict[str, Path] = {name: file for name, file in found.items() if file.is_file()}
        self.files[FILE] = find_spotter(own_spotter)
        self.files["silero_vad.onnx"] = find_silero()
        earlier = earlier_frames(dilations_of(load_spotter(own_spotter).metadata))
        self.decisions = json.dumps({"config": asdict(config), "pipelines": list(pipelines), "earlier": earlier})
