"""The keyword spotter in onnxruntime, and its state: the posterior of each digit having just ended, every 16 ms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from digit_detector.audio import Floats
from digit_detector.errors import ModelError
from digit_detector.model_file import is_intact
from digit_detector.onnx_session import open_session
from digit_detector.spotter_file import (
    BLOCK_NAME,
    EARLIER_NAME,
    FILE,
    FRAMES,
    STATE_NAME,
    check_spotter,
    dilations_of,
    earlier_frames,
)


def stack(arrays: Sequence[Floats]) -> Floats:
    """Equally long arrays as the rows of one; np.stack does the same in twice the time."""
    return np.concatenate(arrays).reshape(len(arrays), -1)


@dataclass
class SpotterState:
    """A stream's state between two blocks; the spotter updates it in place."""

    frontend: Floats  # (S,)
    ring: Floats  # (blocks * L * 2, C): inputs of every convolution in the last blocks, a ring buffer of blocks
    position: int = 0  # of the next block in the ring


class Spotter:
    """A spotter file opened for inference; digit_detector.spotter_file has its inputs and outputs."""

    def __init__(self, file: Path) -> None:
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
        check_spotter(self.metadata, str(file))
        if not is_intact(content, self.metadata):
            raise ModelError(damaged)
        try:
            _, (_, self._size), (_, self._earlier, self._channels) = (x.shape for x in self._session.get_inputs())
            dilations = dilations_of(self.metadata)
            frames = earlier_frames(dilations)
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"{file} has not the inputs of a spotter: train it again with digits train-spotter"
            ) from error
        self._rows = len(dilations) * FRAMES  # rows of a block in the ring
        self._blocks = max(-(-back // FRAMES) for _, back in frames)
        indices = [  # (blocks, E): the row of each earlier frame in the ring
            [(at - -(-back // FRAMES)) % self._blocks * self._rows + number * FRAMES + -back % FRAMES
             for number, back in frames]
            for at in range(self._blocks)
        ]  # fmt: skip
        self._indices = np.array(indices)

    def initial_state(self) -> SpotterState:
        """The state before the first block."""
        ring = np.zeros((self._blocks * self._rows, self._channels), dtype=np.float32)
        return SpotterState(np.zeros(self._size, dtype=np.float32), ring)

    def __call__(self, blocks: Floats, states: Sequence[SpotterState]) -> tuple[Floats, Floats]:
        """(N, 256) blocks after N states -> (N, 2, C) posteriors and (N, 2) durations in frames; updates the states."""
        earlier = np.empty((len(states), self._earlier, self._channels), dtype=np.float32)
        for row, state in zip(earlier, states, strict=True):
            state.ring.take(
                self._indices[state.position], axis=0, out=row, mode="clip"
            )  # unchecked: "raise" copies twice
        inputs = {BLOCK_NAME: blocks, STATE_NAME: stack([state.frontend for state in states]), EARLIER_NAME: earlier}
        posteriors, durations, after, taken = self._session.run(None, inputs)
        for state, front, frames in zip(states, after, taken, strict=True):
            state.frontend[:] = front
            state.ring[state.position * self._rows :][: self._rows] = frames
            state.position = (state.position + 1) % self._blocks
        return posteriors, durations


def load_spotter(file: str | Path | None = None) -> Spotter:
    """The spotter of a file, or the bundled one. Raises ModelError."""
    return _load_shipped() if file is None else Spotter(Path(file))


def find_spotter(file: str | Path | None = None) -> Path:
    """The path of a spotter: `file`, or the bundled one."""
    import digit_detector

    return Path(digit_detector.__file__).parent / "pretrained" / FILE if file is None else Path(file)


@lru_cache(maxsize=1)
def _load_shipped() -> Spotter:
    return Spotter(find_spotter())
