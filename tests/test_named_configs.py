"""The configurations that come along: found by name and by path, whole, and what they promise."""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any

import pytest

from digit_detector.cli.parser import OneLineParser
from digit_detector.errors import ConfigError
from digit_detector.labels import MEL_CNN, MFCC
from ml_training.config import NAMED, TrainConfig, find_config, load_config, named_configs
from ml_training.flags import add_train_flags, train_config_from

ROOT = Path(__file__).resolve().parents[1]


def parse(*words: str) -> TrainConfig:
    parser = OneLineParser()
    add_train_flags(parser)
    return train_config_from(parser.parse_args(words))


def test_there_are_five() -> None:
    assert list(named_configs()) == ["best", "default", "fast", "gpu", "tiny"]


@pytest.mark.parametrize("name", named_configs())
def test_each_loads_by_name_and_as_a_path_from_anywhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TrainConfig(**json.loads((NAMED / f"{name}.json").read_text(encoding="utf-8")))
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        for typed in (name, f"configs/{name}.json", f"{name}.json"):
            assert parse("--config", typed) == expected


def test_a_file_that_is_there_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fast.json").write_text('{"epochs": 7}')
    assert parse("--config", "fast.json").epochs == 7
    assert parse("--config", "fast").epochs != 7
    (tmp_path / "fast").mkdir()
    assert find_config("fast") == NAMED / "fast.json", "a folder is no file of settings"
    assert find_config("elsewhere/fast.json") == Path("elsewhere/fast.json")


def test_an_unknown_name_is_told_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot read it: .*by name there are best, default, fast, gpu, tiny"):
        load_config("fats")


def test_default_is_every_setting_at_its_default() -> None:
    assert parse("--config", "default") == TrainConfig()


def test_fast_trains_at_most_30_epochs() -> None:
    assert 1 <= (parse("--config", "fast").epochs or 0) <= 30


def test_best_is_what_the_shipped_model_was_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIGIT_CORPORA_DIR", os.sep)
    ship = runpy.run_path(str(ROOT / "benchmarks" / "ship.py"))
    settings: dict[str, Any] = ship["settings"](MEL_CNN, ship["SEED"], ship["EPOCHS"][MEL_CNN], **ship["OWN"][MEL_CNN])
    for folder in ship["CORPORA"]:  # these are the user's to name
        (settings["augmentation"] if folder == "noise_dir" else settings).pop(folder)
    assert load_config("best") == settings


def test_flags_win_and_all_faults_of_file_and_flags_come_at_once(tmp_path: Path) -> None:
    assert parse("--config", "fast", "--epochs", "3", "--pipeline", MFCC).epochs == 3
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"epoch": 3, "seed": "one", "split": "speaker", "batch_size": 1}))
    with pytest.raises(ConfigError) as caught:
        parse("--config", str(path), "--precision", "fp16", "--device", "cpu", "--clip_norm", "-1")
    assert sorted(caught.value.faults) == [
        "batch_size: expected a number from 2 to 65536, got 1",
        "clip_norm: expected a number from 0 to 1e+06, got -1.0",
        "precision fp16 needs a CUDA device: on a CPU take fp32, or bf16 where it is faster",
        "seed: expected a whole number, got 'one'",
        "split 'speaker' needs held_out_speaker, the one to test on",
        "unknown setting 'epoch', did you mean epochs?",
    ]
