"""Inputs, outputs and metadata of the spotter's ONNX file. Inference imports this module, so it imports nothing heavy.

N streams, S state values, L convolutions over time of C channels, E context frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import digit_detector
from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import ModelError
from digit_detector.labels import LABELS
from digit_detector.model_file import FORMAT_KEY, git_commit

FORMAT = "spotter 2"
FILE = "spotter.onnx"

BLOCK = 256  # samples of a step, 32 ms
HOP = 128  # samples between frames; a step has two
FRAMES = BLOCK // HOP
KERNEL = 9  # frames of a convolution over time, the current one last

BLOCK_NAME = "sound"  # (N, 256) float32: the next block of N streams
STATE_NAME = "state"  # (N, S): of the step before; zeros at the beginning
EARLIER_NAME = "earlier"  # (N, E, C): inputs of the convolutions in earlier steps, see `earlier_frames`; zeros at first
PROBABILITIES_NAME = "probabilities"  # (N, 2, 10): that each digit has just ended; the rest to 1: that none has
DURATIONS_NAME = "durations"  # (N, 2): length in frames of the digit that has just ended, where one has
STATE_AFTER_NAME = "state_after"  # (N, S)
TAKEN_NAME = "taken"  # (N, L * 2, C): inputs of the convolutions in this step, two frames each

DILATIONS_KEY = "dilations"

KEYS = {
    FORMAT_KEY: "kind and version of this file",
    "labels": "the ten words in the order of the probabilities, joined by commas",
    "sample_rate": "Hz",
    DILATIONS_KEY: "of the L convolutions over time, in frames, joined by commas",
    "data": "name of its training data",
    "data_hash": "hash of that",
    "steps": "steps of its training",
    "seed": "seed of its training",
    "version": "version of the package that trained it",
    "git_commit": "commit of the checkout that trained it",
    "created": "time of the export, UTC, ISO 8601",
}
_EXPECTED = {"labels": ",".join(LABELS), "sample_rate": str(SAMPLE_RATE)}


def spotter_metadata(data: str, data_hash: str, steps: int, seed: int) -> dict[str, str]:
    """A value for each of KEYS but DILATIONS_KEY, which the export adds."""
    values = {
        FORMAT_KEY: FORMAT, **_EXPECTED, "data": data, "data_hash": data_hash, "steps": str(steps), "seed": str(seed),
        "version": digit_detector.__version__, "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    assert values.keys() == KEYS.keys() - {DILATIONS_KEY}
    return values


def check_spotter(metadata: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless `metadata` is that of a spotter that this version can run."""
    found = metadata.get(FORMAT_KEY)
    if found != FORMAT:
        raise ModelError(
            f"{name} is no spotter of this version: its {FORMAT_KEY!r} is {found!r}, expected {FORMAT!r}; "
            "train it again with digits train-spotter"
        )
    for key, value in _EXPECTED.items():
        if metadata.get(key) != value:
            raise ModelError(f"{name}: {key} is {metadata.get(key)!r}, expected {value!r}: train it again")


def dilations_of(metadata: Mapping[str, str]) -> tuple[int, ...]:
    """The dilations in the metadata of a spotter."""
    return tuple(map(int, metadata[DILATIONS_KEY].split(",")))


def earlier_frames(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """The E frames of EARLIER_NAME as (convolution, frames before the block, or 0 for a frame of the block itself).

    For each convolution and each frame of the block, the other frames of its kernel, the earliest first. Values given
    for frames of the block itself are ignored.
    """
    return [
        (number, max(0, (KERNEL - 1 - k) * dilation - frame))
        for number, dilation in enumerate(dilations)
        for frame in range(FRAMES)
        for k in range(KERNEL - 1)
    ]
