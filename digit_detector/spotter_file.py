"""What the spotter's ONNX file takes, gives and says of itself. Read by what answers: nothing heavy is imported."""

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

BLOCK = 256  # samples that a step takes, 32 ms
HOP = 128  # samples between frames; a step answers for two
FRAMES = BLOCK // HOP
KERNEL = 9  # frames that a convolution over time hears, its own the last of them
SAID_AFTER = 0.144  # seconds from a digit's end to the middle of the frames that say it

BLOCK_NAME = "sound"  # (N, 256) float32: the next block of N streams
STATE_NAME = "state"  # (N, S): what the step before left; zeros before any sound
EARLIER_NAME = "earlier"  # (N, E, C): frames that earlier steps took, see `earlier_frames`; zeros before any sound
PROBABILITIES_NAME = "probabilities"  # (N, 2, 10): that each digit has just ended; what is left of 1 is that none has
DURATIONS_NAME = "durations"  # (N, 2): how many frames ago the digit began that has just ended, where one has
STATE_AFTER_NAME = "state_after"  # (N, S)
TAKEN_NAME = "taken"  # (N, L * 2, C): the two frames that each of the L convolutions over time took in of this block

DILATIONS_KEY = "dilations"

KEYS = {
    FORMAT_KEY: "kind and version of this file",
    "labels": "the ten words in the order of the probabilities, joined by commas",
    "sample_rate": "Hz",
    DILATIONS_KEY: "of the L convolutions over time, in frames, joined by commas",
    "data": "what it learnt from",
    "data_hash": "hash of that",
    "steps": "steps of its training",
    "seed": "seed of its training",
    "version": "version of the package that trained it",
    "git_commit": "commit of the checkout that trained it",
    "created": "when it was exported, UTC, ISO 8601",
}


def spotter_metadata(data: str, data_hash: str, steps: int, seed: int) -> dict[str, str]:
    """A value for each of KEYS but DILATIONS_KEY, which the network says."""
    values = {
        FORMAT_KEY: FORMAT, "labels": ",".join(LABELS), "sample_rate": str(SAMPLE_RATE), "data": data,
        "data_hash": data_hash, "steps": str(steps), "seed": str(seed), "version": digit_detector.__version__,
        "git_commit": git_commit(), "created": datetime.now(UTC).isoformat(timespec="seconds"),
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
    for key, value in (("labels", ",".join(LABELS)), ("sample_rate", str(SAMPLE_RATE))):
        if metadata.get(key) != value:
            raise ModelError(f"{name}: {key} is {metadata.get(key)!r}, expected {value!r}: train it again")


def dilations_of(metadata: Mapping[str, str]) -> tuple[int, ...]:
    """What the metadata of a spotter says under DILATIONS_KEY."""
    return tuple(map(int, metadata[DILATIONS_KEY].split(",")))


def earlier_frames(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Which frames EARLIER_NAME consists of: (convolution, how many frames before the block; 0 for one that is in it).

    For each convolution, each frame of the block and each frame that it hears but itself, the earliest first. What
    stands in the place of one that is in the block does not matter.
    """
    return [
        (number, max(0, (KERNEL - 1 - k) * dilation - frame))
        for number, dilation in enumerate(dilations)
        for frame in range(FRAMES)
        for k in range(KERNEL - 1)
    ]
