"""The training report: one file that loads nothing, complete, and safe whatever the names in it are.

test_in_a_browser.py looks at structure, contrast and layout.
"""

import base64
import html
import io
import re
import sys
import wave
from dataclasses import replace

import numpy as np
import pytest

from digit_detector.errors import MissingExtraError, TrainingError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.report.page import MAX_PLAYERS, gather_versions, write_report
from ml_training.results import SkippedClip

EVIL = '<script>alert("x")</script>&amp;\'"'


class Page:
    """The source of a page, and its text with white space as one space."""

    def __init__(self, path):
        self.raw = path.read_text(encoding="utf-8")
        body = re.sub(r"</?(bdi|b|code|strong|span|a)\b[^>]*>", "", self.raw.partition("</style>")[2])
        self.text = " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())

    def sources(self, tag, kind):
        return re.findall(rf'<{tag}\b[^>]* src="data:{kind};base64,([^"]*)"', self.raw)


@pytest.fixture
def write(tmp_path, summary):
    def write_page(results, data=summary, **more):
        write_report(results, data, tmp_path / "report.html", **more)  # type: ignore[arg-type]
        return Page(tmp_path / "report.html")

    return write_page


@pytest.fixture
def page(results, write):
    return write(results)


def test_loads_nothing_and_runs_nothing(page):
    assert not re.search(r"https?:|[\"'(]//|url\(|@import|<(script|iframe|object|embed|base|form)\b| on\w+=", page.raw)
    addresses = re.findall(r' (?:src|href|srcset|poster|action)="([^"]*)"', page.raw)
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", page.raw)


def test_figures(page):
    for figure in (
        "3 digit recognisers trained on Free Spoken Digit Dataset",
        "Most accurate: raw waveform + 1D CNN, with 0 of 150 test clips misclassified, 100.00 % right",
        "4 of 150",
        "97.33 %",
        "93.3 to 99.0 %",
        "98,314",
        "412 kB",
        "0.91 ms",
        "81 s",
        "742 MB",
        "10 of 20",
        "all epochs done",
        "official split, test part",
        "0123456789abcdef",
        "train 1,215, validation 135, test 150",
        "george, jackson, lucas",
        "12 min 00 s",
        "models/mel_cnn_classifier/model.onnx",
        "4 min 03 s",
    ):
        assert figure in page.text, figure
    assert "synthetic speech" not in page.text.lower()


def test_learning_curves_are_svg_images(page):
    drawings = [base64.b64decode(source).decode() for source in page.sources("img", r"image/svg\+xml")]
    assert len(drawings) == 3
    assert all("lowest validation loss, epoch 10" in drawing for drawing in drawings)


def test_one_result_is_not_compared_and_equals_share_the_first_place(make_result, write):
    single = write([make_result("mfcc", 4)])
    assert "1 digit recogniser trained on" in single.text
    assert "Most accurate" not in single.text
    assert "<td><strong>" not in single.raw
    equals = write([make_result("mfcc", 2), make_result("mel_cnn", 2), make_result("raw_cnn", 3)])
    assert "Most accurate: MFCC + dense network and log-mel + 2D CNN, with 2 of 150" in equals.text


def test_settings_and_versions(page):
    for name in TrainConfig.__dataclass_fields__:
        assert name == "augmentation" or f"<dt>{name}</dt>" in page.raw
    assert "<dt>augmentation.speed</dt><dd>[0.8, 1.25]</dd>" in page.raw
    versions = gather_versions()
    assert {"streaming-digit-detector", "Python", "torch", "numpy", "onnxruntime", "git commit"} <= set(versions)
    assert versions["numpy"] == np.__version__
    for name, value in versions.items():
        assert f"{name} {value}" in page.text


