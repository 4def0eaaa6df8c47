"""The three reports as people see them: on a phone and on a desk, in the light and in the dark."""

import io
import shutil

import numpy as np
import pytest

from digit_detector.labels import PIPELINES
from ml_training.report.evaluation import write_evaluation_report
from ml_training.report.evaluation_plots import plot_result
from ml_training.report.page import write_report
from ml_training.report.tuning import SearchResult, write_search_report
from ml_training.results import Count, Curve, DataSummary, ModelScore, Point, ProtocolResult
from ml_training.tuning.space import parse_space
from ml_training.tuning.spec import SearchSpec

pytestmark = pytest.mark.browser

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--mute-audio", "--autoplay-policy=no-user-gesture-required"]
FAULTS = ("moderate", "serious", "critical")
VOICES = tuple(f"en-gb-x-gbclan+grandma{n}" for n in range(6))
PLACES = [(390, "light"), (390, "dark"), (1180, "light"), (1180, "dark")]
# Words of headings that stand on two lines: their letters have rectangles at different heights.
BROKEN = """() => [...document.querySelectorAll("h1, h2, h3, thead th, thead td, caption")].flatMap((heading) => {
  const walker = document.createTreeWalker(heading, NodeFilter.SHOW_TEXT), found = [];
  while (walker.nextNode()) for (const word of walker.currentNode.data.matchAll(/[\\p{L}\\d]+/gu)) {
    const range = document.createRange();
    range.setStart(walker.currentNode, word.index);
    range.setEnd(walker.currentNode, word.index + word[0].length);
    if (new Set([...range.getClientRects()].map((place) => Math.round(place.top))).size > 1) found.push(word[0]);
  }
  return found;
})"""
HIDDEN = """() => [...document.querySelectorAll(".scroll, figure")]
  .filter((box) => box.scrollWidth > box.clientWidth + 1).map((box) => box.textContent.trim().slice(0, 60))"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield browser
        browser.close()


def training(folder, make_result):
    results = [make_result(pipeline, 3, speakers=VOICES) for pipeline in PIPELINES]
    data = DataSummary(
        name="synthetic speech (espeak-ng)", data_hash="0123456789abcdef" * 4, synthetic=True, clips=1500,
        speakers=VOICES, hours=0.2, split="official", parts={"train": 1215, "validation": 135, "test": 150},
    )  # fmt: skip
    write_report(results, data, folder / "report.html")


def evaluation(folder, _):
    scores = tuple(
        ModelScore(
            pipeline, seed, Count(right, 1000), {voice: Count(right // 6, 1000 // 6) for voice in VOICES},
            {str(digit): Count(right // 10, 100) for digit in range(10)},
        )
        for pipeline, right in zip(PIPELINES, (850, 947, 921), strict=True) for seed in ("0", "1", "2")
    )  # fmt: skip
    points = tuple(Point(db, f"{db:g} dB", Count(900 + db, 1000)) for db in (20, 10, 0, -5))
    curves = tuple(
        Curve("white", "White noise", "signal-to-noise ratio over the word, dB", p, "0", points) for p in PIPELINES
    )
    results = [
        ProtocolResult(
            protocol=protocol, definition="Recordings and speakers never trained on", data="strangers",
            data_hash="0" * 40, synthetic=False, clips=1000, speakers=6, seeds=("0", "1", "2"), version="0.1.0",
            git_commit="0" * 40, created="2030-01-01T00:00:00+00:00", scores=scores, curves=own,
        )
        for protocol, own in (("official", ()), ("strangers", ()), ("noise", curves))
    ]  # fmt: skip
    pages = [(result, plot_result(result, folder / "plots", result.protocol)) for result in results]
    write_evaluation_report(pages, folder / "report.html")


def tuning(folder, _):
    optuna_trial = pytest.importorskip("optuna.trial")
    space = {"learning_rate": {"from": 0.0003, "to": 0.03, "scale": "log"}, "augmentation.noise_probability": [0, 0.5]}
    spec = SearchSpec(config={"pipeline": "mel_cnn"}, space=space)

    def trial(number, state, value, steps, **attributes):
        made = optuna_trial.create_trial(
            state=optuna_trial.TrialState[state], value=value, intermediate_values=steps, user_attrs=attributes,
            params={"learning_rate": 0.001 * number + 0.001, "augmentation.noise_probability": "0.5"},
            distributions=parse_space(space),
        )  # fmt: skip
        made.number = number
        return made

    trials = [
        trial(n, "COMPLETE", 0.9 + n / 200, {1: 0.5, 2: 0.9 + n / 200}, epochs=2, most=2) for n in range(9)
    ]  # fmt: skip
    fault = "the loss became nan in epoch 1: lower learning_rate"
    trials += [trial(9, "PRUNED", None, {1: 0.3}, epochs=1, most=2), trial(10, "FAIL", None, {}, most=2, fault=fault)]
    importances = {"learning_rate": 0.2, "augmentation.noise_probability": 0.8}
    config = {"pipeline": "mel_cnn", "learning_rate": 0.009}
    result = SearchResult(
        spec, "Free Spoken Digit Dataset", False, tuple(trials), trials[8], (trials[8],), config, importances
    )
    write_search_report(result, folder / "report.html")


@pytest.mark.parametrize("write", [training, evaluation, tuning], ids=lambda write: write.__name__)
def test_nothing_is_cut_off_broken_or_out_of_reach(browser, write, make_result, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    image = pytest.importorskip("PIL.Image")
    write(tmp_path, make_result)
    for width, scheme in PLACES:
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests: list[str] = []
        complaints: list[str] = []
        tab.on("request", lambda request, requests=requests: requests.append(request.url))
        tab.on("console", lambda message, complaints=complaints: complaints.append(message.text))
        tab.goto((tmp_path / "report.html").as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(BROKEN) == [], (width, scheme)
        if width == 1180:
            assert tab.evaluate(HIDDEN) == []
        if (width, scheme) in (PLACES[0], PLACES[-1]):  # each width and each scheme once: it takes seconds
            found = [fault for fault in axe.run(tab).response["violations"] if fault["impact"] in FAULTS]
            assert not found, (width, scheme, [(fault["id"], fault["nodes"][0]["html"]) for fault in found])
        for plot in tab.locator("img.plot").all()[:1]:
            light = float(np.asarray(image.open(io.BytesIO(plot.screenshot())).convert("L")).mean())
            assert light > 200 if scheme == "light" else light < 80, "a plot is as light as its page"
        if write is training:
            play = "async () => { const a = document.querySelector('audio'); await a.play(); return a.duration }"
            assert tab.evaluate(play) == pytest.approx(1.0, abs=0.01)
        assert [url for url in requests if not url.startswith("data:")] == [(tmp_path / "report.html").as_uri()]
        assert not complaints
        tab.close()
