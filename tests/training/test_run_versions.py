"""Trainings and versions: each finished training is one; a failed, killed or worse one changes no deployed file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from digit_detector.classifier import load_classifier
from digit_detector.errors import DataError
from digit_detector.versions import read_promotions, read_status, read_version, version_folder, version_numbers
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.pipelines.base import Pipeline
from ml_training.training.checkpoint import BEST, load_checkpoint
from ml_training.training.distillation import teacher_files
from ml_training.training.experiment import RunOutcome, run, summary_table

TINY = Path(__file__).with_name("tiny.py")
MODEL = Path("models") / "mfcc_classifier"

# Trains in a folder, with a seed, and kills itself before a step.
SCRIPT = """
import os, signal, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import tiny
from ml_training.config import TrainConfig
from ml_training.training.experiment import run

class Mortal(tiny.TinyModel):
    steps = 0

    def forward_waveform(self, waveforms):
        Mortal.steps += self.training
        if Mortal.steps == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward_waveform(waveforms)

config = TrainConfig(
    models_dir=sys.argv[2] + "/models", log_dir=sys.argv[2] + "/logs_" + sys.argv[3], device="cpu", threads=1, epochs=6,
    ema_decay=0.8, learning_rate=0.03, batch_size=8, negative_ratio=0.0, seed=int(sys.argv[3]),
)
run(config, corpus=tiny.corpus(), pipelines=[replace(tiny.TINY, build=Mortal)])
"""


def train(
    tiny: ModuleType, folder: Path, seed: int = 0, corpus: Corpus | None = None, pipeline: Pipeline | None = None,
    **changes: Any,
) -> RunOutcome:  # fmt: skip
    settings = {"epochs": 6, "ema_decay": 0.8, "learning_rate": 0.03, "negative_ratio": 0.0, **changes}
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / f"logs_{seed}"), device="cpu", threads=1, batch_size=8,
        seed=seed, **settings,
    )  # fmt: skip
    return run(config, corpus=corpus or tiny.corpus(), pipelines=[pipeline or tiny.TINY])


def bad(tiny: ModuleType, folder: Path, seed: int, **changes: Any) -> RunOutcome:
    """A training that learns nothing."""
    return train(tiny, folder, seed, epochs=1, learning_rate=1e-6, **changes)


def script(folder: Path, seed: int, dies_at: int = -1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(TINY.parent), str(folder), str(seed), str(dies_at)])


def deployed(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in ("best_model.pt", "model.onnx")]


@pytest.fixture(scope="module")
def thrice(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunOutcome]]:
    """Two trainings, and a third that was not to be promoted."""
    folder = tmp_path_factory.mktemp("thrice")
    return folder, [*(train(tiny, folder, seed) for seed in (0, 1)), train(tiny, folder, 2, promote=False)]


def test_each_finished_training_is_a_version(thrice: tuple[Path, list[RunOutcome]]) -> None:
    folder, outcomes = thrice
    versions = [read_version(folder / MODEL, number) for number in version_numbers(folder / MODEL)]
    known = [(v.number, v.parent, v.provenance.settings["seed"]) for v in versions]
    assert known == [(1, None, 0), (2, 1, 1), (3, 2, 2)]
    assert [outcome.results[0].version for outcome in outcomes] == [1, 2, 3]
    for version, outcome in zip(versions, outcomes, strict=True):
        (result,) = outcome.results
        assert version.provenance.data_hash == outcome.data.data_hash
        assert version.provenance.training["best_epoch"] == result.best_epoch
        assert version.metrics["official"]["bursts"]["errors"] == result.test.errors
        metadata = load_classifier(folder / "models", "mfcc", version=version.number).metadata
        assert (metadata["seed"], metadata["git_commit"]) == (str(version.number - 1), version.provenance.git_commit)
        best = load_checkpoint(version_folder(folder / MODEL, version.number) / BEST)
        assert (best["epoch"], best["config"]["seed"]) == (result.best_epoch, version.number - 1)


def test_the_promoted_version_is_deployed_and_alone_teaches(thrice: tuple[Path, list[RunOutcome]]) -> None:
    folder, outcomes = thrice
    assert read_promotions(folder / MODEL).promoted == 2
    assert not read_status(folder / MODEL).damaged
    assert load_classifier(folder / "models", "mfcc").metadata["seed"] == "1"
    assert outcomes[1].results[0].model_file == str(folder / MODEL / "model.onnx")
    assert outcomes[2].results[0].model_file == str(version_folder(folder / MODEL, 3) / "model.onnx")
    command = f"digits versions promote 3 --pipeline mfcc --models_dir {folder / 'models'}"
    assert f"mfcc: version 3, not promoted: {command}" in outcomes[2].log_file.read_text(encoding="utf-8")
    (summary,) = (folder / "logs_2").glob("metrics_summary_*.json")
    assert json.loads(summary.read_text(encoding="utf-8"))["model_version"] == 3
    assert teacher_files(str(folder / "models")) == [folder / MODEL / BEST]
    first = version_folder(folder / MODEL, 1)
    assert teacher_files(str(first)) == [first / BEST]
    with pytest.raises(DataError, match="has no best_model"):
        teacher_files(str(folder / "logs_0"))


def test_a_worse_training_is_kept_and_named_but_deployed_only_on_request(tiny: ModuleType, tmp_path: Path) -> None:
    good, folder = train(tiny, tmp_path, 0), tmp_path / MODEL
    before, errors = deployed(folder), good.results[0].test.errors
    assert good.results[0].not_promoted == ""
    worse = bad(tiny, tmp_path, 1)
    (result,) = worse.results
    assert result.test.errors > errors
    reason = f"{result.test.errors} errors in {result.test.clips} test clips, version 1 has {errors} in the same"
    assert (result.version, result.not_promoted, deployed(folder)) == (2, reason, before)
    assert f"mfcc: version 2 was NOT promoted: {reason}" in worse.log_file.read_text(encoding="utf-8")
    assert f"mfcc: version 2 was not promoted: {reason}" in summary_table(worse)
    assert bad(tiny, tmp_path, 1, promote=True).results[0].not_promoted == ""
    assert read_promotions(folder).promoted == 3
    assert train(tiny, tmp_path, 0).results[0].not_promoted == ""  # better again
    assert read_promotions(folder).promoted == 4


def test_synthetic_speech_never_replaces_recordings_unasked(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 0, corpus=tiny.corpus(synthetic=True), epochs=1)
    bad(tiny, tmp_path, 1)
    assert read_promotions(tmp_path / MODEL).promoted == 2
    outcome = train(tiny, tmp_path, 2, corpus=tiny.corpus(synthetic=True))
    assert "synthetic speech" in outcome.results[0].not_promoted
    assert read_promotions(tmp_path / MODEL).promoted == 2


def test_versions_tested_on_other_clips_are_not_compared(tiny: ModuleType, tmp_path: Path) -> None:
    train(tiny, tmp_path, 0, split="random")
    outcome = bad(tiny, tmp_path, 1, split="random")
    assert read_promotions(tmp_path / MODEL).promoted == 2
    assert "not comparable with version 1" in outcome.log_file.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_training_changes_no_deployed_file_and_becomes_the_next_version_when_resumed(
    tiny: ModuleType, tmp_path: Path
) -> None:
    train(tiny, tmp_path, 0)
    folder = tmp_path / MODEL
    before = deployed(folder)
    assert script(tmp_path, 1, dies_at=20).wait(timeout=120) == -signal.SIGKILL
    assert list(folder.glob("checkpoint_epoch_*.pt"))
    assert deployed(folder) == before
    assert (version_numbers(folder), read_status(folder).damaged) == ([1], False)
    for promote in (None, False):  # once it has ended, it is the same version again
        outcome = train(tiny, tmp_path, 1, resume="latest", promote=promote)
        assert outcome.results[0].version == 2
        assert outcome.results[0].model_file == str(folder / "model.onnx")
    assert read_version(folder, 2).provenance.settings["resume"] is None
    assert deployed(folder) == deployed(version_folder(folder, 2)) != before


def test_two_trainings_at_once_are_two_versions(tmp_path: Path) -> None:
    running = [script(tmp_path, seed) for seed in (3, 4)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    folder = tmp_path / MODEL
    assert (version_numbers(folder), read_status(folder).damaged) == ([1, 2], False)
    versions = [read_version(folder, number) for number in (1, 2)]
    assert {version.provenance.settings["seed"] for version in versions} == {3, 4}
    assert [version.parent for version in versions] == [None, 1]
    for number, version in enumerate(versions, 1):
        seed = version.provenance.settings["seed"]
        assert load_checkpoint(version_folder(folder, number) / BEST)["config"]["seed"] == seed
        assert load_classifier(tmp_path / "models", "mfcc", version=number).metadata["seed"] == str(seed)