def test_groups_and_confusion_matrices(page, results):
    wrong = results[0].test.mistakes()
    errors = sum(results[0].test.speakers[i] == "lucas" for i in wrong)
    assert f"lucas {2 * (50 - errors)}.0 % of 50" in page.text
    assert "7 seven 100.0 % of 15" in page.text
    tables = re.findall(r'<table class="confusion">(.*?)</table>', page.raw, re.S)
    for table, result in zip(tables, results, strict=True):
        counts = [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", table)]
        assert counts == result.test.confusion.ravel().tolist()
    label = int(results[1].test.labels[results[1].test.mistakes()[0]])
    assert f"{LABELS[label]} as {LABELS[(label + 1) % 10]}, 1×" in page.text


def test_many_voices_are_folded_the_worst_first(make_result, summary, write):
    voices = tuple(f"voice{i:02d}" for i in range(30))
    result = make_result("mfcc", 6, speakers=voices)
    page = write([result], replace(summary, speakers=voices))
    names = re.findall(r'<th scope="row"><bdi>(voice\d\d)</bdi>', page.raw)
    assert sorted(names) == list(voices)
    wrong = {result.test.speakers[i] for i in result.test.mistakes()}
    assert set(names[: len(wrong)]) == wrong
    assert "15 more" in page.text


def test_synthetic_speech_and_failures_are_announced_first(results, summary, write):
    failures = {"raw_cnn": f"the loss is NaN {EVIL}"}
    page = write(results[:2], replace(summary, synthetic=True), failures=failures)
    assert page.raw.index("Synthetic speech") < page.raw.index("<nav")
    assert "1 of 3 pipelines failed" in page.text
    assert f"raw waveform + 1D CNN: the loss is NaN {EVIL}" in page.text


def test_nothing_trained_is_still_a_report(write):
    page = write([], failures={"mfcc": "disk full", "mel_cnn": "disk full"})
    assert "Nothing finished training on Free Spoken Digit Dataset" in page.text
    assert "2 of 2 pipelines failed" in page.text
    assert "0123456789abcdef" in page.text
    assert "<audio" not in page.raw


def test_skipped_clips_have_reasons(results, summary, write):
    assert "Left out nothing" in write(results).text
    page = write(results, replace(summary, skipped=(SkippedClip("3_x_1.wav", "silent"), SkippedClip(EVIL, "cut off"))))
    assert "2 clips that could not be used" in page.text
    assert "3_x_1.wav: silent" in page.text
    assert f"{EVIL}: cut off" in page.text


def test_unknown_figures_are_dashes(results, write):
    page = write([replace(r, peak_memory_mb=float("nan")) for r in results])
    assert "Peak memory of the run so far - - -" in page.text
    assert not re.search(r"\bnan\b", page.text)


def test_players_play_the_misclassified_clips_in_order(make_result, write):
    result = make_result("mfcc", 5)
    page = write([result, make_result("mel_cnn", 5)])
    test = result.test
    labels = re.findall('<audio controls [^>]*aria-label="([^"]*)"', page.raw)
    players = zip(test.mistakes(), labels, page.sources("audio", "audio/wav"), result.mistake_waveforms, strict=False)
    for i, label, source, samples in players:
        assert label.startswith(f"{test.files[i]}: ")
        with wave.open(io.BytesIO(base64.b64decode(source))) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
            played = np.frombuffer(file.readframes(8000), dtype="<i2").astype(float)
        assert np.corrcoef(played, samples)[0, 1] > 0.999
        assert np.abs(played).max() == pytest.approx(0.9 * 32767, rel=0.001)
    first = test.mistakes()[0]
    label, predicted = LABELS[test.labels[first]], LABELS[test.predicted[first]]
    assert f"{label} classified as {predicted}" in page.text
    assert f"{100 * test.probabilities[first].max():.0f} % for {predicted}" in page.text
    assert f"{test.files[first]}, {test.speakers[first]}. Also misclassified by log-mel + 2D CNN" in page.text
    assert "Every test clip was classified right." in write([make_result("mfcc", 0)]).text


def test_players_are_capped(make_result, write):
    page = write([make_result("mfcc", MAX_PLAYERS + 10)])
    assert page.raw.count("<audio") == MAX_PLAYERS
    assert f"70 clips of 150, {MAX_PLAYERS} of them here; the other 10 " in page.text


def test_names_are_text_whatever_is_in_them(make_result, summary, write):
    result = make_result("mfcc", 3, speakers=(EVIL, "b", "c"))
    test = replace(result.test, files=tuple(f"{i}{EVIL}\udcff" for i in range(150)), protocol=EVIL)
    data = replace(summary, name=EVIL, split=EVIL, data_hash=EVIL, speakers=(EVIL,), parts={EVIL: 3})
    page = write([replace(result, test=test, stopped=EVIL, model_file=EVIL)], data)
    assert "<script" not in page.raw
    assert page.text.count(EVIL) >= 10
    assert rf"{EVIL}\udcff" in page.text


def test_files_that_cannot_be_written(results, summary, tmp_path, monkeypatch):
    path = tmp_path / "plots" / "training_report.html"
    write_report(results[:1], summary, path)
    write_report(results, summary, path)
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").write_text("a file", encoding="utf-8")
    with pytest.raises(TrainingError, match="could not write"):
        write_report(results, summary, tmp_path / "file" / "report.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"\[train\] extra"):
        write_report(results, summary, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()
