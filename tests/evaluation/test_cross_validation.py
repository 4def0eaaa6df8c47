"""Folds cover all clips once, alike in one process and several, continue after any end, and are never mixed up."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, DataError, TrainingError
from ml_training import train
from ml_training.config import AugmentationConfig, Recipe, TrainConfig, parse_fold
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.splits import split_corpus
from ml_training.evaluation.cross_validation import Plan, cross_validate
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
FOUR = Plan(4, seeds=(3,), jobs=1)


class Energies(DigitModel):
    """Mean log spectrum, batch norm, one linear layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(65), nn.Linear(65, OUTPUTS))

    def forward_waveform(self, waveforms):
        spectrum = torch.stft(waveforms, 128, 128, window=torch.ones(128), center=False, return_complex=True)
        power = torch.view_as_real(spectrum).square().sum(-1).mean(-1)
        return self.layers(F.layer_norm((power + 1e-4).log(), (65,)))


TINY = Pipeline("mfcc", Energies, Recipe(2, 16, 0.02, 0.01, AugmentationConfig(enabled=False)))
ONE: dict[str, object] = {"seeds": (0,), "speakers": ("speaker1",)}


def run_folds(recordings, work, plan):
    """Folds of mfcc on files, which several processes can train."""
    config = TrainConfig(
        pipeline="mfcc", dataset="folder", data_dir=str(recordings), log_dir=str(work), device="cpu", epochs=1,
        negative_ratio=0.0,
    )  # fmt: skip
    lines: list[str] = []
    corpus = load_corpus(config, report=lines.append)
    return cross_validate(corpus, [get_pipeline("mfcc")], config, work, plan, lines.append), lines


def run_loso(corpus, work, pipeline=TINY, **changes):
    """One speaker left out at a time, with a network that trains in a second."""
    lines: list[str] = []
    options = {name: changes.pop(name) for name in ("seeds", "speakers") if name in changes}
    config = TrainConfig(**{"device": "cpu", "ema_decay": 0.0, "negative_ratio": 0.0, **changes})  # type: ignore[arg-type]
    plan = Plan(**{"seeds": (0, 1), "speakers": ("speaker1", "speaker3"), **options})  # type: ignore[arg-type]
    return cross_validate(corpus, [pipeline], config, work, plan, lines.append), lines


def load_folds(work):
    """Every fold's result, except what differs between runs of the same folds."""
    folds = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*/fold.json")}
    return {name: {k: v for k, v in fold.items() if k not in ("seconds", "git_commit")} for name, fold in folds.items()}


def count_trained(lines):
    return sum("; done, " in line for line in lines)


@settings(deadline=None, max_examples=25)
@given(folds=st.integers(2, 20), seed=st.integers(0, 50))
def test_folds_share_no_clip_cover_all_and_are_stratified(tiny_corpus, folds, seed):
    tested: list[int] = []
    for number in range(1, folds + 1):
        split = split_corpus(tiny_corpus, TrainConfig(split="fold", fold=f"{number}/{folds}", seed=seed))
        assert sorted([*split.train, *split.validation, *split.test]) == list(range(len(tiny_corpus)))
        counts = Counter((tiny_corpus.speakers[i], int(tiny_corpus.labels[i])) for i in split.test)
        for key in {(s, int(d)) for s, d in zip(tiny_corpus.speakers, tiny_corpus.labels, strict=True)}:
            assert 5 // folds <= counts[key] <= -(-5 // folds)
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(tiny_corpus)))
    first = split_corpus(tiny_corpus, TrainConfig(split="fold", fold=f"1/{folds}", seed=seed)).test
    other = split_corpus(tiny_corpus, TrainConfig(split="fold", fold=f"1/{folds}", seed=seed + 1)).test
    assert not np.array_equal(first, other), "another seed deals the clips anew"


