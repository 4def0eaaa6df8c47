"""Inputs, outputs, tokens and metadata of the acoustic model's ONNX file. Imports nothing heavy.

N streams, S numbers of state. A step takes one block of each stream and returns one frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import digit_detector
from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import ModelError
from digit_detector.labels import LABELS
from digit_detector.model_file import FORMAT_KEY, git_commit

FORMAT = "acoustic 1"
FILE = "acoustic.onnx"

BLOCK = 256  # samples of a step, 32 ms
BLOCK_SECONDS = BLOCK / SAMPLE_RATE
TOKENS = ("", *LABELS, "oh", "double", "triple", "other")  # of the CTC; "" is the blank, "other" any other word
BLANK, OH, DOUBLE, TRIPLE, OTHER = (TOKENS.index(token) for token in ("", "oh", "double", "triple", "other"))
FIRST_DIGIT = 1  # token of zero; digit d is token FIRST_DIGIT + d

BLOCK_NAME = "sound"  # (N, 256) float32: the next block of N streams
STATE_NAME = "state"  # (N, S): of the step before; zeros at the beginning
POSTERIORS_NAME = "posteriors"  # (N, 15): of TOKENS
SPEECH_NAME = "speech"  # (N,): probability that the block is speech
STATE_AFTER_NAME = "state_after"  # (N, S)

KEYS = {
    FORMAT_KEY: "kind and version of this file",
    "tokens": "TOKENS in the order of the posteriors, joined by commas",
    "sample_rate": "Hz",
    "data": "names of its training data",
    "data_hash": "hash of those",
    "steps": "steps of its training",
    "seed": "seed of its training",
    "version": "version of the package that trained it",
    "git_commit": "commit of the checkout that trained it",
    "created": "time of the export, UTC, ISO 8601",
}
_EXPECTED = {"tokens": ",".join(TOKENS), "sample_rate": str(SAMPLE_RATE)}


def acoustic_metadata(data: str, data_hash: str, steps: int, seed: int) -> dict[str, str]:
    """A value for each of KEYS."""
    values = {
        FORMAT_KEY: FORMAT, **_EXPECTED, "data": data, "data_hash": data_hash, "steps": str(steps), "seed": str(seed),
        "version": digit_detector.__version__, "git_commit": git_commit(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    assert values.keys() == KEYS.keys()
    return values


def check_acoustic(metadata: Mapping[str, str], name: str) -> None:
    """Raise ModelError unless `metadata` is that of an acoustic model that this version can run."""
    found = metadata.get(FORMAT_KEY)
    if found != FORMAT:
        raise ModelError(
            f"{name} is no acoustic model of this version: its {FORMAT_KEY!r} is {found!r}, expected {FORMAT!r}; "
            "train it again with digits train-live"
        )
    for key, value in _EXPECTED.items():
        if metadata.get(key) != value:
            raise ModelError(f"{name}: {key} is {metadata.get(key)!r}, expected {value!r}: train it again")
