"""Plots of a training: drawn whatever the figures are, without matplotlib's global state."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from digit_detector.labels import PIPELINES
from ml_training.results import EpochRecord, Evaluation
from ml_training.utils.visualization import (
    COLOURS,
    best_record,
    colour_index,
    plot_confusion_matrix,
    plot_model_comparison,
    plot_training_history,
)

NAN = float("nan")


def pixels(path):
    """The picture, uint8 (height, width, 3)."""
    return (imread(path)[:, :, :3] * 255).round().astype(np.uint8)


def coloured(picture, colour, within=6):
    """How many pixels have about this colour."""
    return int((np.abs(picture.astype(int) - np.array(colour)).max(axis=2) <= within).sum())


def rgb(colour):
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def test_all_plots_are_written_and_nothing_else(results, tmp_path):
    plot_training_history(results[0].history, tmp_path / "plots" / "history.png", "MFCC")
    plot_confusion_matrix(results[0].test, tmp_path / "plots" / "confusion.png", "MFCC")
    plot_model_comparison(results, tmp_path / "plots" / "comparison.png")
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == ["comparison.png", "confusion.png", "history.png"]
    for path in (tmp_path / "plots").iterdir():
        picture = pixels(path)
        assert picture.shape[1] > 600
        assert (picture[:, :3] == 255).all()  # neither a transparent nor a dark edge
        assert len(np.unique(picture)) > 20


def test_history_shows_curve_and_best_epoch(results, tmp_path):
    curve, mark = [], []
    for kept in (0, 1, 2, 20):
        plot_training_history(results[0].history[:kept], tmp_path / "h.png", "MFCC")
        curve.append(coloured(pixels(tmp_path / "h.png"), rgb(COLOURS[0])))
        mark.append(coloured(pixels(tmp_path / "h.png"), rgb(COLOURS[1])))
    assert curve[0] < curve[2] < curve[3]
    assert mark[0] == 0 < mark[1]  # of a single epoch one sees the mark


def test_diverged_epochs_are_gaps(results, tmp_path):
    broken = [replace(r, train_loss=NAN, validation_loss=NAN) if r.epoch < 4 else r for r in results[0].history]
    plot_training_history(broken, tmp_path / "some.png", "MFCC")
    plot_training_history(broken[:3], tmp_path / "all.png", "MFCC")
    assert best_record(broken).epoch == best_record(results[0].history).epoch == 10
    records = [EpochRecord(e, 1.0, 0.5, loss, 0.5, 0.1, 1.0) for e, loss in ((1, 2.0), (2, 1.0), (3, 1.0))]
    assert best_record(records).epoch == 2


@pytest.mark.parametrize("title", ["$x_{", "100 % – Zahlwörter 数字", r"\frac", ""])
def test_titles_are_not_formulas(title, results, tmp_path):
    plot_training_history(results[0].history, tmp_path / "h.png", title)
    assert (tmp_path / "h.png").stat().st_size > 10_000


def test_confusion_colours_mistakes_apart(results, make_result, tmp_path):
    plot_confusion_matrix(make_result("mfcc", 0).test, tmp_path / "none.png", "MFCC")
    plot_confusion_matrix(make_result("mfcc", 150).test, tmp_path / "all.png", "MFCC")
    right, wrong = [109, 161, 203], [222, 144, 114]  # 60 % of the blue and of the red on white
    nothing = Evaluation("none", (), (), np.zeros(0, np.int64), np.zeros((0, 10), np.float32))
    plot_confusion_matrix(nothing, tmp_path / "nothing.png", "MFCC")
    none, every = pixels(tmp_path / "none.png"), pixels(tmp_path / "all.png")
    assert coloured(none, right) > 10_000
    assert coloured(none, wrong) < 100
    assert coloured(every, wrong) > 10_000
    assert coloured(every, right) < 100


def test_comparison_of_one_two_and_five(make_result, tmp_path):
    heights = []
    for count in (1, 2, 5):
        names = [*PIPELINES, "fourth", "$fifth_{"][:count]
        plot_model_comparison([make_result(name, n) for n, name in enumerate(names)], tmp_path / "m.png")
        picture = pixels(tmp_path / "m.png")
        heights.append(picture.shape[0])
        for i, name in enumerate(names):
            assert coloured(picture, rgb(COLOURS[colour_index(name, i)])) > 300
    assert heights == sorted(set(heights))
