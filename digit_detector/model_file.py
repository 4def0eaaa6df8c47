"""Inputs, outputs, metadata and checksum of a model file; imports nothing heavy, since inference needs it."""

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

CHECKSUM_KEY = "sha256"  # see `add_checksum`
_BLANK = "0" * 64

INPUT_NAME = "waveform"  # (N, 8000) float32
SCORES_NAME = "logits"  # (N, 10) float32
DIGIT_NAME = "digit_score"  # (N,) float32, 0 to 1: whether there is a digit at all, at even odds

FORMAT_KEY = "streaming-digit-detector"
FORMAT_VERSION = "2"  # 1 had no digit score
_EXPECTED = {"labels": ",".join(LABELS), "sample_rate": str(SAMPLE_RATE), "window": str(NUM_SAMPLES)}

KEYS = {
    FORMAT_KEY: "version of this list; every model file has it",
    "pipeline": "name of the pipeline",
    "labels": "the ten words in the order of the scores, joined by commas",
    "sample_rate": "Hz that the input must have",
    "window": "samples of the input: one second with the word in it",
    "data": "name of the recordings it was trained on",
    "data_hash": "hash of those recordings",
    "recordings_hash": "the same of each source without synthetic speech, separated by blanks",
    "speech": "'recordings' or 'synthetic speech'",
    "negatives": "the non-digits it was trained on; empty where its digit score is meaningless",
    "split": "the split into training and test clips, the protocol of the accuracy",
    "accuracy": "share of the test clips that it classified correctly, 0 to 1",
    "tested_on": "number and source of these clips",
    "test_hash": "hash of their samples and labels, or 'unknown'; accuracies of one hash can be compared",
    "precision": "fp32 or int8",
    "calibration": "quantized layers, calibration clips and loss of accuracy; empty for fp32",
    "epoch": "epochs of training behind the weights, or 'unknown'",
    "seed": "random seed of the training, or 'unknown'",
    "temperature": "divisor of the scores, fitted on the validation part; 1 if none was fitted",
    "version": "version of the package that trained it",
    "git_commit": "commit of the checkout that trained it, with '-dirty' for changed files, or 'unknown'",
    "created": "time of the export, UTC, ISO 8601",
}


def model_metadata(
    *, pipeline: str, data: str, data_hash: str, synthetic: bool, split: str, accuracy: float,
    recordings_hash: str | None = None, negatives: str = "", tested_on: str = "unknown", test_hash: str = "unknown",
    precision: str = FP32, calibration: str = "", epoch: int | None = None, seed: int | None = None,
    temperature: float = 1.0, version: str = digit_detector.__version__, commit: str | None = None,
    created: datetime | None = None,
) -> dict[str, str]:  # fmt: skip
    """The metadata of one model, a value for each of KEYS.

    `accuracy` lies in 0 to 1; `commit` and `created` default to this checkout and to now.
    """
    values = {
        FORMAT_KEY: FORMAT_VERSION, "pipeline": pipeline, **_EXPECTED, "data": data, "data_hash": data_hash,
        "recordings_hash": recordings_hash or data_hash, "speech": "synthetic speech" if synthetic else "recordings",
        "negatives": negatives, "split": split, "accuracy": f"{accuracy:.6f}", "tested_on": tested_on,
        "test_hash": test_hash, "precision": precision, "calibration": calibration,
        "epoch": "unknown" if epoch is None else str(epoch), "seed": "unknown" if seed is None else str(seed),
        "temperature": f"{temperature:.6g}", "version": version,
        "git_commit": git_commit() if commit is None else commit,
        "created": (created or datetime.now(UTC)).isoformat(timespec="seconds"),
    }  # fmt: skip
    assert values.keys() == KEYS.keys()
    return values


def check_metadata(metadata: Mapping[str, str], pipeline: str, name: str) -> None:
    """Raise ModelError unless `metadata`, found in the file `name`, belongs to a model of `pipeline`."""
    found = metadata.get(FORMAT_KEY)
    if found is None:
        raise ModelError(
            f"{name} is an ONNX model, but no model of this package: its metadata has no {FORMAT_KEY!r}; "
            f"train one with train.py --pipeline {pipeline}"
        )
    expected = {FORMAT_KEY: FORMAT_VERSION, "pipeline": pipeline, **_EXPECTED}
    faults = [
        f"{key} is {metadata.get(key, 'missing')!r}, expected {value!r}"
        for key, value in expected.items()
        if metadata.get(key) != value
    ]
    if faults:
        again = "" if found == FORMAT_VERSION else f"; train it again with train.py --pipeline {pipeline}"
        raise ModelError(f"{name} cannot answer for {pipeline!r}: {'; '.join(faults)}{again}")


def onnx_name(stem: str, precision: str) -> str:
    """The file name of a model in one of FILE_PRECISIONS, e.g. model.onnx and model_int8.onnx."""
    return f"{stem}.onnx" if precision == FP32 else f"{stem}_{precision}.onnx"


def reserve_checksum(metadata: Mapping[str, str]) -> dict[str, str]:
    """`metadata` with a placeholder that `add_checksum` replaces."""
    return {**metadata, CHECKSUM_KEY: _BLANK}


def add_checksum(content: bytes) -> bytes:
    """Replace the placeholder in the bytes of a model by their SHA-256.

    Neither ONNX nor onnxruntime notices a flipped bit in a weight.
    """
    digest = hashlib.sha256(content).hexdigest()
    return content.replace(_BLANK.encode(), digest.encode(), 1)


def is_intact(content: bytes, metadata: Mapping[str, str]) -> bool:
    """Whether the bytes of a model have the checksum of their metadata; True without one."""
    digest = metadata.get(CHECKSUM_KEY)
    if digest is None:
        return True
    return hashlib.sha256(content.replace(digest.encode(), _BLANK.encode(), 1)).hexdigest() == digest


@functools.cache
def git_commit() -> str:
    """Commit of the checkout this package is in, or 'unknown' outside of one or without git.

    Read once a process, since a scoring log written into the checkout makes it dirty.
    """
    import subprocess  # here, because inference imports this module and must start quickly

    root = Path(digit_detector.__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed copy inside of another repository
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):  # no git, or a checkout it refuses to read
        return "unknown"