@pytest.mark.parametrize("typed", [None, "", "3", "0/10", "11/10", "1/1", "1/5000", "a/b", "-1/4", "1/10 "])
def test_the_name_of_a_fold_is_checked(typed):
    assert parse_fold(typed) is None
    assert parse_fold("3/10") == (3, 10)
    with pytest.raises(ConfigError, match="split 'fold' needs fold as 3/10"):
        TrainConfig(split="fold", fold=typed)
    with pytest.raises(ConfigError, match="fold is only for split 'fold'"):
        TrainConfig(fold="1/2")


@pytest.fixture(scope="module")
def alone(tiny_folder, tmp_path_factory):
    """Four folds in this process."""
    work = tmp_path_factory.mktemp("alone")
    return work, run_folds(tiny_folder, work, FOUR)[0]


def test_every_clip_is_tested_once_and_kept_models_predict(alone, tiny_corpus):
    work, result = alone
    (score,) = result.scores
    assert (result.protocol, score.all.clips, result.clips) == ("cv", 200, 200)
    assert sum(count.clips for count in score.by_speaker.values()) == 200
    assert result.details is not None
    assert np.sum(result.details["confusion"]["mfcc"]) == 200
    assert [fold["clips"] for fold in result.details["folds"]] == [50] * 4
    folds = load_folds(work)
    assert len(folds) == 4
    errors = sum(fold["test"]["errors"] for fold in folds.values())
    assert len({clip.file for clip in score.misclassified}) == errors == 200 - score.all.right
    for name in folds:
        probabilities, _ = load_classifier(work / name, "mfcc").predict_proba(tiny_corpus.waveforms[:3])
        assert probabilities.shape == (3, 10)
        assert (work / name / "best_model.pt").is_file()


def test_several_processes_find_the_same_and_models_that_were_thrown_away_are_made_again(alone, tiny_folder, tmp_path):
    plan = dataclasses.replace(FOUR, jobs=2, keep_models=False)
    result, lines = run_folds(tiny_folder, tmp_path, plan)
    assert lines[-5].endswith("0 already done, 2 processes")
    assert load_folds(tmp_path) == load_folds(alone[0])
    assert result.scores == alone[1].scores
    assert not list(tmp_path.rglob("*.pt"))
    again, lines = run_folds(tiny_folder, tmp_path, dataclasses.replace(plan, keep_models=True))
    assert "4 already done" in lines[-1]
    kept, lines = run_folds(tiny_folder, tmp_path, dataclasses.replace(FOUR, retrain_thrown=True))
    assert sum("its model was thrown away" in line for line in lines) == 4
    assert kept.scores == again.scores == result.scores
    assert len(list(tmp_path.rglob("model.onnx"))) == 4


def flags(recordings, log_dir, *more):
    common = ["--pipeline", "mfcc", "--dataset", "folder", "--epochs", "1", "--negative_ratio", "0", "--device", "cpu"]
    return [*common, "--data_dir", str(recordings), "--log_dir", str(log_dir), *more]


@posix
def test_a_run_that_was_killed_continues_with_the_same_bytes(alone, tiny_folder, tmp_path):
    words = flags(tiny_folder, tmp_path, "--cv", "4", "--seeds", "3", "--jobs", "2")
    command = [sys.executable, str(ROOT / "ml_training" / "train.py"), *words]
    for _ in range(20):  # until there is something to lose
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob("cv/*/checkpoint_*")):
            time.sleep(0.01)
        process.kill()
        process.wait()
        if list(tmp_path.glob("cv/*/checkpoint_*")):
            break
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert load_folds(tmp_path / "cv") == load_folds(alone[0])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cv", "1"], "expected a number of folds from 2 to 1000, or 'speaker', got '1'"),
        (["--jobs", "2"], "--jobs belong to --cv"),
        (["--cv", "2", "--jobs", "0"], "jobs: expected a number of processes from 1 on"),
        (["--cv", "201"], "expected 2 to 200 folds of 200 clips"),
        (["--cv", "2", "--mlflow"], "leave --mlflow out"),
        (["--cv", "2", "--split", "random"], "the protocol decides these"),
        (["--cv", "2", "--compare", "nothing.json"], "nothing.json is no result"),
        (["--cv", "4", "--seeds", "4", "--compare", "EARLIER"], "4 here, 4 in the earlier result, 0 in common"),
        (["--cv", "5", "--seeds", "3", "--compare", "EARLIER"], "5 here, 4 in the earlier result, 0 in common"),
        (["--cv", "speaker", "--compare", "EARLIER"], "is of protocol 'cv', expected loso"),
    ],
)
def test_faults_are_one_line_before_anything_is_trained(words, expected, alone, tiny_folder, tmp_path, capsys):
    (tmp_path / "earlier.json").write_text(json.dumps(alone[1].to_dict()), encoding="utf-8")
    words = [str(tmp_path / "earlier.json") if word == "EARLIER" else word for word in words]
    try:
        code = train.main([*flags(tiny_folder, tmp_path), *words])
    except SystemExit as left:
        code = int(str(left.code))
    assert code in (1, 2)
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.rglob("fold.json"))


