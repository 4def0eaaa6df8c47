"""Plots and page of evaluation results: each is there, whatever the number of seeds and the names."""

import struct

import pytest

from digit_detector.evaluation.metrics import ReliabilityBin
from ml_training.report.evaluation import write_evaluation_report
from ml_training.report.evaluation_plots import plot_result
from ml_training.results import Count, Curve, ModelScore, Point, Rejection, Reliability

MODELS = [(pipeline, seed) for pipeline in ("mfcc", "mel_cnn") for seed in ("0", "1", "2")]


def size(path):
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.parametrize("name", ["people", "$a_{$", "caf\udce9", "数字"])
@pytest.mark.parametrize("protocol", ["strangers", "loso"])
def test_scores_have_one_plot(protocol, name, make_protocol_result, tmp_path):
    score = ModelScore("mfcc", "0", Count(9, 10), {name: Count(4, 5), "ann": Count(5, 5)}, {"1": Count(9, 10)})
    (path,) = plot_result(make_protocol_result(protocol, (score,), data=name), tmp_path, protocol)
    assert path.name == f"{protocol}_accuracy.png"
    assert min(size(path)) > 200


def test_folds_and_their_confusion(make_protocol_result, tmp_path):
    folds = [
        {"pipeline": p, "seed": 0, "left_out": f"{i}/3", "right": 8 + i % 2, "clips": 10}
        for p in ("mfcc", "mel_cnn") for i in (1, 2, 3)
    ]  # fmt: skip
    details = {"folds": folds, "confusion": {"mfcc": [[3] * 10] * 10}}
    paths = plot_result(make_protocol_result("cv", details=details), tmp_path, "cv")
    assert [path.name for path in paths] == ["cv_accuracy.png", "cv_mfcc_confusion.png"]


def test_every_kind_of_change_has_a_plot(make_protocol_result, tmp_path):
    points = (Point(None, "clean", Count(90, 100)), Point(5.0, "5 dB", Count(70, 100)))
    curves = tuple(Curve(kind, kind, "dB", p, s, points) for kind in ("white", "pink") for p, s in MODELS)
    paths = plot_result(make_protocol_result("noise", curves=curves), tmp_path, "noise")
    assert [path.name for path in paths] == ["noise_white.png", "noise_pink.png"]
    assert len({size(path) for path in paths}) == 1


def test_reliability_has_a_row_for_each_seed_and_a_column_for_each_pipeline(make_protocol_result, tmp_path):
    bins = (ReliabilityBin(0.8, 0.9, 100, 0.85, 0.8),)
    every = tuple(Reliability(p, s, w, 1.0, 0.05, 0.4, bins) for p, s in MODELS for w in ("before", "after"))
    (tall,) = plot_result(make_protocol_result("calibration", reliability=every), tmp_path, "tall")
    (flat,) = plot_result(make_protocol_result("calibration", reliability=every[:2]), tmp_path, "flat")
    assert size(tall)[1] > 2 * size(flat)[1]
    assert size(tall)[0] > 1.3 * size(flat)[0]


def test_rejection_has_a_panel_for_each_pipeline_whatever_the_kinds(make_protocol_result, tmp_path):
    kinds = ("digits", "words", "$a_{$", "数字", "caf\udce9", "noise of the street in front of the house", *"abcde")
    every = tuple(
        Rejection(p, s, kind, 100, 0.9, {"95%": Count(10, 100)}, ((0.0, 0.3), (0.1, 0.9), (1.0, 1.0)))
        for p, s in MODELS for kind in kinds
    )  # fmt: skip
    (wide,) = plot_result(make_protocol_result("rejection", rejections=every), tmp_path, "wide")
    (narrow,) = plot_result(make_protocol_result("rejection", rejections=every[: len(kinds)]), tmp_path, "narrow")
    assert wide.name == "wide_roc.png"
    assert size(wide)[0] > 1.5 * size(narrow)[0]
    assert size(wide)[1] == size(narrow)[1]


def test_the_page_escapes_names_and_holds_every_table_and_plot(make_protocol_result, tmp_path):
    result = make_protocol_result("strangers", data="<script>alert(1)</script>")
    plots = plot_result(result, tmp_path, "s")
    write_evaluation_report([(result, plots), (result, [])], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "<b>ben</b>" not in page
    right = "MFCC + dense network and log-mel + 2D CNN get 85.0\N{NO-BREAK SPACE}% of the digits right"
    assert page.count(right) == 2  # headline and title
    assert page.count("data:image/png;base64,") == 1
    assert page.count("<table>") == 7
    write_evaluation_report([], tmp_path / "page.html")
    assert "0 evaluation results" in (tmp_path / "page.html").read_text(encoding="utf-8")
