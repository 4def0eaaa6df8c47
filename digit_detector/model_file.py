"""What an exported model says about itself: the keys of its ONNX metadata, written and checked here.

Inference reads it too, so it imports nothing heavy.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import digit_detector
from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from digit_detector.errors import ModelError
from digit_detector.labels import FP32, LABELS

CHECKSUM_KEY = "sha256"  # see `seal`
_BLANK = "0" * 64

INPUT_NAME = "waveform"  # (N, 8000) float32
SCORES_NAME = "logits"  # (N, 10) float32
DIGIT_NAME = "digit_score"  # (N,) float32, 0 to 1: whether there is a digit at all, at even odds

FORMAT_KEY = "streaming-digit-detector"
FORMAT_VERSION = "2"  # 1 had no digit score

KEYS = {
    FORMAT_KEY: "version of this list; a file without it is not ours",
    "pipeline": "name of the pipeline that was trained",
    "labels": "the ten words in the order of the scores, joined by commas",
    "sample_rate": "Hz that the input must have",
    "window": "samples of the input: one second, the word within",
    "data": "name of the recordings it learnt from",
    "data_hash": "hash of those recordings",
    "recordings_hash": "the same of each source by itself, without what was synthesised; parted by blanks",
    "speech": "'recordings' or 'synthetic speech'",
    "negatives": "what it learnt to be no digit; empty where its digit score means nothing",
    "split": "how training and test clips were divided; names the protocol of the accuracy",
    "accuracy": "share of the test clips it got right, 0 to 1",
    "tested_on": "how many clips these are, and of what",
    "test_hash": "hash of their samples and labels: accuracies of one hash may be compared, or 'unknown'",
    "precision": "fp32, or int8 where layers of the network were made 8 bits wide",
    "calibration": "which layers, calibrated on what, and what they lost; empty for fp32",
    "epoch": "epochs of training behind the weights, or 'unknown'",
    "seed": "seed of everything random in its training, or 'unknown'",
    "temperature": "what the scores were divided by, fitted on the validation part; 1 where none was fitted",
    "version": "version of the package that trained it",
    "git_commit": "commit of the checkout that trained it, with '-dirty' when files had been changed, or 'unknown'",
    "created": "when it was exported, UTC, ISO 8601",
}


def model_metadata(
    *,
    pipeline: str,
    data: str,
    data_hash: str,
    synthetic: bool,
    split: str,
    accuracy: float,
    recordings_hash: str | None = None,
    negatives: str = "",
    tested_on: str = "unknown",
    test_hash: str = "unknown",
    precision: str = FP32,
    calibration: str = "",
    epoch: int | None = None,
    seed: int | None = None,
    temperature: float = 1.0,
    version: str = digit_detector.__version__,
    commit: str | None = None,
    created: datetime | None = None,
) -> dict[str, str]:
    """The metadata of one model, a value for each of KEYS.

    `accuracy` lies in 0 to 1; `commit` and `created` default to this checkout and to now.
    """
    values = {
        FORMAT_KEY: FORMAT_VERSION,
        "pipeline": pipeline,
        "labels": ",".join(LABELS),
        "sample_rate": str(SAMPLE_RATE),
        "window": str(NUM_SAMPLES),
        "data": data,
        "data_hash": data_hash,
        "recordings_hash": recordings_hash or data_hash,
        "speech": "synthetic speech" if synthetic else "recordings",
        "negatives": negatives,
        "split": split,
        "accuracy": f"{accuracy:.6f}",
        "tested_on": tested_on,
        "test_hash": test_hash,
        "precision": precision,
        "calibration": calibration,
        "epoch": "unknown" if epoch is None else str(epoch),
        "seed": "unknown" if seed is None else str(seed),
        "temperature": f"{temperature:.6g}",
        "version": version,
        "git_commit": git_commit() if commit is None else commit,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
    }
    assert values.keys() == KEYS.keys()
    return values


def check_metadata(metadata: Mapping[str, str], pipeline: str, name: str) -> None:
    """Raise ModelError unless `metadata`, found in the file `name`, belongs to a model of `pipeline`."""
    found = metadata.get(FORMAT_KEY)
    if found is None:
        raise ModelError(
            f"{name} is an ONNX model, but not one of ours: its metadata has no {FORMAT_KEY!r}; "
            f"train one with train.py --pipeline {pipeline}"
        )
    expected = {
        FORMAT_KEY: FORMAT_VERSION,
        "pipeline": pipeline,
        "labels": ",".join(LABELS),
        "sample_rate": str(SAMPLE_RATE),
        "window": str(NUM_SAMPLES),
    }
    faults = [
        f"{key} is {metadata.get(key, 'missing')!r}, expected {value!r}"
        for key, value in expected.items()
        if metadata.get(key) != value
    ]
    if faults:
        again = "" if found == FORMAT_VERSION else f"; train it again with train.py --pipeline {pipeline}"
        raise ModelError(f"{name} cannot answer for {pipeline!r}: {'; '.join(faults)}{again}")


def onnx_name(stem: str, precision: str) -> str:
    """What a file of one of FILE_PRECISIONS is called, e.g. model.onnx and model_int8.onnx."""
    return f"{stem}.onnx" if precision == FP32 else f"{stem}_{precision}.onnx"


def unsealed(metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with a place for the checksum that `seal` fills in."""
    return {**metadata, CHECKSUM_KEY: _BLANK}


def seal(content: bytes) -> bytes:
    """Write into the bytes of a model, made with `unsealed` metadata, the SHA-256 of what they were before.

    Neither ONNX nor onnxruntime notices a flipped bit in a weight.
    """
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_BLANK.encode(), digest.encode(), 1)


def is_intact(content: bytes, metadata: Mapping[str, str]) -> bool:
    """Whether the bytes of a model are those that were sealed; True for a model that never was."""
    digest = metadata.get(CHECKSUM_KEY)
    if digest is None:
        return True
    return hashlib.sha256(content.replace(digest.encode(), _BLANK.encode(), 1)).hexdigest() == digest


@functools.cache
def git_commit() -> str:
    """Commit of the checkout this package lies in, or 'unknown' outside of one or without git.

    Asked once in the life of a process: its own log of scorings, written into the checkout, made it dirty before.
    """
    import subprocess  # here, because answering reads this module too and must start quickly

    root = Path(digit_detector.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed copy: a repository further up is somebody else's
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git here, or a checkout it refuses to read
        return "unknown"
