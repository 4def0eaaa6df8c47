"""Plots and page of results: each is there, whatever the number of seeds and the names."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from ml_training.report import evaluation_plots as visualization_evaluation
from ml_training.report.evaluation import write_evaluation_report
from ml_training.report.evaluation_plots import plot_result, slug
from ml_training.results import (
    Count,
    Curve,
    ModelScore,
    Point,
    ProtocolResult,
    Rejection,
    Reliability,
    ReliabilityBin,
)

WHO = [(pipeline, seed) for pipeline in ("mfcc", "mel_cnn") for seed in ("0", "1", "2")]


def result(protocol: str, data: str = "people", **changes: object) -> ProtocolResult:
    by_speaker = {"ann": Count(45, 50), "<b>ben</b>": Count(40, 50)}
    scores = tuple(ModelScore(p, s, Count(85, 100), by_speaker, {"1": Count(85, 100)}) for p, s in WHO)
    return ProtocolResult(
        protocol=protocol, definition="made up", data=data, data_hash="h", synthetic=False, clips=100, speakers=2,
        seeds=("0", "1", "2"), version="1", git_commit="c", created="2030", scores=scores, **changes,  # type: ignore[arg-type]
    )  # fmt: skip


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_scores_and_speakers_left_out_have_one_plot_each(tmp_path: Path) -> None:
    for protocol in ("strangers", "loso"):
        (path,) = plot_result(result(protocol), tmp_path, protocol)
        assert path.name == f"{protocol}_accuracy.png"
        assert min(size(path)) > 200


@pytest.mark.parametrize("name", ["$a_{$", "caf\udce9", "数字"])
@pytest.mark.parametrize("protocol", ["strangers", "loso"])
def test_any_name_that_a_file_may_have_is_drawn(protocol: str, name: str, tmp_path: Path) -> None:
    score = ModelScore("mfcc", "0", Count(9, 10), {name: Count(4, 5), "ann": Count(5, 5)}, {"1": Count(9, 10)})
    (path,) = plot_result(dataclasses.replace(result(protocol, data=name), scores=(score,)), tmp_path, "odd")
    assert min(size(path)) > 200


def test_every_kind_of_change_has_a_plot(tmp_path: Path) -> None:
    points = (Point(None, "clean", Count(90, 100)), Point(5.0, "5 dB", Count(70, 100)))
    curves = tuple(Curve(kind, kind, "dB", p, s, points) for kind in ("white", "pink") for p, s in WHO)
    paths = plot_result(result("noise", curves=curves), tmp_path, "noise")
    assert [path.name for path in paths] == ["noise_white.png", "noise_pink.png"]
    assert len({size(path) for path in paths}) == 1


def test_reliability_has_a_row_for_each_seed_and_a_column_for_each_pipeline(tmp_path: Path) -> None:
    bins = (ReliabilityBin(0.8, 0.9, 100, 0.85, 0.8),)
    every = tuple(Reliability(p, s, w, 1.0, 0.05, 0.4, bins) for p, s in WHO for w in ("before", "after"))
    (tall,) = plot_result(result("calibration", reliability=every), tmp_path, "tall")
    (flat,) = plot_result(result("calibration", reliability=every[:2]), tmp_path, "flat")
    assert size(tall)[1] > 2 * size(flat)[1]
    assert size(tall)[0] > 1.3 * size(flat)[0]


def test_digits_and_others_have_a_panel_for_each_pipeline(tmp_path: Path) -> None:
    roc = ((0.0, 0.3), (0.1, 0.9), (1.0, 1.0))
    every = tuple(
        Rejection(p, s, kind, 100, 0.9, {"95%": Count(10, 100)}, roc)
        for p, s in WHO
        for kind in ("digits", "words", "$a_{$", "数字", "caf\udce9", "noise", "one more", "and another")
    )
    (wide,) = plot_result(result("rejection", rejections=every), tmp_path, "wide")
    (narrow,) = plot_result(result("rejection", rejections=every[:8]), tmp_path, "narrow")
    assert wide.name == "wide_roc.png"
    assert size(wide)[0] > 1.5 * size(narrow)[0]
    assert size(wide)[1] == size(narrow)[1]


def test_many_kinds_and_long_names_stay_apart_and_within_their_panel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(visualization_evaluation, "save", lambda figure, path: drawn.append(figure))
    kinds = ["digits", "noise of the street in front of the house, and of the house behind it", *map(str, range(11))]
    every = tuple(Rejection("mfcc", "0", k, 9, 0.9, {"95%": Count(1, 9)}, ((0.0, 0.3), (1.0, 1.0))) for k in kinds)
    plot_result(result("rejection", rejections=every), tmp_path, "many")
    (figure,) = drawn
    figure.canvas.draw()
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(kinds) - 1
    legend = axes.get_legend()
    assert legend is not None
    assert axes.get_window_extent().x0 <= legend.get_window_extent().x0


def test_names_become_parts_of_file_names() -> None:
    assert slug("FSDD v1.0.10") == "fsdd_v1_0_10"
    assert slug("../../etc") == "etc"
    assert slug("数字") == "数字"
    assert slug("!") == "data"


def test_the_page_escapes_names_and_holds_every_table_and_plot(tmp_path: Path) -> None:
    found = result("strangers", data="<script>alert(1)</script>")
    plots = plot_result(found, tmp_path, "s")
    write_evaluation_report([(found, plots), (found, [])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>ben</b>" not in page
    right = "MFCC + dense network and log-mel + 2D CNN get 85.0\N{NO-BREAK SPACE}% of the digits right"
    assert page.count(right) == 2  # headline and title
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<table>") == 7
    write_evaluation_report([], tmp_path / "page.html")
    assert "Nothing was evaluated" in (tmp_path / "page.html").read_text(encoding="utf-8")
