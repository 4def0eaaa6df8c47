"""benchmarks/floors.py reads finished runs."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def floors() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "floors.py"))


def test_a_finished_run_counts_for_the_same_flags_alone(floors: dict[str, Any], tmp_path: Path) -> None:
    run = {"seconds": 1.0, "peak_mb": 2.0, "arguments": ["--epochs", "1"]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert floors["train"](0, tmp_path, ["--epochs", "1"]) == run
    with pytest.raises(SystemExit, match="name another --work"):
        floors["train"](0, tmp_path, [])


def test_a_run_leaves_time_and_memory_and_a_failed_one_its_output(floors: dict[str, Any], tmp_path: Path) -> None:
    measured = floors["train"](0, tmp_path / "a", ["--help"])
    assert measured["peak_mb"] > 5
    assert floors["train"](0, tmp_path / "a", ["--help"]) == measured
    with pytest.raises(SystemExit, match="ended with 2"):
        floors["train"](0, tmp_path / "b", ["--nosuch"])
    assert "--nosuch" in (tmp_path / "b" / "output.txt").read_text()


def test_the_newest_summary_counts(floors: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train_logs").mkdir()
    for time, size in (("20300101_000000", 1), ("20300101_000001", 2)):
        text = json.dumps({"model_bytes": size})
        (tmp_path / "train_logs" / f"metrics_summary_mfcc_{time}.json").write_text(text)
    assert floors["load_summary"](tmp_path, "mfcc") == {"model_bytes": 2}


def test_the_table_names_seeds_and_commits(floors: dict[str, Any]) -> None:
    table = floors["markdown"]({"minutes": 1, "peak MB": 2}, [0], ["abc", "def"])
    assert "seeds 0, commit abc, def, 20" in table
