"""What trainings do to versions: each that ends is one, those that do not change nothing that answers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

from digit_detector.classifier import load_classifier
from digit_detector.errors import DataError
from digit_detector.versions import numbers, read_promotions, read_version, state_of, version_folder
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.training.checkpoint import BEST, load_checkpoint
from ml_training.training.distillation import teacher_files
from ml_training.training.experiment import RunOutcome, run
from ml_training.training.summary import summary_table

TINY = Path(__file__).with_name("tiny.py")
OWN = ("best_model.pt", "model.onnx")

# Trains in a folder, with a seed; where a step is named, it kills itself before that one.
SCRIPT = """
import os, signal, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
import tiny
from ml_training.config import TrainConfig
from ml_training.training.experiment import run

class Mortal(tiny.TinyModel):
    steps = 0

    def logits(self, waveforms):
        Mortal.steps += self.training
        if Mortal.steps == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().logits(waveforms)

config = TrainConfig(
    models_dir=sys.argv[2] + "/models", log_dir=sys.argv[2] + "/logs_" + sys.argv[3], device="cpu", threads=1, epochs=6,
    ema_decay=0.8, learning_rate=0.03, batch_size=8, negative_share=0.0, seed=int(sys.argv[3]),
)
run(config, corpus=tiny.corpus(), pipelines=[replace(tiny.TINY, build=Mortal)])
"""


def trained(tiny: ModuleType, folder: Path, seed: int = 0, corpus: Corpus | None = None, **changes: Any) -> RunOutcome:
    settings = {"epochs": 6, "ema_decay": 0.8, "learning_rate": 0.03, "negative_share": 0.0, **changes}
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / f"logs_{seed}"), device="cpu", threads=1, batch_size=8,
        seed=seed, **settings,
    )  # fmt: skip
    return run(config, corpus=corpus or tiny.corpus(), pipelines=[tiny.TINY])


def script(folder: Path, seed: int, dies_at: int = -1) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(TINY.parent), str(folder), str(seed), str(dies_at)])


def own(folder: Path) -> list[bytes]:
    """The bytes that answer and that teach."""
    return [(folder / "models" / "mfcc_classifier" / name).read_bytes() for name in OWN]


@pytest.fixture(scope="module")
def twice(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[RunOutcome]]:
    """Two trainings one after another, and a third that was not to be promoted."""
    folder = tmp_path_factory.mktemp("twice")
    outcomes = [trained(tiny, folder, seed) for seed in (0, 1)]
    return folder, [*outcomes, trained(tiny, folder, 2, promote=False)]


def test_each_finished_training_is_a_version(tiny: ModuleType, twice: tuple[Path, list[RunOutcome]]) -> None:
    folder, outcomes = twice
    pipeline = folder / "models" / "mfcc_classifier"
    versions = [read_version(pipeline, number) for number in numbers(pipeline)]
    assert [(v.number, v.parent, v.origin.settings["seed"]) for v in versions] == [(1, None, 0), (2, 1, 1), (3, 2, 2)]
    assert [outcome.results[0].version for outcome in outcomes] == [1, 2, 3]
    for version, outcome in zip(versions, outcomes, strict=True):
        (result,) = outcome.results
        assert version.origin.data_hash == outcome.data.data_hash
        assert version.origin.training["best_epoch"] == result.best_epoch
        assert version.metrics["official"]["bursts"]["errors"] == result.test.errors
        classifier = load_classifier(folder / "models", "mfcc", version=version.number)
        assert classifier.metadata["seed"] == str(version.origin.settings["seed"])
        assert classifier.metadata["git_commit"] == version.origin.git_commit
        best = load_checkpoint(version_folder(pipeline, version.number) / BEST)
        assert (best["epoch"], best["config"]["seed"]) == (result.best_epoch, version.origin.settings["seed"])


def test_what_answers_is_the_promoted_one(twice: tuple[Path, list[RunOutcome]]) -> None:
    folder, outcomes = twice
    pipeline = folder / "models" / "mfcc_classifier"
    assert read_promotions(pipeline).promoted == 2
    assert not state_of(pipeline).damaged
    assert load_classifier(folder / "models", "mfcc").metadata["seed"] == "1"
    assert outcomes[1].results[0].model_file == str(pipeline / "model.onnx")
    assert outcomes[2].results[0].model_file == str(version_folder(pipeline, 3) / "model.onnx")
    log = outcomes[2].log_file.read_text(encoding="utf-8")
    command = f"digits versions promote 3 --pipeline mfcc --models_dir {folder / 'models'}"
    assert f"mfcc: version 3, not promoted: {command}" in log
    (summary,) = (folder / "logs_2").glob("metrics_summary_*.json")
    assert json.loads(summary.read_text(encoding="utf-8"))["model_version"] == 3


def test_a_training_that_is_worse_is_kept_and_told_but_answers_only_when_asked(
    tiny: ModuleType, tmp_path: Path
) -> None:
    good, pipeline = trained(tiny, tmp_path, 0), tmp_path / "models" / "mfcc_classifier"
    before, errors = own(tmp_path), good.results[0].test.errors
    assert good.results[0].not_promoted == ""
    worse = trained(tiny, tmp_path, 1, epochs=1, learning_rate=1e-6)
    (result,) = worse.results
    assert result.test.errors > errors
    told = f"{result.test.errors} errors in {result.test.clips} test clips, version 1 has {errors} in the same"
    assert (result.version, result.not_promoted, own(tmp_path)) == (2, told, before)
    assert f"WARNING mfcc: version 2 was NOT promoted: {told}. It is kept; to promote: digits versions promote 2" in (
        worse.log_file.read_text(encoding="utf-8")
    )
    assert f"mfcc: version 2 was not promoted: {told}" in summary_table(worse)
    assert (numbers(pipeline), read_promotions(pipeline).promoted) == ([1, 2], 1)
    assert trained(tiny, tmp_path, 1, epochs=1, learning_rate=1e-6, promote=True).results[0].not_promoted == ""
    assert read_promotions(pipeline).promoted == 3
    assert trained(tiny, tmp_path, 0).results[0].not_promoted == ""  # better again
    assert read_promotions(pipeline).promoted == 4


def test_synthetic_speech_never_takes_the_place_of_recordings_unasked(tiny: ModuleType, tmp_path: Path) -> None:
    real, pipeline = replace(tiny.corpus(), synthetic=False), tmp_path / "models" / "mfcc_classifier"
    synthetic = replace(tiny.corpus(), synthetic=True)
    trained(tiny, tmp_path, 0, corpus=synthetic, epochs=1)
    trained(tiny, tmp_path, 1, corpus=real, epochs=1, learning_rate=1e-6)  # however bad
    assert read_promotions(pipeline).promoted == 2
    outcome = trained(tiny, tmp_path, 2, corpus=synthetic)
    assert outcome.results[0].not_promoted == "it learnt from synthetic speech, version 2 from recordings"
    assert read_promotions(pipeline).promoted == 2


def test_versions_tested_on_other_clips_are_not_compared(tiny: ModuleType, tmp_path: Path) -> None:
    trained(tiny, tmp_path, 0, split="random")
    outcome = trained(tiny, tmp_path, 1, split="random", epochs=1, learning_rate=1e-6)
    assert read_promotions(tmp_path / "models" / "mfcc_classifier").promoted == 2
    log = outcome.log_file.read_text(encoding="utf-8")
    assert "mfcc: version 2, promoted: not comparable with version 1, which was tested on other clips" in log


def test_no_version_teaches_beside_the_promoted_one(twice: tuple[Path, list[RunOutcome]]) -> None:
    folder, _ = twice
    pipeline = folder / "models" / "mfcc_classifier"
    assert teacher_files(str(folder / "models")) == [pipeline / BEST]
    assert teacher_files(str(version_folder(pipeline, 1))) == [version_folder(pipeline, 1) / BEST]
    with pytest.raises(DataError, match="holds no best_model"):
        teacher_files(str(folder / "logs_0"))


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_training_changes_nothing_that_answers_and_resumed_becomes_the_next_version(
    tiny: ModuleType, tmp_path: Path
) -> None:
    trained(tiny, tmp_path, 0)
    before, pipeline = own(tmp_path), tmp_path / "models" / "mfcc_classifier"
    assert script(tmp_path, 1, dies_at=20).wait(timeout=120) == -signal.SIGKILL
    assert list(pipeline.glob("checkpoint_epoch_*.pt"))
    assert own(tmp_path) == before
    assert (numbers(pipeline), state_of(pipeline).damaged) == ([1], False)
    outcome = trained(tiny, tmp_path, 1, resume="latest")
    assert outcome.results[0].version == 2
    assert read_version(pipeline, 2).origin.settings["resume"] is None
    assert own(tmp_path) == [(version_folder(pipeline, 2) / name).read_bytes() for name in OWN] != before


def test_a_failed_training_changes_nothing_that_answers(tiny: ModuleType, tmp_path: Path) -> None:
    class Diverging(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def logits(self, waveforms: Tensor) -> Tensor:
            scores: Tensor = super().logits(waveforms) * (float("nan") if self.training else 1.0)
            return scores

    trained(tiny, tmp_path, 0)
    before = own(tmp_path)
    config = TrainConfig(
        models_dir=str(tmp_path / "models"), log_dir=str(tmp_path / "logs"), device="cpu", epochs=2, batch_size=8,
        negative_share=0.0, seed=1,
    )  # fmt: skip
    outcome = run(config, corpus=tiny.corpus(), pipelines=[replace(tiny.TINY, build=Diverging)])
    assert "the loss became nan" in outcome.failures["mfcc"]
    assert own(tmp_path) == before
    assert numbers(tmp_path / "models" / "mfcc_classifier") == [1]


def test_a_training_that_ended_and_is_resumed_is_the_same_version(tiny: ModuleType, tmp_path: Path) -> None:
    trained(tiny, tmp_path, 0)
    outcome = trained(tiny, tmp_path, 0, resume="latest", promote=False)
    assert outcome.results[0].version == 1
    assert outcome.results[0].model_file.endswith("mfcc_classifier/model.onnx")
    assert "mfcc: version 1, promoted" in outcome.log_file.read_text(encoding="utf-8")


def test_two_trainings_at_once_are_two_versions(tmp_path: Path) -> None:
    running = [script(tmp_path, seed) for seed in (3, 4)]
    assert [process.wait(timeout=300) for process in running] == [0, 0]
    pipeline = tmp_path / "models" / "mfcc_classifier"
    assert (numbers(pipeline), state_of(pipeline).damaged) == ([1, 2], False)
    versions = [read_version(pipeline, number) for number in (1, 2)]
    assert {version.origin.settings["seed"] for version in versions} == {3, 4}
    assert [version.parent for version in versions] == [None, 1]
    for number, version in enumerate(versions, 1):
        seed = version.origin.settings["seed"]
        best = load_checkpoint(version_folder(pipeline, number) / BEST)
        assert best["config"]["seed"] == seed
        assert load_classifier(tmp_path / "models", "mfcc", version=number).metadata["seed"] == str(seed)
