"""The benchmark: everybody measured on the same clips, failures named, the page and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from digit_detector.labels import PIPELINES
from ml_training.evaluation import benchmark as measuring
from ml_training.evaluation.benchmark import BenchmarkError, BenchmarkResult, Heard, Plan, measure, yardstick
from ml_training.evaluation.benchmark_page import page, table, write_benchmark
from ml_training.evaluation.contenders import Contender, Ours, Place, contenders

PLAN = Plan(rounds=2, singles=3, seconds=0.2, starts=1, threads=(1, 2))


@pytest.fixture(scope="module")
def protocols() -> dict[str, Heard]:
    rng = np.random.default_rng(0)
    narrow, wide = (rng.standard_normal((6, rate), dtype=np.float32) * 0.1 for rate in (8000, 16000))
    return {
        name: Heard({8000: narrow, 16000: wide}, list(range(6)), f"{name} clips") for name in ("official", "others")
    }


@pytest.fixture(scope="module")
def result(protocols: dict[str, Heard]) -> BenchmarkResult:
    lines: list[str] = []
    found = measure(protocols, ["mfcc", "raw_cnn", "mfcc_int8"], "pretrained", None, PLAN, lines.append)
    assert any(line.startswith("round 2 of 2: the yardstick took") for line in lines)
    return found


def test_everybody_is_measured_by_everything(result: BenchmarkResult, protocols: dict[str, Heard]) -> None:
    assert [m.name for m in result.contenders] == ["mfcc", "raw_cnn", "mfcc_int8"]
    assert result.clips == {"official": "official clips", "others": "others clips"}
    for m in result.contenders:
        ours = contenders()[m.name].open(Place("pretrained"), 1)
        heard = protocols["official"].clips[8000]
        right = sum(ours.one(clip) == label for label, clip in enumerate(heard))
        assert m.accuracy["official"].right == m.accuracy["others"].right == right
        assert m.accuracy["official"].clips == 6
        for times in (m.one_ms, m.file_ms):
            assert 0 < times["p50"] <= times["p95"] <= times["p99"] < 5000
        assert set(m.many) == {"1", "2"}
        assert {"1", "10"} <= set(m.many["1"]), "more and more clips"
        assert "100000" not in m.many["1"], "not what would take longer than said"
        assert m.start_ms > result.imports_ms / 2
        assert 20 < m.memory_mb < 2000
        assert 0.15 < m.model_mb < 1
    assert len(result.yardsticks_ms) == 2
    assert result.scaled(result.yardstick_ms) == pytest.approx(4.0)
    assert result.machine["numpy"] == np.__version__


def test_its_json_is_the_whole_of_it(result: BenchmarkResult, tmp_path: Path) -> None:
    written = write_benchmark(result, tmp_path / "new" / "folder")
    again = BenchmarkResult.from_dict(json.loads((written.parent / "benchmark.json").read_text()))
    assert again == result
    text = written.read_text(encoding="utf-8")
    for name in ("benchmark_accuracy.png", "benchmark_growth.png", "benchmark.json"):
        assert f"({name})" in text
        assert (written.parent / name).stat().st_size > 1000
    assert text == page(again)


def test_the_table_has_a_row_for_each(result: BenchmarkResult) -> None:
    heads, _, *rows = table(result)
    assert len(rows) == 3
    assert all(row.count("|") == heads.count("|") for row in rows)
    assert heads.startswith("| | official, % | others, % | ms a clip, p50 |")


def test_who_cannot_take_part_is_skipped_by_name(
    protocols: dict[str, Heard], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lacking = Contender("svm", "Lacking", lambda place, threads: Ours(place, "mfcc", threads), ("no_such_package",))
    everybody = {**contenders(), "svm": lacking}
    monkeypatch.setattr(measuring, "contenders", lambda: everybody)
    plan = Plan(rounds=1, singles=1, seconds=0.1, starts=1, threads=(1,))
    found = measure({"official": protocols["official"]}, ["svm", "mfcc"], "pretrained", None, plan)
    assert [m.name for m in found.contenders] == ["mfcc"]
    assert found.skipped == {"svm": "needs no_such_package: pip install the [bench] extra"}
    assert "- skipped: svm, needs no_such_package" in page(found)
    with pytest.raises(BenchmarkError, match=r"nobody is left to measure: mfcc: mfcc failed to open: ModelError: no"):
        measure({"official": protocols["official"]}, ["mfcc"], str(tmp_path / "nowhere"), None, plan)


def test_a_process_that_dies_is_an_error_that_names_it() -> None:
    with measuring._Process(contenders()["mfcc"], "pretrained", None) as process:
        process.child.kill()
        with pytest.raises(BenchmarkError, match="the process of mfcc ended"):
            process.ask("open", threads=1)


def test_the_yardstick_is_a_time() -> None:
    assert 0.5 < yardstick() < 1000


def test_every_pipeline_has_a_peer() -> None:
    assert {c.against for c in contenders().values()} == {None, *PIPELINES}