def test_two_settings_are_compared_fold_by_fold(alone, tiny_folder, tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(alone[1].to_dict()), encoding="utf-8")
    words = ["--cv", "4", "--seeds", "3", "--jobs", "1", "--learning_rate", "0.0001", "--compare", str(earlier)]
    assert train.main(flags(tiny_folder, tmp_path, *words)) == 0
    assert "Compared with" in capsys.readouterr().out
    page = (tmp_path / "cross_validation" / "evaluation_report.html").read_text(encoding="utf-8")
    assert "McNemar" in page
    assert page.count("data:image/png") == 2
    (result,) = (tmp_path / "cross_validation").glob("*.json")
    (pair,) = json.loads(result.read_text(encoding="utf-8"))["details"]["compared"]["pairs"]
    assert (pair["clips"], pair["folds"]) == (200, 4)
    assert pair["difference"] < 0
    assert 0 < pair["mcnemar"] <= 1


@pytest.fixture(scope="module")
def loso(tiny_corpus, tmp_path_factory):
    work = tmp_path_factory.mktemp("loso")
    result, lines = run_loso(tiny_corpus, work)
    assert lines[0] == "leave one speaker out: 4 trainings, 0 already done"
    assert count_trained(lines) == 4
    return work, result


def test_each_speaker_and_seed_is_one_fold_that_trains_without_the_speaker(loso):
    work, result = loso
    assert (result.seeds, result.clips) == (("0", "1"), 100)
    for score in result.scores:
        assert {name: count.clips for name, count in score.by_speaker.items()} == {"speaker1": 50, "speaker3": 50}
        assert score.all.accuracy > 0.3, "chance is 0.1"
    folds = load_folds(work)
    assert len(folds) == 4
    for fold in folds.values():
        assert set(fold["validation_speakers"]) <= {f"speaker{n}" for n in range(4)} - {fold["left_out"]}
        assert fold["parts"] == {"train": 135, "validation": 15, "test": 50}
        assert set(fold["test"]["by_speaker"]) == {fold["left_out"]}


def test_only_missing_or_damaged_folds_are_trained_and_give_the_same(tiny_corpus, loso):
    work, before = loso
    (path,) = work.glob("mfcc_speaker3_seed1_*/fold.json")
    for content in (None, "{", json.dumps({**json.loads(path.read_text(encoding="utf-8")), "identity": "another"})):
        if content is None:
            path.unlink()
        else:
            path.write_text(content, encoding="utf-8")
        for checkpoint in path.parent.glob("checkpoint_*"):
            checkpoint.unlink()
        result, lines = run_loso(tiny_corpus, work)
        assert "leave one speaker out: 4 trainings, 3 already done" in lines
        assert ("is retrained" in lines[0]) == (content is not None)
        assert count_trained(lines) == 1
        assert "mfcc, seed 1, without speaker3" in lines[-1]
        assert result.scores == before.scores
    assert count_trained(run_loso(tiny_corpus, work)[1]) == 0


