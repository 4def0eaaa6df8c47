"""Folds that cover all clips once, the same in one process and in several, whatever dies meanwhile."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError
from ml_training import train
from ml_training.config import TrainConfig, fold_numbers
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.splits import split_corpus
from ml_training.evaluation.cross_validation import Plan, cross_validate
from ml_training.evaluation.folds import KEPT, THROWN
from ml_training.pipelines import get_pipeline
from ml_training.results import ProtocolResult

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def small(recordings: Path, work: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        pipeline="mfcc", dataset="folder", data_dir=str(recordings), log_dir=str(work), device="cpu", epochs=1,
        **{"negative_share": 0.0, **changes},
    )  # fmt: skip


def run(recordings: Path, work: Path, plan: Plan, **changes: Any) -> tuple[ProtocolResult, list[str]]:
    config, said = small(recordings, work, **changes), list[str]()
    corpus = load_corpus(config, report=said.append)
    return cross_validate(corpus, [get_pipeline("mfcc")], config, work, plan, said.append), said


def told(work: Path) -> dict[str, Any]:
    """What all folds found but for what a clock said."""
    found = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*/fold.json")}
    return {name: {k: v for k, v in fold.items() if k != "seconds"} for name, fold in found.items()}


# --- which clips ---------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(folds=st.integers(2, 20), seed=st.integers(0, 50))
def test_folds_share_no_clip_cover_all_and_have_their_part_of_each_speaker_and_digit(
    tiny_corpus: Corpus, folds: int, seed: int
) -> None:
    tested: list[int] = []
    for number in range(1, folds + 1):
        config = TrainConfig(split="fold", fold=f"{number}/{folds}", seed=seed)
        split = split_corpus(tiny_corpus, config)
        assert sorted([*split.train, *split.validation, *split.test]) == list(range(len(tiny_corpus)))
        counts = Counter((tiny_corpus.speakers[i], int(tiny_corpus.labels[i])) for i in split.test)
        for key in {(s, int(d)) for s, d in zip(tiny_corpus.speakers, tiny_corpus.labels, strict=True)}:
            assert 5 // folds <= counts[key] <= -(-5 // folds)
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(tiny_corpus)))


def test_another_seed_deals_the_clips_anew(tiny_corpus: Corpus) -> None:
    tests = [split_corpus(tiny_corpus, TrainConfig(split="fold", fold="1/5", seed=seed)).test for seed in (0, 1)]
    assert not np.array_equal(*tests)


@pytest.mark.parametrize("typed", [None, "", "3", "0/10", "11/10", "1/1", "1/5000", "a/b", "-1/4", "1/10 "])
def test_what_names_no_fold(typed: str | None) -> None:
    assert fold_numbers(typed) is None
    with pytest.raises(ConfigError, match="split 'fold' needs fold as 3/10"):
        TrainConfig(split="fold", fold=typed)


def test_a_fold_is_for_its_split_alone() -> None:
    assert fold_numbers("3/10") == (3, 10)
    with pytest.raises(ConfigError, match="fold is only for split 'fold'"):
        TrainConfig(fold="1/2")


# --- processes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ProtocolResult]:
    """Four folds in this process."""
    work = tmp_path_factory.mktemp("alone")
    return work, run(tiny_folder, work, Plan(4, seeds=(3,), jobs=1, models=KEPT))[0]


def test_every_clip_is_tested_once(alone: tuple[Path, ProtocolResult]) -> None:
    work, result = alone
    assert result.protocol == "cv"
    (score,) = result.scores
    assert score.all.clips == result.clips == 200
    assert sum(count.clips for count in score.by_speaker.values()) == 200
    assert result.details is not None
    assert np.sum(result.details["confusion"]["mfcc"]) == 200
    assert [fold["clips"] for fold in result.details["folds"]] == [50] * 4
    files = {m["file"] for fold in told(work).values() for m in fold["test"]["mistakes"]}
    assert len(files) == sum(fold["test"]["errors"] for fold in told(work).values())


def test_kept_models_answer(alone: tuple[Path, ProtocolResult], tiny_corpus: Corpus) -> None:
    folders = sorted(path.parent for path in alone[0].glob("*/fold.json"))
    assert len(folders) == 4
    probabilities, _ = load_classifier(folders[0], "mfcc").predict_proba(tiny_corpus.waveforms[:3])
    assert probabilities.shape == (3, 10)
    assert (folders[0] / "best_model.pt").is_file()


def test_several_processes_find_the_same_and_throw_models_away(
    alone: tuple[Path, ProtocolResult], tiny_folder: Path, tmp_path: Path
) -> None:
    result, said = run(tiny_folder, tmp_path, Plan(4, seeds=(3,), jobs=2, models=THROWN))
    assert said[-5].endswith("0 already there, 2 processes")
    assert told(tmp_path) == told(alone[0])
    assert result.scores == alone[1].scores
    assert not list(tmp_path.rglob("*.pt"))
    again, said = run(tiny_folder, tmp_path, Plan(4, seeds=(3,), jobs=2, models=THROWN))
    assert "4 already there" in said[-1]
    assert again.scores == result.scores


def test_models_that_were_thrown_away_are_made_when_they_are_wanted(tiny_folder: Path, tmp_path: Path) -> None:
    run(tiny_folder, tmp_path, Plan(2, seeds=(3,), jobs=1, models=THROWN))
    again, said = run(tiny_folder, tmp_path, Plan(2, seeds=(3,), jobs=1, models=KEPT))
    assert "2 already there" in said[-1]
    kept, said = run(tiny_folder, tmp_path, Plan(2, seeds=(3,), jobs=1, models=KEPT, models_wanted=True))
    assert sum("its model was thrown away" in line for line in said) == 2
    assert kept.scores == again.scores
    assert len(list(tmp_path.rglob("model.onnx"))) == 2
    run(tiny_folder, tmp_path, Plan(2, seeds=(3,), jobs=1, models=KEPT, models_wanted=True))


@posix
def test_a_process_that_dies_is_replaced_and_its_fold_trained(
    alone: tuple[Path, ProtocolResult], tiny_folder: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one() -> None:  # as soon as one of the processes has begun a fold
        while not list(tmp_path.glob("*/checkpoint_*")):
            time.sleep(0.01)
        (victim, *_) = multiprocessing.active_children()
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        killed.append(victim.pid)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    result, _ = run(tiny_folder, tmp_path, Plan(4, seeds=(3,), jobs=2))
    thread.join()
    assert len(killed) == 1
    assert told(tmp_path) == told(alone[0])
    assert result.scores == alone[1].scores


@posix
def test_a_run_that_was_killed_goes_on_with_the_same_bytes(
    alone: tuple[Path, ProtocolResult], tiny_folder: Path, tmp_path: Path
) -> None:
    words = ["--cv", "4", "--seeds", "3", "--jobs", "2", "--pipeline", "mfcc", "--dataset", "folder", "--epochs", "1"]
    words += ["--data_dir", str(tiny_folder), "--negative_share", "0", "--device", "cpu", "--log_dir", str(tmp_path)]
    command = [sys.executable, str(ROOT / "ml_training" / "train.py"), *words]
    for _ in range(20):  # until something was there to be lost
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not list(tmp_path.glob("cv/*/checkpoint_*")):
            time.sleep(0.01)
        process.kill()
        process.wait()
        if list(tmp_path.glob("cv/*/checkpoint_*")):
            break
    assert subprocess.run(command, capture_output=True).returncode == 0
    work, _ = alone
    assert told(tmp_path / "cv") == told(work)


def test_a_plan_that_cannot_be(tiny_folder: Path, tmp_path: Path) -> None:
    for plan, told in ((Plan(201), "expected 2 to 200 folds of 200 clips"), (Plan(2, seeds=()), "one at least")):
        with pytest.raises(ConfigError, match=told):
            run(tiny_folder, tmp_path, plan)


@pytest.mark.skipif(os.name == "nt", reason="names that Windows has not")
def test_names_of_speakers_that_no_folder_may_have(tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for speaker in ("n" * 240, "two\nlines", os.fsdecode(b"\xff")):
        for digit in range(10):
            with (recordings / f"{digit}_{speaker}_0.wav").open("wb") as file:
                soundfile.write(file, np.sin(np.arange(800) * (0.1 + digit / 10)), 8000, format="WAV")
    result, _ = run(recordings, tmp_path / "work", Plan(jobs=1, seeds=(0,)))
    assert len(result.scores[0].by_speaker) == 3
    names = [os.fsencode(path.name) for path in (tmp_path / "work").iterdir()]
    assert all(len(name) < 200 and b"\n" not in name for name in names)
    assert len([name.decode() for name in names]) == 3
    assert run(recordings, tmp_path / "work", Plan(jobs=1, seeds=(0,)))[1][-1].count("3 already there") == 1


# --- the door ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cv", "1"], "expected a number of folds from 2 to 1000, or 'speaker', got '1'"),
        (["--cv", "many"], "got 'many'"),
        (["--jobs", "2"], "--jobs belong to --cv"),
        (["--cv", "2", "--jobs", "0"], "jobs: expected a number of processes from 1 on"),
        (["--cv", "2", "--mlflow"], "leave --mlflow out"),
        (["--cv", "2", "--split", "random"], "the protocol decides these"),
        (["--cv", "2", "--compare", "nothing.json"], "nothing.json is no result"),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: list[str], expected: str, tiny_folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recordings = ["--dataset", "folder", "--data_dir", str(tiny_folder), "--log_dir", str(tmp_path)]
    try:
        code = train.main([*recordings, *words])
    except SystemExit as left:
        code = int(str(left.code))
    assert code in (1, 2)
    assert expected in capsys.readouterr().err


def test_two_settings_are_compared_fold_by_fold_in_the_report(
    alone: tuple[Path, ProtocolResult], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(alone[1].to_dict()), encoding="utf-8")
    words = ["--cv", "4", "--seeds", "3", "--jobs", "1", "--pipeline", "mfcc", "--dataset", "folder", "--epochs", "1"]
    words += ["--data_dir", str(tiny_folder), "--negative_share", "0", "--device", "cpu", "--log_dir", str(tmp_path)]
    assert train.main([*words, "--learning_rate", "0.0001", "--compare", str(earlier)]) == 0
    printed = capsys.readouterr().out
    assert "Compared with" in printed
    page = (tmp_path / "cross_validation" / "evaluation_report.html").read_text(encoding="utf-8")
    assert "McNemar" in page
    assert page.count("data:image/png") == 2
    (result,) = (tmp_path / "cross_validation").glob("*.json")
    (pair,) = json.loads(result.read_text(encoding="utf-8"))["details"]["compared"]["pairs"]
    assert pair["clips"] == 200
    assert pair["folds"] == 4
    assert pair["difference"] < 0
    assert 0 < pair["mcnemar"] <= 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cv", "4", "--seeds", "4"], "4 here, 4 in the earlier result, 0 in common"),
        (["--cv", "5", "--seeds", "3"], "5 here, 4 in the earlier result, 0 in common"),
        (["--cv", "speaker", "--seeds", "3"], "is of protocol 'cv', expected loso"),
    ],
)
def test_what_cannot_be_compared_is_told_before_anything_is_trained(
    alone: tuple[Path, ProtocolResult], tiny_folder: Path, tmp_path: Path, words: list[str], expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(alone[1].to_dict()), encoding="utf-8")
    words = [*words, "--jobs", "1", "--pipeline", "mfcc", "--dataset", "folder", "--data_dir", str(tiny_folder)]
    assert train.main([*words, "--epochs", "1", "--log_dir", str(tmp_path), "--compare", str(earlier)]) == 1
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*/fold.json"))
