"""Searches on the tiny corpus: seeded, resumed after signals and crashes, summarised in a file and a report."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError, TrainingError
from ml_training import tune as door
from ml_training.config import TrainConfig, load_config
from ml_training.tuning.search import TuneOutcome, TuneRequest, tune
from ml_training.tuning.study import STUDY, open_journal

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[2]
SPACE = {"learning_rate": {"from": 0.0001, "to": 0.1, "scale": "log"}, "batch_size": [16, 32], "width": [0.5, 1.0]}
SETTINGS = ["--pipeline", "mfcc", "--dataset", "folder", "--epochs", "3", "--negative_share", "0", "--device", "cpu"]


def config(recordings: Path, **changes: Any) -> TrainConfig:
    return TrainConfig(
        pipeline="mfcc", dataset="folder", data_dir=str(recordings), device="cpu",
        **{"epochs": 3, "negative_share": 0.0, **changes},
    )  # fmt: skip


def search(recordings: Path, output: Path, **changes: Any) -> TuneOutcome:
    settings = changes.pop("settings", {})
    request = TuneRequest(
        **{"config": config(recordings, **settings), "space": SPACE, "trials": 8, "output": str(output), **changes}
    )
    return tune(request)


def read_trials(output: Path) -> list[tuple[Any, ...]]:
    """What every trial tried and found."""
    study = optuna.load_study(study_name=STUDY, storage=open_journal(output))
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs) for t in study.trials]


@pytest.fixture(scope="module")
def searched(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TuneOutcome]:
    output = tmp_path_factory.mktemp("search") / "tuning"
    return output, search(tiny_folder, output)


def test_the_best_is_a_configuration_that_training_takes(searched: tuple[Path, TuneOutcome]) -> None:
    output, outcome = searched
    assert outcome.trials == 8
    assert outcome.completed + outcome.pruned == 8
    assert outcome.best == output / "best.json"
    best = TrainConfig(**load_config(outcome.best))
    assert best.learning_rate == outcome.settings["learning_rate"]
    assert best.epochs == 3
    assert best.pipeline == "mfcc"
    values = [trial[3][0] for trial in read_trials(output) if trial[3]]
    assert outcome.values == (max(values),)
    assert outcome.values[0] > 0.2
    assert not list(output.rglob("*.pt"))


def test_hopeless_trials_are_given_up_early(searched: tuple[Path, TuneOutcome]) -> None:
    output, outcome = searched
    pruned = [trial for trial in read_trials(output) if trial[1] == "PRUNED"]
    assert len(pruned) == outcome.pruned
    assert all(1 <= len(trial[4]) == trial[5]["epochs"] <= 3 for trial in pruned)
    assert outcome.epochs == sum(trial[5]["epochs"] for trial in read_trials(output))
    assert outcome.most_epochs == 24


def test_the_report_shows_course_influence_and_trials(searched: tuple[Path, TuneOutcome]) -> None:
    page = searched[1].report.read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4
    for word in ("History", "Courses", "Importance", "Slices", "Trials, the best first", "learning_rate"):
        assert word in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_same_search_again_tries_and_finds_the_same(
    searched: tuple[Path, TuneOutcome], tiny_folder: Path, tmp_path: Path
) -> None:
    search(tiny_folder, tmp_path, trials=3)
    assert read_trials(tmp_path) == read_trials(searched[0])[:3]
    search(tiny_folder, tmp_path, trials=5)  # and goes on as if it had never stopped
    assert read_trials(tmp_path) == read_trials(searched[0])[:5]
    assert search(tiny_folder, tmp_path, trials=5).trials == 5


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_a_search_in_processes_that_is_stopped_and_killed_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    space, output = tmp_path / "space.json", tmp_path / "out"
    space.write_text(json.dumps(SPACE), encoding="utf-8")
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--trials", "6", "--pruner", "halving"]
    command = [sys.executable, str(ROOT / "ml_training" / "tune.py"), *words, "--workers", "2", "--output", str(output)]
    for end, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        seen = set(output.rglob("checkpoint_*.pt"))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not set(output.rglob("checkpoint_*.pt")) - seen:
            time.sleep(0.01)
        process.send_signal(end)
        assert process.stderr is not None
        with process.stderr:
            errors = process.stderr.read()
        assert process.wait() == expected, errors
        assert "Traceback" not in errors
        assert ("the same command goes on" in errors) == (end == signal.SIGTERM)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = read_trials(output)
    assert [trial[0] for trial in trials] == list(range(6))
    assert all(sorted(trial[4]) == list(range(1, trial[5]["epochs"] + 1)) for trial in trials), "each epoch once"
    assert all(trial[1] == "PRUNED" or (trial[1] == "COMPLETE" and len(trial[4]) == 3) for trial in trials)
    best = max(trial[3][0] for trial in trials if trial[3])
    assert f"best: {100 * best:.2f} %" in done.stdout
    assert TrainConfig(**load_config(output / "best.json")).epochs == 3


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_a_worker_that_dies_is_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    def kill_one() -> None:
        while not list(tmp_path.rglob("checkpoint_*.pt")):
            time.sleep(0.01)
        victim = multiprocessing.active_children()[0].pid
        assert victim is not None
        os.kill(victim, signal.SIGKILL)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    outcome = search(tiny_folder, tmp_path, trials=3, workers=2, sampler="random", pruner="none")
    thread.join()
    assert (outcome.trials, outcome.completed) == (3, 3)
    assert [trial[0] for trial in read_trials(tmp_path)] == [0, 1, 2]


def test_half_a_line_at_the_end_of_the_journal_is_taken_off(
    searched: tuple[Path, TuneOutcome], tiny_folder: Path, tmp_path: Path
) -> None:
    search(tiny_folder, tmp_path, trials=2)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    search(tiny_folder, tmp_path, trials=4)
    assert read_trials(tmp_path) == read_trials(searched[0])[:4]


def test_a_database_by_its_address(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path}/study.db"
    outcome = search(tiny_folder, tmp_path, trials=2, storage=address, settings={"epochs": 1})
    assert outcome.completed == 2
    assert (tmp_path / "study.db").is_file()
    assert not (tmp_path / "journal.jsonl").exists()
    assert search(tiny_folder, tmp_path, trials=3, storage=address, settings={"epochs": 1}).trials == 3


def test_a_grid_ends_with_its_last_point(tiny_folder: Path, tmp_path: Path) -> None:
    space = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01]}
    outcome = search(
        tiny_folder, tmp_path, space=space, sampler="grid", pruner="none", trials=50, settings={"epochs": 1}
    )
    assert (outcome.trials, outcome.completed) == (4, 4)
    points = {(json.loads(t[2]["batch_size"]), json.loads(t[2]["learning_rate"])) for t in read_trials(tmp_path)}
    assert points == {(16, 0.001), (16, 0.01), (32, 0.001), (32, 0.01)}


def test_folds_may_judge(tiny_folder: Path, tmp_path: Path) -> None:
    space = {"learning_rate": [0.0001, 0.02]}
    outcome = search(tiny_folder, tmp_path, space=space, sampler="grid", objectives=("cv",), folds=2)
    assert outcome.settings == {"learning_rate": 0.02}
    assert [len(trial[4]) for trial in read_trials(tmp_path)] == [2, 2]
    assert outcome.epochs == outcome.most_epochs == 2 * 2 * 3


def test_two_objectives_have_a_front(tiny_folder: Path, tmp_path: Path) -> None:
    space = {"width": [0.5, 2.0]}
    outcome = search(tiny_folder, tmp_path, space=space, sampler="grid", objectives=("validation", "size"))
    sizes = {trial[2]["width"]: trial[3][1] for trial in read_trials(tmp_path)}
    assert sizes["0.5"] < sizes["2.0"]
    assert outcome.front
    assert all(TrainConfig(**load_config(path)).width in (0.5, 2.0) for path in outcome.front)
    assert "Pareto front" in outcome.report.read_text(encoding="utf-8")
    old = tmp_path / "pareto_99.json"  # of a trial that was on the front until a later one was better
    old.write_text("{}", encoding="utf-8")
    again = search(tiny_folder, tmp_path, space=space, sampler="grid", objectives=("validation", "size"))
    assert set(tmp_path.glob("pareto_*.json")) == set(again.front)


def test_a_trial_that_cannot_be_trained_is_told_and_the_others_go_on(tiny_folder: Path, tmp_path: Path) -> None:
    space = {"learning_rate": [10.0, 0.01], "clip_norm": [0]}
    settings = {"optimizer": "adam", "epochs": 3, "scheduler": "step"}
    outcome = search(tiny_folder, tmp_path, space=space, sampler="grid", pruner="none", settings=settings)
    assert outcome.completed >= 1
    assert outcome.completed + outcome.failed == 2


def test_another_search_in_the_same_folder_is_refused(searched: tuple[Path, TuneOutcome], tiny_folder: Path) -> None:
    before = read_trials(searched[0])
    for change, expected in (
        ({"space": {"batch_size": [16]}}, "space was"),
        ({"sampler": "random"}, "sampler was"),
        ({"settings": {"epochs": 4}}, "settings was"),
    ):
        with pytest.raises(ConfigError, match=expected):
            search(tiny_folder, searched[0], **change)
    assert read_trials(searched[0]) == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objectives": ("speed",)}, "objective: expected some of"),
        ({"objectives": ("latency",)}, "objective: expected one of validation, cv, loso"),
        ({"objectives": ("cv", "latency")}, "is measured of the one model"),
        ({"objectives": ()}, "got none"),
        ({"sampler": "guess"}, "sampler: expected one of tpe, random, grid"),
        ({"pruner": "axe"}, "pruner: expected one of median, halving, none"),
        ({"trials": 0}, "trials: expected a number from 1"),
        ({"workers": 0}, "workers: expected"),
        ({"folds": 1}, "folds: expected"),
        ({"space": {"epochs": "all"}}, "epochs: expected a list"),
        ({"settings": {"resume": "latest"}}, "a search decides these"),
        ({"settings": {"split": "random"}, "objectives": ("cv",)}, "objective 'cv' decides it"),
    ],
)
def test_what_cannot_be_asked_for(changes: dict[str, Any], expected: str, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        search(tiny_folder, tmp_path, **changes)
    assert expected in str(caught.value)


def test_a_database_that_is_not_there_is_one_line(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    with pytest.raises(TrainingError, match="cannot open the study"):
        search(tiny_folder, tmp_path, storage=f"sqlite:///{tmp_path}/no/such/folder/study.db")


@pytest.mark.parametrize("line", ["garbage{", '{"op_code": 99}', "[]"])
def test_a_journal_that_is_damaged_is_named(line: str, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text(line + "\n" * 2, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"journal\.jsonl is damaged .*another --output"):
        search(tiny_folder, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--ray_address", "here:1"], "belongs to --engine ray"), (["--mlflow"], "leave --mlflow out")],
)
def test_flags_that_would_do_nothing(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        door.main([*SETTINGS, *words])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_models_that_ship_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert door.main([*SETTINGS, "--models_dir", "pretrained"]) == 2
    assert "models_dir: pretrained are the models that ship" in capsys.readouterr().err


def test_the_door(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    space = tmp_path / "space.json"
    space.write_text('{"batch_size": [16, 32]}', encoding="utf-8")
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--sampler", "grid", "--epochs", "1"]
    assert door.main([*words, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "train with it: digits train --config" in printed.out
    assert "trial 1:" in printed.err
    space.write_text('{"batch_size": [16, 1], "epoch": [3]}', encoding="utf-8")
    assert door.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "2 faults" in error
    assert len(error.splitlines()) == 1
