"""Metadata of model files, and the commit in it."""

import subprocess
from datetime import UTC, datetime

import pytest

import digit_detector
from digit_detector.errors import ModelError
from digit_detector.labels import MEL_CNN, MFCC
from digit_detector.model_file import FORMAT_KEY, KEYS, check_metadata, git_commit, model_metadata


def metadata(**changes):
    values = {"pipeline": MFCC, "data": "FSDD", "data_hash": "abc", "synthetic": False, "split": "official"}
    return model_metadata(**{**values, "accuracy": 0.987654321, **changes})


def test_every_documented_key_has_a_value():
    values = {"negatives": "3 words", "calibration": "minmax", "precision": "int8", "epoch": 7, "commit": "f00d"}
    found = metadata(**values, created=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC), seed=7, temperature=0.5)
    assert list(found) == list(KEYS)
    assert all(isinstance(value, str) and value for value in found.values())
    expected = {
        "accuracy": "0.987654", "precision": "int8", "epoch": "7", "created": "2030-01-02T03:04:05+00:00",
        "version": digit_detector.__version__, "sample_rate": "8000", "window": "8000", "seed": "7",
        "temperature": "0.5", "recordings_hash": "abc", "speech": "recordings",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["labels"].split(",")[7] == "seven"
    plain = metadata(synthetic=True, recordings_hash="def")
    expected = {
        "negatives": "", "precision": "fp32", "calibration": "", "epoch": "unknown", "seed": "unknown",
        "temperature": "1", "speech": "synthetic speech", "recordings_hash": "def", "data_hash": "abc",
    }  # fmt: skip
    assert {key: plain[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("found", "pipeline", "message"),
    [
        ({}, MFCC, r"model\.onnx is an ONNX model, but no model of this package"),
        (metadata(), MEL_CNN, "pipeline is 'mfcc', expected 'mel_cnn'"),
        (metadata() | {FORMAT_KEY: "3", "window": "9"}, MFCC, f"{FORMAT_KEY} is '3', expected '2'; window is '9'"),
        (metadata() | {FORMAT_KEY: "1"}, MFCC, r"train it again with train\.py --pipeline mfcc"),
    ],
)
def test_other_files_are_refused(found, pipeline, message):
    check_metadata(metadata(), MFCC, "model.onnx")
    with pytest.raises(ModelError, match=message):
        check_metadata(found, pipeline, "model.onnx")


def test_the_commit_is_that_of_the_checkout(tmp_path, monkeypatch):
    read_once = git_commit()
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(digit_detector, "__file__", str(package / "__init__.py"))
    assert git_commit() == read_once
    commit = git_commit.__wrapped__  # reads it each time
    assert commit() == "unknown"

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    assert commit() == "unknown"  # no commit yet
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "a tag must not replace the commit")
    assert commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True\n")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"
