"""Atomic writing: all or nothing."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import digit_detector
from digit_detector.errors import ConfigError, TrainingError
from digit_detector.files import check_models_dir, write_atomically, write_durably, write_json
from digit_detector.labels import PIPELINES


@pytest.mark.parametrize("write", [write_atomically, write_durably])
def test_files_are_replaced_or_kept(write, tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write(path, b"old")
    write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]
    refused = TrainingError if write is write_atomically else OSError
    for place in (path / "file.bin", path.parent):  # below a file; a folder
        with pytest.raises(refused, match=r"could not write|irectory|File exists"):
            write(place, b"more")
    assert list(path.parent.iterdir()) == [path]
    assert list((tmp_path / "a").iterdir()) == [path.parent]


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on files")
def test_a_full_disk_keeps_the_last_good_file(tmp_path):
    path = tmp_path / "file.bin"
    write_atomically(path, b"good")
    code = (
        "import pathlib, resource, signal, sys; from digit_detector.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_atomically(pathlib.Path(sys.argv[1]), bytes(2000))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert "TrainingError: could not write" in done.stderr
    assert "make room" in done.stderr
    assert path.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_nan_and_infinity(tmp_path):
    values = {"a": math.nan, "b": [1.5, -math.inf], "c": {"d": (math.inf, "x")}, "e": "\udcff"}
    write_json(tmp_path / "deep" / "v.json", values)
    text = (tmp_path / "deep" / "v.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": [None, "x"]}, "e": "\udcff"}


# --- folders of models ---------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["pretrained", None, "below", "link"])
def test_the_folder_of_pretrained_models_is_refused(named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = Path(digit_detector.__file__).parent / "pretrained"
    (tmp_path / "link").symlink_to(shipped)
    places = {"pretrained": "pretrained", None: shipped, "below": shipped / "more", "link": "link"}
    with pytest.raises(ConfigError, match="are the models that ship"):
        check_models_dir(places[named], PIPELINES)


def test_another_folder_of_that_name_is_accepted_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_models_dir("./models", PIPELINES)
    check_models_dir(tmp_path / "pretrained", PIPELINES)
    assert not list(tmp_path.iterdir())


def test_a_file_and_a_locked_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"models_dir: .*file is a file, expected a folder"):
        check_models_dir(tmp_path / "file" / "models", PIPELINES)
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(ConfigError, match=r"locked cannot be written to"):
        check_models_dir(tmp_path / "locked", PIPELINES)
