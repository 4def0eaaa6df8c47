"""benchmarks/peers.py: all recognisers measured on the same clips, failures named, the page and its JSON."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import peers
import pytest
import soundfile
from peers import Clips, Effort, PeersResult, at_both_rates, files_of, measure, page, table, write_result
from recognisers import Child, Sources, open_recogniser, recognisers

from digit_detector.labels import PIPELINES
from ml_training.data.dataset_loader import load_folder
from ml_training.evaluation.protocols import TestClips
from ml_training.evaluation.speed import BenchmarkError

EFFORT = Effort(rounds=2, singles=3, seconds=0.2, starts=1, threads=(1, 2))


@pytest.fixture(scope="module")
def protocols() -> dict[str, Clips]:
    rng = np.random.default_rng(0)
    narrow, wide = (rng.standard_normal((6, rate), dtype=np.float32) * 0.1 for rate in (8000, 16000))
    return {
        name: Clips({8000: narrow, 16000: wide}, list(range(6)), f"{name} clips") for name in ("official", "others")
    }


@pytest.fixture(scope="module")
def result(protocols: dict[str, Clips]) -> PeersResult:
    specs = {**recognisers(), "svm": replace(recognisers()["svm"], needs=("no_such_package",))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "recognisers", lambda: specs)
        return measure(protocols, ["mfcc", "svm", "raw_cnn", "mfcc_int8"], Sources(), EFFORT)


def test_every_recogniser_is_measured_by_everything(result: PeersResult, protocols: dict[str, Clips]) -> None:
    assert [figures.name for figures in result.recognisers] == ["mfcc", "raw_cnn", "mfcc_int8"]
    assert result.clips == {"official": "official clips", "others": "others clips"}
    for figures in result.recognisers:
        model = recognisers()[figures.name].open(Sources(), 1)
        clips = protocols["official"].waveforms[8000]
        right = sum(model.one(clip) == label for label, clip in enumerate(clips))
        assert figures.accuracy["official"].right == figures.accuracy["others"].right == right
        assert figures.accuracy["official"].clips == 6
        for times in (figures.clip_ms, figures.file_ms):
            assert 0 < times["p50"] <= times["p95"] <= times["p99"]
        assert set(figures.clips_per_second) == {"1", "2"}
        assert "1" in figures.clips_per_second["1"]
        assert "100000" not in figures.clips_per_second["1"], "no batch that would take longer than allowed"
        assert figures.start_ms > 0
        assert figures.memory_mb is None or 20 < figures.memory_mb < 2000
        assert figures.model_mb == model.megabytes
    assert len(result.reference_ms) == 2
    assert result.scaled(float(np.median(result.reference_ms))) == pytest.approx(4.0)
    assert result.machine["numpy"] == np.__version__


def test_the_page_has_a_row_for_each_and_the_json_every_figure(result: PeersResult, tmp_path: Path) -> None:
    written = write_result(result, tmp_path / "new" / "folder")
    text = written.read_text(encoding="utf-8")
    heads, _, *rows = table(result)
    assert heads.startswith("| | official, % | others, % | ms a clip, p50 |")
    assert len(rows) == 3
    assert all(row.count("|") == heads.count("|") and row in text for row in rows)
    assert text == page(result)
    for name in ("benchmark_accuracy.png", "benchmark_growth.png", "benchmark.json"):
        assert f"({name})" in text
        assert (written.parent / name).stat().st_size > 1000
    figures = json.loads((written.parent / "benchmark.json").read_text())["recognisers"][1]
    assert (figures["name"], figures["clip_ms"]) == ("raw_cnn", result.recognisers[1].clip_ms)


def test_a_peer_is_compared_with_the_model_of_the_same_network(result: PeersResult) -> None:
    ours, *others = result.recognisers
    slow = {name: 3 * ms for name, ms in ours.clip_ms.items()}
    peer = replace(others[0], same_network="mfcc", clip_ms=slow, file_ms={q: 2 * ms for q, ms in ours.file_ms.items()})
    rows = table(replace(result, recognisers=(ours, peer)))
    assert rows[-1].endswith("| 3.0 (2.0 from a file) |")
    assert rows[-2].endswith("|  |")


def test_a_recogniser_that_lacks_a_package_or_fails_is_skipped_by_name(
    result: PeersResult, protocols: dict[str, Clips], tmp_path: Path
) -> None:
    assert result.skipped == {"svm": "needs no_such_package: pip install the [bench] extra"}
    assert "- skipped: svm, needs no_such_package" in page(result)
    before = dict(os.environ)
    with pytest.raises(
        BenchmarkError, match=r"no recogniser is left: mfcc: mfcc failed in open_recogniser: ModelError: no"
    ):
        measure({"official": protocols["official"]}, ["mfcc"], Sources(str(tmp_path / "nowhere")), EFFORT)
    assert dict(os.environ) == before


def test_a_process_that_ends_is_an_error_that_names_it() -> None:
    with Child("mfcc") as child, pytest.raises(BenchmarkError, match="the process of mfcc ended"):
        child.call(os._exit, 1)
    with Child("mfcc") as child:
        assert 0.5 < child.call(open_recogniser, "mfcc", Sources(), 1) < 1


def test_clips_at_16_khz_come_from_the_recordings(tiny_folder: Path, tmp_path: Path) -> None:
    tone = 0.3 * np.sin(2 * np.pi * 6000 * np.arange(12_000) / 16_000)  # what 8 kHz cannot hold
    soundfile.write(tmp_path / "4_somebody_0.wav", tone, 16_000)
    clips = TestClips(load_folder(tmp_path), official=False)
    paths = files_of(clips.corpus, tmp_path)
    assert paths == [tmp_path / "4_somebody_0.wav"]
    found = at_both_rates(clips, paths)
    assert found.labels == [4]
    assert found.waveforms[16_000].shape == (1, 16_000)
    np.testing.assert_allclose(found.waveforms[16_000][0, 2000:14_000], tone, atol=1e-4)
    assert np.abs(at_both_rates(clips).waveforms[16_000]).max() < 0.05


def test_faults_of_the_command_line_are_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--rounds", "0", "--recognisers", "mfcc", "nobody"]) == 2
    message = capsys.readouterr().err
    assert "rounds: expected more than 0, got 0" in message
    assert "got nobody" in message


def test_every_pipeline_has_a_peer_of_the_same_network() -> None:
    assert {spec.same_network for spec in recognisers().values()} == {None, *PIPELINES}
