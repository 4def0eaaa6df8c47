"""Leave one speaker out on a tiny corpus: each fold once, resumed where it stopped, never taken for another."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import statistics
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from digit_detector.errors import ConfigError, DataError, Interrupted, TrainingError
from ml_training.config import AugmentationConfig, Recipe, TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.evaluation.cross_validation import Plan, cross_validate
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline
from ml_training.report.tables import spread_of, tables_of
from ml_training.results import ProtocolResult


class Energies(DigitModel):
    """Mean log spectrum, batch norm, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(65), nn.Linear(65, OUTPUTS))

    def logits(self, waveforms: Tensor) -> Tensor:
        spectrum = torch.stft(waveforms, 128, 128, window=torch.ones(128), center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).mean(-1)
        return self.layers(F.layer_norm((power + 1e-4).log(), (65,)))


TINY = Pipeline("mfcc", Energies, Recipe(2, 16, 0.02, 0.01, AugmentationConfig(enabled=False)))
SPEAKERS = ("speaker0", "speaker1", "speaker2", "speaker3")


def run(corpus: Corpus, work: Path, pipeline: Pipeline = TINY, **changes: object) -> tuple[ProtocolResult, list[str]]:
    said: list[str] = []
    options = {name: changes.pop(name) for name in ("seeds", "speakers") if name in changes}
    config = TrainConfig(**{"device": "cpu", "ema_decay": 0.0, "negative_share": 0.0, **changes})  # type: ignore[arg-type]
    plan = Plan(**{"seeds": (0, 1), "speakers": ("speaker1", "speaker3"), **options})  # type: ignore[arg-type]
    result = cross_validate(corpus, [pipeline], config, work, plan, said.append)
    return result, said


def trained(said: list[str]) -> int:
    return sum("; done, " in line for line in said)


@pytest.fixture(scope="module")
def finished(tiny_corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProtocolResult, list[str]]:
    work = tmp_path_factory.mktemp("loso")
    return work, *run(tiny_corpus, work)


def test_every_speaker_and_seed_is_one_fold(finished: tuple[Path, ProtocolResult, list[str]]) -> None:
    work, result, said = finished
    assert trained(said) == 4
    assert said[0] == "leave one speaker out: 4 trainings, 0 already there"
    assert len(list(work.glob("*/fold.json"))) == 4
    assert result.seeds == ("0", "1")
    for score in result.scores:
        assert set(score.by_speaker) == {"speaker1", "speaker3"}
        assert all(count.clips == 50 for count in score.by_speaker.values())
        assert score.all.accuracy > 0.3, "chance is 0.1"
    assert result.clips == 100
    assert result.details is not None
    assert len(result.details["folds"]) == 4


def test_the_speaker_left_out_is_neither_in_training_nor_in_validation(
    finished: tuple[Path, ProtocolResult, list[str]],
) -> None:
    for path in finished[0].glob("*/fold.json"):
        fold = json.loads(path.read_text(encoding="utf-8"))
        assert fold["left_out"] not in fold["validation_speakers"]
        assert set(fold["validation_speakers"]) <= set(SPEAKERS) - {fold["left_out"]}
        assert fold["parts"] == {"train": 135, "validation": 15, "test": 50}
        assert set(fold["test"]["by_speaker"]) == {fold["left_out"]}


def test_mean_and_spread_are_over_speakers_and_seeds(finished: tuple[Path, ProtocolResult, list[str]]) -> None:
    result = finished[1]
    shares = [[n.accuracy for n in score.by_speaker.values()] for score in result.scores]
    found = spread_of(result.scores)
    means = [statistics.fmean(row) for row in shares]
    assert found.mean == pytest.approx(statistics.fmean(means))
    assert found.over_seeds == pytest.approx(statistics.stdev(means))
    by_speaker = [statistics.fmean(column) for column in zip(*shares, strict=True)]
    assert found.over_speakers == pytest.approx(statistics.stdev(by_speaker))
    assert math.isnan(spread_of(result.scores[:1]).over_seeds)
    rows = {row[0]: row[1] for row in tables_of(result)[0].rows}
    assert rows["mean ± over seeds"].startswith(f"{100 * found.mean:.1f} %")
    assert "calibration error, mean of folds" in rows


