"""The acoustic model in onnxruntime: posteriors of tokens and speech activity, every 32 ms."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_detector.acoustic_file import (
    BLOCK_NAME,
    FILE,
    POSTERIORS_NAME,
    SPEECH_NAME,
    STATE_AFTER_NAME,
    STATE_NAME,
    check_acoustic,
)
from digit_detector.audio import Floats
from digit_detector.errors import ModelError
from digit_detector.labels import PRETRAINED
from digit_detector.model_file import is_intact
from digit_detector.onnx_session import open_session


class AcousticSession:
    """A file of `digits train-live` opened for inference; digit_detector.acoustic_file has its inputs and outputs."""

    def __init__(self, file: Path) -> None:
        """Raises ModelError for a file that is missing, damaged or no acoustic model."""
        try:
            content = file.read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise ModelError(f"cannot read {file}: {why}; name another, or install the package again") from error
        self._session = open_session(content, file)
        damaged = f"{file} is damaged: its checksum is not that of its export; copy or train it again"
        try:
            self.metadata: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        except UnicodeDecodeError as error:
            raise ModelError(damaged) from error
        check_acoustic(self.metadata, str(file))
        if not is_intact(content, self.metadata):
            raise ModelError(damaged)
        sizes = {put.name: put.shape[-1] for put in self._session.get_inputs()}
        if sizes.keys() != {BLOCK_NAME, STATE_NAME}:
            raise ModelError(f"{file} has inputs {', '.join(sizes)}: train it again with digits train-live")
        self._size: int = sizes[STATE_NAME]

    def initial_state(self) -> Floats:
        """(S,) the state before the first block."""
        return np.zeros(self._size, dtype=np.float32)

    def __call__(self, blocks: Floats, states: Floats) -> tuple[Floats, Floats, Floats]:
        """(N, 256) blocks after (N, S) states -> (N, 15) posteriors, (N,) speech probabilities, (N, S) states."""
        names = [POSTERIORS_NAME, SPEECH_NAME, STATE_AFTER_NAME]
        posteriors, speech, after = self._session.run(names, {BLOCK_NAME: blocks, STATE_NAME: states})
        return posteriors, speech, after


def load_acoustic_model(file: str | Path | None = None) -> AcousticSession:
    """The model of a file, or the bundled one. Raises ModelError."""
    return _load_shipped() if file is None else AcousticSession(Path(file))


@lru_cache(maxsize=1)
def _load_shipped() -> AcousticSession:
    return AcousticSession(Path(__file__).parents[1] / PRETRAINED / FILE)