@pytest.mark.parametrize("change", ["settings", "data", "version"])
def test_folds_of_other_settings_data_or_versions_are_trained(change, tiny_corpus, loso, monkeypatch):
    options, corpus = {**ONE}, tiny_corpus
    assert count_trained(run_loso(corpus, loso[0], **options, log_dir="another", threads=1)[1]) == 0
    if change == "settings":
        options["learning_rate"] = 0.01
    elif change == "data":
        corpus = dataclasses.replace(tiny_corpus, data_hash="other")
    else:
        monkeypatch.setattr("ml_training.__version__", "99.0")
    assert count_trained(run_loso(corpus, loso[0], **options)[1]) == 1


@pytest.mark.parametrize("kind", ["noise", "words"])
def test_noise_and_words_decide_a_fold_by_their_sound_and_not_by_their_folder(kind, tiny_corpus, tmp_path):
    sound, counts = 0.1 * np.random.default_rng(0).standard_normal(9000), []
    for name, gain in (("first", 1.0), ("copy", 1.0), ("other", 0.5)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "yes_ann_0.wav", gain * sound, 8000)
        folder, pipeline, options = str(tmp_path / name), TINY, {**ONE, "epochs": 1}
        if kind == "noise":
            recipe = dataclasses.replace(TINY.recipe, augmentation=AugmentationConfig(noise_dir=folder))
            pipeline = dataclasses.replace(TINY, recipe=recipe)
        else:
            options |= {"negative_ratio": 0.25, "synthetic_voices": 2, "non_digit_dir": folder}
        result, lines = run_loso(tiny_corpus, tmp_path / "work", pipeline, **options)
        counts.append(count_trained(lines))
        assert str(tmp_path) not in json.dumps(result.to_dict())
    assert counts == [1, 0, 1]


def test_synthetic_voices_and_non_digits_train_and_nothing_else(tiny_corpus, tmp_path, monkeypatch):
    fitted: list[int] = []

    def fit(logits, labels, power):
        fitted.extend(labels.tolist())
        return 1.0

    monkeypatch.setattr("ml_training.training.training_data.fit_logit_temperature", fit)
    recorded = dataclasses.replace(tiny_corpus, synthetic=False)
    for name, changes, trained in (
        ("synthetic", {"synthetic_ratio": 0.25, "synthetic_voices": 5}, 135 + 45),
        ("negative", {"negative_ratio": 0.25, "synthetic_voices": 12, "epochs": 1}, 135),
    ):
        result, _ = run_loso(recorded, tmp_path / name, **ONE, **changes)
        (fold,) = load_folds(tmp_path / name).values()
        assert fold["parts"] == {"train": trained, "validation": 15, "test": 50}
        assert set(fold["validation_speakers"]) <= {f"speaker{n}" for n in range(4)}
        assert fold["test"]["clips"] == result.clips == 50
        assert set(fold["test"]["by_digit"]) == set("0123456789")
    assert len(fitted) == 2 * 15
    assert set(fitted) <= set(range(10))


def test_impossible_plans_and_failed_folds_are_errors(tiny_corpus, tmp_path):
    with pytest.raises(DataError, match="no speaker nobody in tiny: expected some of speaker0, speaker1"):
        run_loso(tiny_corpus, tmp_path, speakers=("nobody",))
    with pytest.raises(ConfigError, match="seeds: expected one at least"):
        run_loso(tiny_corpus, tmp_path, seeds=())
    with pytest.raises(DataError, match="has one speaker"):
        run_loso(dataclasses.replace(tiny_corpus, speakers=("one",) * len(tiny_corpus)), tmp_path, speakers=())

    class Diverging(Energies):
        def forward_waveform(self, waveforms):
            return super().forward_waveform(waveforms) * float("nan")

    expected = r"2 of 2 folds failed.*mfcc, seed 0, without speaker1: the loss became nan"
    with pytest.raises(TrainingError, match=expected):
        run_loso(tiny_corpus, tmp_path, dataclasses.replace(TINY, build=Diverging), seeds=(0,))
