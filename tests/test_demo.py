from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from digit_detector.errors import DataError
from ml_training.training import demo_steps
from ml_training.training.demo_steps import run_demo

RunDoor = Callable[..., "CompletedProcess[str]"]


def test_the_demo_runs_the_whole_chain_on_synthetic_speech_from_another_folder(
    run_door: RunDoor, tmp_path: Path
) -> None:
    pytest.importorskip("espeakng_loader")
    done = run_door("demo.py", "--synthetic")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("7 of 7 passed in ")
    assert "FAILED" not in done.stdout
    assert "synthetic speech" in done.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo_output"]
    assert (tmp_path / "demo_output" / "train_logs" / "plots" / "training_report.html").is_file()


@pytest.mark.slow
@pytest.mark.real_data
def test_the_demo_uses_real_recordings_if_there_are_some(run_door: RunDoor, fsdd_dir: Path) -> None:
    done = run_door("demo.py", "--output", "shown", DIGIT_DATA_DIR=str(fsdd_dir.resolve()))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "real recordings, part of FSDD" in done.stdout


def test_every_step_is_tried_and_a_failure_decides_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object, report: object) -> None:
        raise DataError("the recordings are gone")

    monkeypatch.setattr(demo_steps, "load_corpus", fail)
    assert run_demo(tmp_path / "out", synthetic=False) == 1
    table = capsys.readouterr().out.split("\n\n")[-2].splitlines()
    assert len(table) == 7
    assert all(line.startswith("FAILED  ") for line in table)
    assert table[0].endswith("the recordings are gone")