def test_only_the_missing_fold_is_trained_and_gives_the_same(
    tiny_corpus: Corpus, finished: tuple[Path, ProtocolResult, list[str]]
) -> None:
    work, before, _ = finished
    (gone,) = work.glob("mfcc_speaker3_seed1_*/fold.json")
    gone.unlink()
    for checkpoint in gone.parent.glob("checkpoint_*"):
        checkpoint.unlink()
    result, said = run(tiny_corpus, work)
    assert said[0] == "leave one speaker out: 4 trainings, 3 already there"
    assert trained(said) == 1
    assert "mfcc, seed 1, without speaker3" in said[1]
    assert result.scores == before.scores
    assert trained(run(tiny_corpus, work)[1]) == 0


def test_a_damaged_fold_is_trained_anew(tiny_corpus: Corpus, finished: tuple[Path, ProtocolResult, list[str]]) -> None:
    work, before, _ = finished
    (path,) = work.glob("mfcc_speaker1_seed0_*/fold.json")
    for content in ("{", json.dumps({**json.loads(path.read_text(encoding="utf-8")), "identity": "another"})):
        path.write_text(content, encoding="utf-8")
        result, said = run(tiny_corpus, work)
        assert "trained anew" in said[0]
        assert trained(said) == 1
        assert result.scores == before.scores


