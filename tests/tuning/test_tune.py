"""Searches on the tiny corpus: seeded, resumed after signals and crashes, summarised in a file and a report."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from digit_detector.errors import ConfigError, TrainingError
from ml_training import tune as command
from ml_training.config import TrainConfig, load_config
from ml_training.tuning.search import SearchSpec, tune
from ml_training.tuning.study import STUDY, open_journal

optuna = pytest.importorskip("optuna")
ROOT = Path(__file__).resolve().parents[2]
SPACE = {"learning_rate": {"from": 0.0001, "to": 0.1, "scale": "log"}, "batch_size": [16, 32], "width": [0.5, 1.0]}
SETTINGS = ["--pipeline", "mfcc", "--dataset", "folder", "--epochs", "3", "--negative_ratio", "0", "--device", "cpu"]
needs_signals = pytest.mark.skipif(os.name == "nt", reason="signals of another kind")


def search(recordings, output, **changes):
    shared = {"pipeline": "mfcc", "dataset": "folder", "data_dir": str(recordings), "device": "cpu", "epochs": 3}
    config = {**shared, "negative_ratio": 0.0, **changes.pop("settings", {})}
    return tune(SearchSpec(**{"config": config, "space": SPACE, "trials": 8, "output": str(output), **changes}))


def read_trials(output):
    """Parameters and results of every trial."""
    study = optuna.load_study(study_name=STUDY, storage=open_journal(output))
    return [(t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs) for t in study.trials]


@pytest.fixture(scope="module")
def searched(tiny_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("search") / "tuning"
    return output, search(tiny_folder, output)


def test_the_best_is_a_configuration_that_training_takes(searched):
    output, result = searched
    assert len(result.trials) == 8
    assert result.count("COMPLETE") + result.count("PRUNED") == 8
    best = TrainConfig(**load_config(output / "best.json"))
    assert result.best is not None
    assert best.learning_rate == result.best.params["learning_rate"]
    assert (best.epochs, best.pipeline) == (3, "mfcc")
    assert result.best.values == [max(trial[3][0] for trial in read_trials(output) if trial[3])]
    assert result.best.values[0] > 0.2
    assert len(list(output.rglob("trial.json"))) == 8
    assert not list(output.rglob("*.pt"))


def test_pruned_trials_save_epochs(searched):
    output, result = searched
    trials = read_trials(output)
    assert all(1 <= len(trial[4]) == trial[5]["epochs"] <= 3 for trial in trials if trial[1] == "PRUNED")
    assert result.epochs.startswith(f"{sum(trial[5]['epochs'] for trial in trials)} of 24, ")


def test_the_report_shows_plots_and_trials(searched):
    page = (searched[0] / "tuning_report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 4
    for word in ("History", "Intermediate values", "Importance", "Slices", "Trials, the best first", "learning_rate"):
        assert word in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_same_search_again_tries_and_finds_the_same(searched, tiny_folder, tmp_path):
    search(tiny_folder, tmp_path, trials=3)
    assert read_trials(tmp_path) == read_trials(searched[0])[:3]
    search(tiny_folder, tmp_path, trials=5)  # and goes on as if it had never stopped
    assert read_trials(tmp_path) == read_trials(searched[0])[:5]
    assert len(search(tiny_folder, tmp_path, trials=5).trials) == 5


@needs_signals
def test_a_search_in_processes_that_is_stopped_and_killed_goes_on(tiny_folder, tmp_path):
    space, output = tmp_path / "space.json", tmp_path / "out"
    space.write_text(json.dumps(SPACE), encoding="utf-8")
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--trials", "6", "--pruner", "halving"]
    typed = [sys.executable, str(ROOT / "ml_training" / "tune.py"), *words, "--workers", "2", "--output", str(output)]
    for end, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        seen = set(output.rglob("checkpoint_*.pt"))
        process = subprocess.Popen(typed, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and not set(output.rglob("checkpoint_*.pt")) - seen:
            time.sleep(0.01)
        process.send_signal(end)
        assert process.stderr is not None
        with process.stderr:
            errors = process.stderr.read()
        assert process.wait() == expected, errors
        assert "Traceback" not in errors
        assert ("the same command goes on" in errors) == (end == signal.SIGTERM)
    done = subprocess.run(typed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trials = read_trials(output)
    assert [trial[0] for trial in trials] == list(range(6))
    assert all(sorted(trial[4]) == list(range(1, trial[5]["epochs"] + 1)) for trial in trials), "each epoch once"
    assert all(trial[1] == "PRUNED" or (trial[1] == "COMPLETE" and len(trial[4]) == 3) for trial in trials)
    best = max(trial[3][0] for trial in trials if trial[3])
    assert f"best: {100 * best:.2f} %" in done.stdout
    assert TrainConfig(**load_config(output / "best.json")).epochs == 3


def test_half_a_line_at_the_end_of_the_journal_is_taken_off(searched, tiny_folder, tmp_path):
    search(tiny_folder, tmp_path, trials=2)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')
    search(tiny_folder, tmp_path, trials=4)
    assert read_trials(tmp_path) == read_trials(searched[0])[:4]


def test_a_database_by_its_address(tiny_folder, tmp_path):
    pytest.importorskip("sqlalchemy")
    address = f"sqlite:///{tmp_path}/study.db"
    result = search(tiny_folder, tmp_path, trials=2, storage=address, settings={"epochs": 1})
    assert result.count("COMPLETE") == 2
    assert (tmp_path / "study.db").is_file()
    assert not (tmp_path / "journal.jsonl").exists()
    assert len(search(tiny_folder, tmp_path, trials=3, storage=address, settings={"epochs": 1}).trials) == 3
    with pytest.raises(TrainingError, match="cannot open the study"):
        search(tiny_folder, tmp_path, storage=f"sqlite:///{tmp_path}/no/such/folder/study.db")


def test_a_grid_ends_with_its_last_point(tiny_folder, tmp_path):
    space = {"batch_size": [16, 32], "learning_rate": [0.001, 0.01]}
    result = search(tiny_folder, tmp_path, space=space, sampler="grid", pruner="none", settings={"epochs": 1})
    assert (len(result.trials), result.count("COMPLETE")) == (4, 4)
    points = {(json.loads(t[2]["batch_size"]), json.loads(t[2]["learning_rate"])) for t in read_trials(tmp_path)}
    assert points == {(16, 0.001), (16, 0.01), (32, 0.001), (32, 0.01)}


def test_cross_validation_as_objective(tiny_folder, tmp_path):
    space = {"learning_rate": [0.0001, 0.02]}
    result = search(tiny_folder, tmp_path, space=space, sampler="grid", objectives=("cv",), folds=2)
    assert result.best is not None
    assert result.best.params == {"learning_rate": "0.02"}
    assert [len(trial[4]) for trial in read_trials(tmp_path)] == [2, 2]
    assert result.epochs == "12 of 12, 0 % saved"


def test_two_objectives_have_a_front(tiny_folder, tmp_path):
    changes: dict[str, Any] = {"space": {"width": [0.5, 2.0]}, "sampler": "grid", "objectives": ("validation", "size")}
    result = search(tiny_folder, tmp_path, **changes)
    sizes = {trial[2]["width"]: trial[3][1] for trial in read_trials(tmp_path)}
    assert sizes["0.5"] < sizes["2.0"]
    front = {f"pareto_{trial.number}.json" for trial in result.front}
    assert front
    assert all(TrainConfig(**load_config(tmp_path / name)).width in (0.5, 2.0) for name in front)
    assert "Pareto front" in (tmp_path / "tuning_report.html").read_text(encoding="utf-8")
    (tmp_path / "pareto_99.json").write_text("{}", encoding="utf-8")  # of a trial that a later one beat
    search(tiny_folder, tmp_path, **changes)
    assert {path.name for path in tmp_path.glob("pareto_*.json")} == front


def test_a_trial_that_cannot_be_trained_fails_and_the_others_go_on(tiny_folder, tmp_path):
    space = {"learning_rate": [10.0, 0.01], "clip_norm": [0]}
    settings = {"optimizer": "adam", "epochs": 3, "scheduler": "step"}
    result = search(tiny_folder, tmp_path, space=space, sampler="grid", pruner="none", settings=settings)
    assert result.count("COMPLETE") >= 1
    assert result.count("COMPLETE") + result.count("FAIL") == 2


def test_another_search_in_the_same_folder_is_refused(searched, tiny_folder):
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
        ({"objectives": ("cv", "latency")}, "objective: latency is measured"),
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
def test_faults_of_a_search(changes, expected, tiny_folder, tmp_path):
    with pytest.raises(ConfigError) as caught:
        search(tiny_folder, tmp_path, **changes)
    assert expected in str(caught.value)


@pytest.mark.parametrize("line", ["garbage{", '{"op_code": 99}', "[]"])
def test_a_damaged_journal_is_named(line, tiny_folder, tmp_path):
    (tmp_path / "journal.jsonl").write_text(line + "\n" * 2, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"journal\.jsonl .*damaged.*another --output"):
        search(tiny_folder, tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["--ray_address", "here:1"], "belongs to --engine ray"), (["--mlflow"], "leave --mlflow out")],
)
def test_flags_without_effect_are_refused(words, expected, capsys):
    with pytest.raises(SystemExit) as left:
        command.main([*SETTINGS, *words])
    assert left.value.code == 2
    assert expected in capsys.readouterr().err


def test_the_models_that_ship_are_refused(capsys):
    assert command.main([*SETTINGS, "--models_dir", "pretrained"]) == 2
    assert "models_dir: pretrained are the models that ship" in capsys.readouterr().err


def test_the_command(tiny_folder, tmp_path, capsys):
    space = tmp_path / "space.json"
    space.write_text('{"batch_size": [16, 32]}', encoding="utf-8")
    words = [*SETTINGS, "--data_dir", str(tiny_folder), "--space", str(space), "--sampler", "grid", "--epochs", "1"]
    assert command.main([*words, "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "train with it: digits train --config" in printed.out
    assert "trial 1:" in printed.err
    space.write_text('{"batch_size": [16, 1], "epoch": [3]}', encoding="utf-8")
    assert command.main([*words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "2 faults" in error
    assert len(error.splitlines()) == 1
