"""The report: one file that loads nothing, sound as HTML, complete, and safe whatever the names in it are."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sys
import wave
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from digit_detector.errors import MissingExtraError, TrainingError
from ml_training.config import TrainConfig
from ml_training.report.page import MAX_PLAYERS, duration, gather_versions, percent, size, write_report
from ml_training.results import DataSummary, PipelineResult, SkippedClip

MakeResult = Callable[..., PipelineResult]
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
VOID = {"meta", "link", "br", "img", "input", "hr"}
BLOCKS = {"p", "li", "dt", "dd", "th", "td", "h1", "h2", "h3", "caption", "small", "div"}
EVIL = '<script>alert("x")</script>&amp;\'"'


class Page(HTMLParser):
    """What a test wants to know of a page; raises where tags are not nested properly."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw = text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag in BLOCKS:
            self.words.append(" ")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All that can be read, white space as one space."""
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(path: Path, results: list[PipelineResult], data: DataSummary, **more: dict[str, str]) -> Page:
    write_report(results, data, path / "report.html", **more)  # type: ignore[arg-type]
    return Page((path / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def page(results: list[PipelineResult], summary: DataSummary, tmp_path: Path) -> Page:
    return page_of(tmp_path, results, summary)


# --- the file ------------------------------------------------------------------------------------


def test_loads_nothing_and_runs_nothing(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in {"src", "href", "srcset", "poster", "action", "xlink:href"}:
                assert value.startswith(("#", "data:")), (tag, name, value[:60])
    assert "url(" not in page.raw
    assert "@import" not in page.raw
    assert not re.search(r"https?:|[\"'(]//", page.raw)
    (policy,) = [m["content"] for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'")


def test_replaces_the_last_report_and_leaves_nothing_beside(
    results: list[PipelineResult], summary: DataSummary, tmp_path: Path
) -> None:
    path = tmp_path / "plots" / "training_report.html"
    write_report(results[:1], summary, path)
    write_report(results, summary, path)
    assert "raw waveform + 1D CNN" in path.read_text(encoding="utf-8")
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(results: list[PipelineResult], summary: DataSummary, tmp_path: Path) -> None:
    (tmp_path / "plots").write_text("a file", encoding="utf-8")
    with pytest.raises(TrainingError, match="could not write"):
        write_report(results, summary, tmp_path / "plots" / "report.html")


def test_missing_jinja_says_what_to_install(
    results: list[PipelineResult], summary: DataSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r"\[train\] extra"):
        write_report(results, summary, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


# --- sound as HTML, and for everybody -------------------------------------------------------------


def test_structure(page: Page) -> None:
    assert page.raw.lstrip().lower().startswith("<!doctype html>")
    assert page.all("html")[0]["lang"] == "en"
    assert "width=device-width" in next(m["content"] for m in page.all("meta") if m.get("name") == "viewport")
    assert "prefers-color-scheme: dark" in page.raw
    assert "@media print" in page.raw
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_everything_has_a_name(page: Page) -> None:
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for reference in attributes.get("aria-labelledby", "").split():
            assert reference in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert len(page.all("caption")) == len(page.all("table")) > 0
    assert all(th.get("scope") in {"col", "row", "colgroup"} for th in page.all("th"))
    for svg in page.all("svg"):
        assert svg.get("aria-hidden") == "true" or (svg["role"] == "img" and svg["aria-labelledby"])
    assert all(audio["aria-label"] for audio in page.all("audio"))
    assert all("tabindex" in div for div in page.all("div") if div.get("class") == "scroll")


def test_contrast_in_both_palettes(page: Page) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    palettes = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root {(.*?)}", page.raw, re.S)
    ]
    for palette in palettes[:2]:
        for ground in ("paper", "card"):
            for ink in ("ink", "muted", "link"):
                assert contrast(palette[ink], palette[ground]) >= 4.5
            for own in ("p0", "p1", "p2", "p3", "p4"):
                assert contrast(palette[own], palette[ground]) >= 3
        assert contrast(palette["loud-ink"], palette["loud"]) >= 7
        assert contrast(palette["bad-ink"], palette["bad"]) >= 7


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_in_a_browser(
    width: int, scheme: str, results: list[PipelineResult], summary: DataSummary, tmp_path: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    write_report(results, replace(summary, synthetic=True), tmp_path / "report.html", failures={"x": "y" * 300})
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        asked: list[str] = []
        complaints: list[str] = []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.goto((tmp_path / "report.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        play = "async () => { const a = document.querySelector('audio'); await a.play(); return a.duration }"
        assert tab.evaluate(play) == pytest.approx(1.0, abs=0.01)
        background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        browser.close()
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) == (scheme == "dark")
    assert [url for url in asked if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
    assert not complaints


# --- what it says --------------------------------------------------------------------------------


def test_headline_and_figures(page: Page) -> None:
    assert "Three digit recognisers trained on Free Spoken Digit Dataset" in page.text
    assert "Most accurate: raw waveform + 1D CNN, with 0 of 150 test clips misheard, 100.00 % right" in page.text
    for figure in (
        "4 of 150", "97.33 %", "93.3 to 99.0 %", "98,314", "412 kB", "0.91 ms", "81 s", "742 MB", "10 of 20",
        "all epochs done", "official split, test part", "0123456789abcdef", "train 1,215, validation 135, test 150",
        "george, jackson, lucas", "12 min 00 s", "models/mel_cnn_classifier/model.onnx", "4 min 03 s",
    ):  # fmt: skip
        assert figure in page.text, figure


def test_one_result_alone_is_not_compared(results: list[PipelineResult], summary: DataSummary, tmp_path: Path) -> None:
    page = page_of(tmp_path, results[:1], summary)
    assert "One digit recogniser trained on" in page.text
    assert "Most accurate" not in page.text
    assert "in bold" not in page.text
    assert not page.all("strong")


def test_equals_share_the_first_place(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    page = page_of(tmp_path, [make_result("mfcc", 2), make_result("mel_cnn", 2), make_result("raw_cnn", 3)], summary)
    assert "Most accurate: MFCC + dense network and log-mel + 2D CNN, with 2 of 150" in page.text


def test_settings_and_versions_are_there(page: Page) -> None:
    for name in TrainConfig.__dataclass_fields__:
        assert name == "augmentation" or f"<dt>{name}</dt>" in page.raw
    assert "<dt>augmentation.speed</dt><dd>[0.8, 1.25]</dd>" in page.raw
    versions = gather_versions()
    assert {"streaming-digit-detector", "Python", "torch", "numpy", "onnxruntime", "git commit", "platform"} <= set(
        versions
    )
    assert versions["numpy"] == np.__version__
    assert re.fullmatch(r"[0-9a-f]{40}( with uncommitted changes)?|none \(.*\)", versions["git commit"])
    for name, value in versions.items():
        assert f"{name} {value}" in page.text


def test_groups(page: Page, results: list[PipelineResult]) -> None:
    assert "7 seven" in page.text
    wrong = results[0].test.mistakes()
    right = 50 - sum(results[0].test.speakers[i] == "lucas" for i in wrong)
    assert f"lucas {right} / 50 {2 * right} %" in page.text
    digit = results[0].test.labels[wrong[0]]
    right = 15 - sum(results[0].test.labels[i] == digit for i in wrong)
    assert re.search(rf"{digit} \w+ {right} / 15 ", page.text)


def test_confusion_matrices(page: Page, results: list[PipelineResult]) -> None:
    tables = re.findall(r'<table class="confusion">(.*?)</table>', page.raw, re.S)
    for table, result in zip(tables, results, strict=True):
        counts = [int(n) for n in re.findall(r"<td[^>]*>(\d+)</td>", table)]
        assert counts == result.test.confusion.ravel().tolist()
    said = int(results[1].test.labels[results[1].test.mistakes()[0]])
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    assert f"{names[said]} heard as {names[(said + 1) % 10]}, 1×" in page.text


def test_many_voices_are_folded_the_worst_first(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    voices = tuple(f"voice{i:02d}" for i in range(30))
    result = make_result("mfcc", 6, speakers=voices)
    page = page_of(tmp_path, [result], replace(summary, speakers=voices))
    assert "The other 18, the most misheard first" in page.text
    first = page.raw.index("By speaker: clips right")
    shown = re.findall(r'<th scope="row"><bdi>(voice\d\d)</bdi>', page.raw[first:])[:12]
    wrong = {result.test.speakers[i] for i in result.test.mistakes()}
    assert wrong <= set(shown)


def test_synthetic_speech_is_said_loudly_and_only_then(
    page: Page, results: list[PipelineResult], summary: DataSummary, tmp_path: Path
) -> None:
    assert "synthetic speech" not in page.text.lower()
    synthetic = page_of(tmp_path, results, replace(summary, synthetic=True))
    assert "Synthetic speech A speech synthesiser spoke every clip" in synthetic.text
    assert synthetic.raw.index("Synthetic speech") < synthetic.raw.index("<nav")


def test_failed_pipelines_are_named_with_their_message(
    results: list[PipelineResult], summary: DataSummary, tmp_path: Path
) -> None:
    page = page_of(tmp_path, results[:2], summary, failures={"raw_cnn": f"the loss is NaN {EVIL}"})
    assert "1 of 3 pipelines failed" in page.text
    assert f"raw waveform + 1D CNN: the loss is NaN {EVIL}" in page.text


def test_nothing_trained_is_still_a_report(summary: DataSummary, tmp_path: Path) -> None:
    page = page_of(tmp_path, [], summary, failures={"mfcc": "disk full", "mel_cnn": "disk full"})
    assert "Nothing finished training on Free Spoken Digit Dataset" in page.text
    assert "2 of 2 pipelines failed" in page.text
    assert "0123456789abcdef" in page.text
    assert not page.all("audio")


def test_skipped_clips_are_listed_with_reasons(
    results: list[PipelineResult], summary: DataSummary, tmp_path: Path
) -> None:
    assert "Left out nothing" in page_of(tmp_path, results, summary).text
    skipped = (SkippedClip("3_x_1.wav", "silent"), SkippedClip(EVIL, "cut off"))
    page = page_of(tmp_path, results, replace(summary, skipped=skipped))
    assert "2 clips that could not be used" in page.text
    assert "3_x_1.wav silent" in page.text
    assert f"{EVIL} cut off" in page.text


def test_unknown_figures_are_dashes(results: list[PipelineResult], summary: DataSummary, tmp_path: Path) -> None:
    page = page_of(tmp_path, [replace(r, peak_memory_mb=float("nan")) for r in results], summary)
    assert "Peak memory of the run so far - - -" in page.text
    assert "nan" not in re.sub(r"[A-Za-z]+", lambda m: m[0] if m[0].lower() == "nan" else "", page.text).lower()


def test_numbers_with_units() -> None:
    shown = [
        percent(299 / 300),
        percent(float("nan")),
        duration(4.21),
        duration(71.4),
        duration(215.0),
        duration(3840.0),
    ]
    assert [s.replace("\N{NO-BREAK SPACE}", " ") for s in shown] == [
        "99.67 %",
        "-",
        "4.2 s",
        "71 s",
        "3 min 35 s",
        "1 h 04 min",
    ]
    shown = [size(12_345), size(1_234_567), size(742.3e6), size(float("nan")), duration(float("inf"))]
    assert [s.replace("\N{NO-BREAK SPACE}", " ") for s in shown] == ["12 kB", "1.23 MB", "742 MB", "-", "-"]


# --- the clips it got wrong ----------------------------------------------------------------------


def test_players_play_the_misheard_clips_in_order(
    make_result: MakeResult, summary: DataSummary, tmp_path: Path
) -> None:
    result = make_result("mfcc", 5)
    players = page_of(tmp_path, [result], summary).all("audio")
    assert len(players) == 5
    for i, player, samples in zip(result.test.mistakes(), players, result.mistake_waveforms, strict=True):
        assert "controls" in player
        assert player["aria-label"].startswith(f"{result.test.files[i]}: said ")
        assert player["src"].startswith("data:audio/wav;base64,")
        with wave.open(io.BytesIO(base64.b64decode(player["src"].partition(",")[2]))) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
            heard = np.frombuffer(file.readframes(8000), dtype="<i2").astype(float)
        assert len(heard) == 8000
        assert np.corrcoef(heard, samples)[0, 1] > 0.999
        assert np.abs(heard).max() == pytest.approx(0.9 * 32767, rel=0.001)


def test_said_heard_and_confidence(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    result = make_result("mfcc", 5)
    page = page_of(tmp_path, [result, make_result("mel_cnn", 5)], summary)
    first = result.test.mistakes()[0]
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    said, heard = names[result.test.labels[first]], names[result.test.predicted[first]]
    assert f"Said {said}, heard {heard}" in page.text
    assert f"{100 * result.test.probabilities[first].max():.0f} % sure" in page.text
    assert f"{result.test.files[first]}, {result.test.speakers[first]}. Also misheard by log-mel + 2D CNN" in page.text
    assert "Every test clip was heard right." in page_of(tmp_path, [make_result("mfcc", 0)], summary).text


def test_players_are_capped(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    page = page_of(tmp_path, [make_result("mfcc", MAX_PLAYERS + 10)], summary)
    assert len(page.all("audio")) == MAX_PLAYERS
    assert f"70 clips of 150, {MAX_PLAYERS} of them here; the 10 others are listed" in page.text


def test_names_are_text_whatever_is_in_them(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    result = make_result("mfcc", 3, speakers=(EVIL, "b", "c"))
    test = replace(result.test, files=tuple(f"{i}{EVIL}" for i in range(150)), protocol=EVIL)
    data = replace(summary, name=EVIL, split=EVIL, data_hash=EVIL, speakers=(EVIL,), parts={EVIL: 3})
    page = page_of(tmp_path, [replace(result, test=test, stopped=EVIL, model_file=EVIL)], data)
    assert not page.all("script")
    assert "<script" not in page.raw
    assert page.text.count(EVIL) >= 10


def test_names_that_are_no_utf8(make_result: MakeResult, summary: DataSummary, tmp_path: Path) -> None:
    result = make_result("mfcc", 150)
    test = replace(result.test, files=tuple(f"{i}\udcff.wav" for i in range(150)))
    page = page_of(tmp_path, [replace(result, test=test)], summary)
    assert r"149\udcff.wav" in page.text
