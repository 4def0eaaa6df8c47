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
    told = {"negatives": "3 words", "calibration": "minmax", "precision": "int8", "epoch": 7, "commit": "f00d"}
    found = metadata(**told, created=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert found.keys() == KEYS.keys()
    assert all(isinstance(value, str) and value for value in found.values())
    assert found["accuracy"] == "0.987654"
    assert (found["precision"], found["epoch"]) == ("int8", "7")
    assert found["created"] == "2030-01-02T03:04:05+00:00"
    assert found["version"] == digit_detector.__version__
    assert found["labels"].split(",")[7] == "seven"
    assert (found["sample_rate"], found["window"]) == ("8000", "8000")


def test_hash_of_the_recordings_seed_and_temperature_have_defaults():
    plain = metadata()
    assert plain["negatives"] == ""
    assert (plain["precision"], plain["calibration"], plain["epoch"]) == ("fp32", "", "unknown")
    assert (plain["recordings_hash"], plain["seed"], plain["temperature"]) == ("abc", "unknown", "1")
    told = metadata(recordings_hash="def", seed=7, temperature=0.5)
    assert (told["data_hash"], told["recordings_hash"], told["seed"], told["temperature"]) == ("abc", "def", "7", "0.5")


def test_synthetic_speech_is_called_that():
    assert metadata(synthetic=True)["speech"] == "synthetic speech"
    assert metadata(synthetic=False)["speech"] == "recordings"


def test_check_takes_ours_and_refuses_others():
    check_metadata(metadata(), MFCC, "model.onnx")
    with pytest.raises(ModelError, match=r"model\.onnx is an ONNX model, but not one of ours"):
        check_metadata({}, MFCC, "model.onnx")
    with pytest.raises(ModelError, match="pipeline is 'mfcc', expected 'mel_cnn'"):
        check_metadata(metadata(), MEL_CNN, "model.onnx")
    with pytest.raises(ModelError, match=f"{FORMAT_KEY} is '3', expected '2'; window is 'missing'"):
        check_metadata({k: v for k, v in metadata().items() if k != "window"} | {FORMAT_KEY: "3"}, MFCC, "model.onnx")


def test_a_file_from_before_there_was_a_digit_score_is_to_be_trained_again():
    with pytest.raises(ModelError, match=r"model\.onnx .*train it again with train\.py --pipeline mfcc"):
        check_metadata(metadata() | {FORMAT_KEY: "1"}, MFCC, "model.onnx")


def test_commit_is_that_of_the_checkout_and_says_dirty(tmp_path, monkeypatch):
    package = tmp_path / "ml_training"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(digit_detector, "__file__", str(package / "__init__.py"))
    commit = git_commit.__wrapped__  # asked anew each time
    assert commit() == "unknown"

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init", "-q")
    assert commit() == "unknown"  # no commit yet
    git("add", ".")
    git("commit", "-q", "-m", "one")
    git("tag", "-a", "v1", "-m", "a tag must not take the commit's place")
    assert commit() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed = True\n")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"


def test_a_process_names_one_commit_whatever_it_writes(monkeypatch):
    first = git_commit()
    if first == "unknown":
        pytest.skip("this is no git checkout")
    monkeypatch.setattr(digit_detector, "__file__", "/nowhere/ml_training/__init__.py")
    assert git_commit() == first