@pytest.mark.parametrize("change", ["settings", "data", "version"])
def test_folds_of_other_settings_data_or_versions_are_not_taken(
    change: str, tiny_corpus: Corpus, finished: tuple[Path, ProtocolResult, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _, _ = finished
    options: dict[str, object] = {"seeds": (0,), "speakers": ("speaker1",)}
    assert trained(run(tiny_corpus, work, **options)[1]) == 0
    assert trained(run(tiny_corpus, work, **options, log_dir="elsewhere", threads=1)[1]) == 0, "these change nothing"
    corpus = tiny_corpus
    if change == "settings":
        options["learning_rate"] = 0.01
    elif change == "data":
        corpus = dataclasses.replace(tiny_corpus, data_hash="other")
    else:
        monkeypatch.setattr("ml_training.__version__", "99.0")
    assert trained(run(corpus, work, **options)[1]) == 1


def test_recorded_noise_decides_a_fold_by_its_bytes_not_by_its_place(tiny_corpus: Corpus, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal(9000) * 0.1
    for name, gain in (("here", 1.0), ("there", 1.0), ("other", 0.5)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "rain.wav", gain * noise, 8000)
    counts = []
    for name in ("here", "there", "other"):
        augmentation = AugmentationConfig(noise_dir=str(tmp_path / name))
        noisy = dataclasses.replace(TINY, recipe=dataclasses.replace(TINY.recipe, augmentation=augmentation))
        result, said = run(tiny_corpus, tmp_path / "work", noisy, seeds=(0,), speakers=("speaker1",))
        counts.append(trained(said))
        assert str(tmp_path) not in json.dumps(result.to_dict())
    assert counts == [1, 0, 1]


def test_synthetic_voices_train_and_nothing_else(tiny_corpus: Corpus, tmp_path: Path) -> None:
    recorded = dataclasses.replace(tiny_corpus, synthetic=False)
    run(recorded, tmp_path, seeds=(0,), speakers=("speaker1",), synthetic_share=0.25, synthetic_voices=5)
    (path,) = tmp_path.glob("*/fold.json")
    fold = json.loads(path.read_text(encoding="utf-8"))
    assert fold["parts"] == {"train": 135 + 45, "validation": 15, "test": 50}
    assert set(fold["validation_speakers"]) <= set(SPEAKERS)


def test_what_is_no_digit_is_trained_with_and_counted_nowhere(
    tiny_corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[int] = []

    def fit(scores: np.ndarray, labels: np.ndarray, power: float) -> float:
        fitted.extend(labels.tolist())
        return 1.0

    monkeypatch.setattr("ml_training.training.training_data.temperature_for_other_voices", fit)
    result, _ = run(
        tiny_corpus, tmp_path, seeds=(0,), speakers=("speaker1",), negative_share=0.25, synthetic_voices=12, epochs=1
    )
    (path,) = tmp_path.glob("*/fold.json")
    fold = json.loads(path.read_text(encoding="utf-8"))
    assert fold["parts"] == {"train": 135, "validation": 15, "test": 50}
    assert set(fold["validation_speakers"]) <= set(SPEAKERS)
    assert fold["test"]["clips"] == result.clips == 50
    assert set(fold["test"]["by_digit"]) == {str(digit) for digit in range(10)}
    assert len(fitted) == 15
    assert set(fitted) <= set(range(10))


def test_recorded_words_decide_a_fold_by_their_sound_not_by_their_place(tiny_corpus: Corpus, tmp_path: Path) -> None:
    word = np.sin(np.arange(4000) / 3.0)
    for name, gain in (("here", 0.1), ("there", 0.1), ("other", 0.2)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "yes_ann_0.wav", gain * word, 8000)
    options: dict[str, object] = {"seeds": (0,), "speakers": ("speaker1",), "negative_share": 0.25, "epochs": 1}
    counts = []
    for name in ("here", "there", "other"):
        words = str(tmp_path / name)
        result, said = run(tiny_corpus, tmp_path / "work", synthetic_voices=2, words_dir=words, **options)
        counts.append(trained(said))
        assert str(tmp_path) not in json.dumps(result.to_dict())
    assert counts == [1, 0, 1]


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_a_stopped_fold_goes_on_from_its_checkpoint(tiny_corpus: Corpus, tmp_path: Path) -> None:
    class Impatient(Energies):
        calls = 0

        def logits(self, waveforms: Tensor) -> Tensor:
            if self.training:
                Impatient.calls += 1
                if Impatient.calls == 12:  # in the second epoch of the first fold
                    os.kill(os.getpid(), signal.SIGTERM)
            return super().logits(waveforms)

    options = {"seeds": (0,), "speakers": ("speaker1",)}
    impatient = dataclasses.replace(TINY, build=Impatient)
    with pytest.raises(Interrupted) as stopped:
        run(tiny_corpus, tmp_path / "a", impatient, **options)
    assert stopped.value.exit_code == 143
    assert len(list((tmp_path / "a").glob("*/checkpoint_interrupted.pt"))) == 1
    assert not list((tmp_path / "a").glob("*/fold.json"))
    result, said = run(tiny_corpus, tmp_path / "a", impatient, **options)
    assert any("resuming at epoch 2" in line for line in said)
    assert result.scores == run(tiny_corpus, tmp_path / "b", **options)[0].scores


def test_what_cannot_be_is_said(tiny_corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no speaker nobody in tiny: expected some of speaker0, speaker1"):
        run(tiny_corpus, tmp_path, speakers=("nobody",))
    with pytest.raises(ConfigError, match="seeds: expected one at least"):
        run(tiny_corpus, tmp_path, seeds=())
    lone = dataclasses.replace(tiny_corpus, speakers=("one",) * len(tiny_corpus))
    with pytest.raises(DataError, match="has one speaker"):
        run(lone, tmp_path, speakers=())


def test_a_fold_that_fails_says_which(tiny_corpus: Corpus, tmp_path: Path) -> None:
    class Diverging(Energies):
        def logits(self, waveforms: Tensor) -> Tensor:
            return super().logits(waveforms) * float("nan")

    with pytest.raises(
        TrainingError, match=r"2 of 2 folds failed.*mfcc, seed 0, without speaker1: the loss became nan"
    ):
        run(tiny_corpus, tmp_path, dataclasses.replace(TINY, build=Diverging), seeds=(0,))
