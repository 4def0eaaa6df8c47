"""benchmarks/ablation.py goes on where it was, and its page shows the results."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from ml_training.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def ablation() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "ablation.py"))


def test_every_row_is_a_setting_that_trains(ablation: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "row.json"
    for row, changes in ablation["ROWS"].items():
        path.write_text(json.dumps(changes))
        config = TrainConfig(**load_config(path))
        assert (config == TrainConfig()) == (row == ablation["WHOLE"])


def finish(ablation: dict[str, Any], work: Path, row: str, seed: int, figures: dict[str, float]) -> None:
    for test_set, accuracy in figures.items():
        folder = work / f"{row.replace(' ', '_')}_seed{seed}_{test_set}"
        folder.mkdir(parents=True)
        settings = {**ablation["ROWS"][row], "pipeline": "mel_cnn", "dataset": "fsdd", "seed": seed}
        settings |= {"epochs": 12, "patience": 0}
        if test_set != "iitg_digits":
            settings |= {"split": "speaker", "held_out_speaker": test_set}
        (folder / "result.json").write_text(json.dumps({"settings": settings, "accuracy": accuracy, "commit": "abc"}))


def test_what_is_finished_is_not_trained_again_and_other_settings_are_refused(
    ablation: dict[str, Any], tmp_path: Path
) -> None:
    finish(ablation, tmp_path, "without noise", 0, {"george": 81.0, "nicolas": 79.0, "iitg_digits": 85.5})
    assert ablation["run_row"]("without noise", 0, "george", 12, tmp_path) == 81.0
    with pytest.raises(SystemExit, match="other settings"):
        ablation["run_row"]("without noise", 0, "george", 13, tmp_path)


def test_the_page_compares_finished_rows_with_everything(ablation: dict[str, Any], tmp_path: Path) -> None:
    for seed, gain in ((0, -1.0), (1, 1.0)):
        whole = {"george": 90.0 + gain, "nicolas": 80.0 + gain, "iitg_digits": 88.0}
        finish(ablation, tmp_path, "everything", seed, whole)
        finish(ablation, tmp_path, "without noise", seed, {**whole, "iitg_digits": 84.5})
    finish(ablation, tmp_path, "without speed", 0, {"george": 50.0, "nicolas": 50.0})
    finish(ablation, tmp_path, "mixup", 0, whole)
    page = ablation["page"](ablation["finished"](tmp_path), 12, ["abc"])
    assert "| everything | 90.0 ± 1.4 | 80.0 ± 1.4 | 85.0 ± 1.4 | 88.0 ± 0.0 |" in page
    assert "| without noise | 90.0 ± 1.4 (+0.0) | 80.0 ± 1.4 (+0.0) | 85.0 ± 1.4 (+0.0) | 84.5 ± 0.0 (-3.5) |" in page
    assert "without speed" not in page, "not finished"
    assert "Added" not in page, "of one seed, where the page says two"


def test_of_a_training_that_was_resumed_the_last_summary_counts(
    ablation: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(folder: Path, settings: dict[str, Any]) -> None:
        (folder / "train_logs").mkdir(parents=True)
        for time, accuracy in (("20300101_000000", 0.5), ("20300101_000001", 0.75)):
            text = json.dumps({"test": {"accuracy": accuracy}})
            (folder / "train_logs" / f"metrics_summary_mel_cnn_{time}.json").write_text(text)

    monkeypatch.setitem(ablation["run_row"].__globals__, "train", train)
    monkeypatch.setitem(ablation["run_row"].__globals__, "head", lambda: "abc")
    assert ablation["run_row"]("everything", 0, "george", 12, tmp_path) == 75.0
