"""benchmarks/ship.py trains on nothing that is evaluation only, and what it shipped is what its cards tell of."""

from __future__ import annotations

import csv
import hashlib
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trainings

from digit_detector.classifier import load_classifier
from digit_detector.labels import LABELS, PIPELINES
from ml_training.config import TrainConfig
from ml_training.evaluation.records import load_results

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "digit_detector" / "pretrained"


@pytest.fixture(scope="module")
def ship() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "ship.py"))


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_is_evaluation_only_trains_nothing(
    ship: dict[str, Any], pipeline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIGIT_CORPORA_DIR", "/corpora")
    config = TrainConfig(**ship["settings"](pipeline, 0, 3))
    folders = {config.extra_digits_dir, config.non_digit_dir, config.augmentation["noise_dir"]}
    assert folders == {"/corpora/iitg_digits", "/corpora/words/train", "/corpora/noise/train"}
    assert (config.dataset, config.split) == ("fsdd", "official"), "whose test clips train nothing"


def test_folders_that_the_environment_names_are_found_from_those_of_the_trainings(
    ship: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def train(command: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
        told.update(how)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGIT_CORPORA_DIR", "corpora")
    monkeypatch.setenv("DIGIT_DATA_DIR", "fsdd")
    assert ship["settings"]("mfcc", 0, 3)["non_digit_dir"] == str(tmp_path / "corpora" / "words" / "train")
    monkeypatch.setattr(subprocess, "run", train)
    trainings.train(tmp_path / "work", {})
    assert told["cwd"] == tmp_path / "work"
    assert told["env"]["DIGIT_DATA_DIR"] == str(tmp_path / "fsdd")


def test_a_training_that_is_done_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(trainings, "train", lambda folder, _: (folder.mkdir(exist_ok=True), seen.append(folder)))
    for _ in range(2):
        trainings.train_once(tmp_path / "mfcc", {"epochs": 3})
    assert seen == [tmp_path / "mfcc"]
    with pytest.raises(SystemExit, match="other settings"):
        trainings.train_once(tmp_path / "mfcc", {"epochs": 4})


def test_figures_that_miss_their_floor_are_marked(ship: dict[str, Any]) -> None:
    found = {"strangers %": {"mfcc": 86.94, "mel_cnn": 95.0, "raw_cnn": 92.04}, "unheard of": {"mfcc": 1.0}}
    table = ship["table"](found)
    assert "| 86.9 (87) **missed** | 95.0 (95) | 92.0 (92) |" in table
    assert "unheard" not in table
    assert "| 86.9 |\n" in ship["table"](found, "mfcc")


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_what_ships_is_what_its_card_tells_of(ship: dict[str, Any], pipeline: str) -> None:
    content = (SHIPPED / f"{pipeline}.onnx").read_bytes()
    card = (SHIPPED / f"{pipeline}.md").read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in card
    assert len(content) <= 1e6 * ship["ROWS"]["model MB"].floors[pipeline]
    said = load_classifier("pretrained", pipeline).metadata
    for told in (said["git_commit"], said["created"], said["negatives"], "CC BY-SA 4.0"):
        assert told in card
    assert not said["git_commit"].endswith("-dirty")
    assert len(said["recordings_hash"].split()) == 2, "FSDD's and iitg_digits'"
    scored = load_results(ROOT / "docs" / "results" / "shipped")
    assert {result.protocol for result in scored} >= {
        "official",
        "unseen_speakers",
        "noise",
        "calibration",
        "rejection",
    }
    hashes = {model.sha256 for result in scored for model in result.models if model.pipeline == pipeline}
    assert hashes == {hashlib.sha256(content).hexdigest()}, "figures are of the files that ship"
    int8 = hashlib.sha256((SHIPPED / f"{pipeline}_int8.onnx").read_bytes()).hexdigest()
    assert int8 in card
    scored = load_results(ROOT / "docs" / "results" / "shipped_int8")
    assert {model.sha256 for result in scored for model in result.models if model.pipeline == pipeline} == {int8}
    assert ship["table"](ship["figures"](), pipeline) in card


def test_what_ships_in_8_bits_is_smaller_and_no_worse(ship: dict[str, Any]) -> None:
    found = ship["figures"]()
    for pipeline in PIPELINES:
        assert found["int8 model MB"][pipeline] <= found["model MB"][pipeline] / 2
        assert found["int8 strangers %"][pipeline] >= found["strangers %"][pipeline] - 1


def test_the_readme_tells_the_same_figures(ship: dict[str, Any]) -> None:
    assert ship["table"](ship["figures"]()) in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.real_data
@pytest.mark.parametrize("pipeline", PIPELINES)
def test_shipped_models_hear_digits_and_know_silence(pipeline: str) -> None:
    """FSDD's official test clips; evaluation-only recordings are scored by hand, not by every run of the tests."""
    if not os.environ.get("DIGIT_DATA_DIR"):
        pytest.skip("no real recordings: $DIGIT_DATA_DIR is not set")
    classifier = load_classifier("pretrained", pipeline)
    files = sorted(Path(os.environ["DIGIT_DATA_DIR"]).rglob("*_[0-4].wav"))
    answers = classifier.batch_predict(files)
    assert len(answers) == 300
    wrong = sum(answer["predicted_digit"] != int(Path(answer["file"]).name[0]) for answer in answers)
    assert wrong <= 3
    assert sum(answer["is_digit"] for answer in answers) >= 285
    hiss = np.random.default_rng(0).standard_normal(8000)
    for level in (0.1, 0.001):
        assert not classifier.predict(level * hiss, sample_rate=8000)["is_digit"]


def test_the_manifest_names_every_evaluation_clip_once() -> None:
    with (SHIPPED / "evaluation_clips.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["set"], row["file"]) for row in rows}) == len(rows) == 300 + 203 + 1492 + 142 + 139
    digits = [row["original"] for row in rows if row["set"] == "strangers"]
    assert {name.split("/")[0].removeprefix("Speech Commands ") for name in digits} == set(LABELS)
