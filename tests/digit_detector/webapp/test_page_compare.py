"""The page in a real browser, without a microphone: recordings compared, noise, looks, and the page for programs."""

import base64
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.browser

FAULTS = ("moderate", "serious", "critical")
HEAVIEST = 300_000  # bytes of the page without the browser-only mode


def give(page: Any, path: Path) -> None:
    """Choose a recording and wait for all answers."""
    page.set_input_files("#file", path)
    answered(page, path.name)


def answered(page: Any, name: str) -> None:
    page.locator("#word-name", has_text=name).wait_for()
    for row in ("ml_mfcc", "ml_cnn", "ml_raw", "ensemble"):
        page.locator(f"#answers tr[data-name={row}] .time", has_text="ms").wait_for(timeout=60_000)


def answers(page: Any) -> list[str]:
    texts: list[str] = page.locator("#answers tbody .answer").all_inner_texts()
    return texts


def test_the_list_of_processors_is_fetched_again(chromium, opened, recording):
    page = opened(chromium, expected="503")
    page.context.route("**/processors", lambda route: route.fulfill(status=503, body='{"error":{"message":"full"}}'))
    for _ in range(2):
        page.locator("#local").click()
    page.locator("#problem", has_text="full").wait_for()
    assert page.locator("#answers tbody tr").count() == 0
    page.context.unroute("**/processors")
    give(page, recording)
    assert answers(page) == ["7"] * 4


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg"])
def test_recordings_of_all_formats_are_compared(chromium, opened, recording, tmp_path, suffix):
    sound, rate = soundfile.read(recording)
    path = tmp_path / f"seven.{suffix}"
    soundfile.write(path, sound, rate)
    page = opened(chromium)
    give(page, path)
    assert answers(page) == ["7"] * 4
    assert page.locator("#words li").count() == 1
    assert "1" in page.locator("#stats tbody tr").first.inner_text()


@pytest.mark.parametrize("place", ["#drop", "footer"])
def test_a_file_is_dropped_anywhere_on_the_page(chromium, opened, recording, place):
    page = opened(chromium)
    dropped = page.evaluate_handle(
        """(wav) => {
            const bytes = Uint8Array.from(atob(wav), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.wav", { type: "audio/wav" }));
            return transfer;
        }""",
        base64.b64encode(recording.read_bytes()).decode(),
    )
    page.dispatch_event(place, "drop", {"dataTransfer": dropped})
    answered(page, "dropped.wav")
    assert answers(page) == ["7"] * 4


def test_noise_reaches_the_recognisers(chromium, opened, recording):
    page = opened(chromium)
    give(page, recording)
    sure = page.locator("#answers tr[data-name=ml_mfcc] .sure")
    before = sure.inner_text()
    picture = page.locator("#logmel").evaluate("canvas => canvas.toDataURL()")
    page.locator("#noise-kind").select_option("pink")
    page.locator("#noise-level").fill("0.5")
    page.locator("#noise-text", has_text="0.50").wait_for()
    page.locator("#answers tr[data-name=ml_mfcc] .sure").filter(has_not_text=before).wait_for()
    assert page.locator("#logmel").evaluate("canvas => canvas.toDataURL()") != picture
    page.locator("#sweep").click()
    page.locator("#sweep-answers tbody tr").nth(3).locator("td").nth(11).filter(has_text="0").or_(
        page.locator("#sweep-answers tbody tr").nth(3).locator("td").nth(11).filter(has_text="not up to")
    ).wait_for(timeout=60_000)
    assert page.locator("#sweep-answers tbody tr").count() == 4
    assert page.locator("#sweep-answers tbody tr").first.locator("td").first.inner_text() == "7"


def test_the_log_mel_is_what_the_network_sees(chromium, opened, spoken):
    import torch

    from digit_detector.audio import pad_or_trim
    from ml_training.pipelines.mel_cnn_pipeline import MelCnnClassifier

    second = pad_or_trim(spoken[1][1].astype(np.float32))
    with torch.inference_mode():
        expected = MelCnnClassifier().eval().features(torch.from_numpy(second)[None])[0].numpy() * 15 - 30
    page = opened(chromium)
    seen = page.evaluate(
        "async (second) => [...(await import('/logmel.js')).logMel(new Float32Array(second)).values]", second.tolist()
    )
    np.testing.assert_allclose(np.array(seen).reshape(64, 51), expected, atol=0.05)


def test_words_are_played_and_compared_again(chromium, opened, recording, tmp_path, spoken):
    page = opened(chromium)
    other = tmp_path / "three.wav"
    soundfile.write(other, spoken[1][1], 8000)
    give(page, recording)
    give(page, other)
    assert page.locator("#words strong").all_inner_texts() == ["three.wav", "seven.wav"]
    page.get_by_role("button", name="Compare seven.wav").click()
    answered(page, "seven.wav")
    assert page.locator("#words li.chosen strong").all_inner_texts() == ["seven.wav"]
    page.evaluate("""() => {
        window.played = [];
        const play = HTMLMediaElement.prototype.play;
        HTMLMediaElement.prototype.play = function () { played.push(this.src); return play.call(this); };
    }""")
    page.get_by_role("button", name="Play three.wav").click()
    page.locator("#play").click()
    assert len(page.evaluate("window.played")) == 2


def test_the_theme_is_kept(chromium, opened):
    page = opened(chromium, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [320, 390, 768])
def test_the_page_fits_a_narrow_screen(chromium, opened, recording, tmp_path, width):
    page = opened(chromium, viewport={"width": width, "height": 800})
    beyond = """() => [...document.querySelectorAll("body *")]
        .filter((element) => !element.closest(".scroll, .visually-hidden, svg, pre"))
        .filter((element) => element.getBoundingClientRect().right > innerWidth + 0.5)
        .map(({ outerHTML }) => outerHTML)"""
    assert page.evaluate(beyond) == []
    long_name = tmp_path / f"{'seven' * 12}.wav"
    long_name.write_bytes(recording.read_bytes())
    give(page, long_name)
    page.locator("#sweep").click()
    page.locator("#sweep-answers tbody tr").first.wait_for()
    assert page.evaluate(beyond) == []


def test_digits_are_drawn_at_their_time(chromium, opened):
    page = opened(chromium)
    inked = page.evaluate(
        """async () => {
            const { WaveformView } = await import("/waveform_view.js");
            const canvas = document.getElementById("scope").cloneNode();
            document.getElementById("scope").replaceWith(canvas);
            canvas.getContext("2d", { willReadFrequently: true });
            const scope = new WaveformView(canvas);
            const second = () => Array.from({ length: 25 }, () => scope.push(new Float32Array(320)));
            const ink = () => {
                scope.stop();
                const { width, height } = canvas;
                const row = canvas.getContext("2d").getImageData(0, Math.round(0.44 * height) - 2, width, 1).data;
                const inked = Array.from({ length: width }, (_, x) => x).filter((x) => row[4 * x + 3] === 255);
                return [inked[0] / width, inked.at(-1) / width];
            };
            scope.start(8000);
            for (let n = 0; n < 20; n++) second();
            scope.word({ digit: 3, start: 18.5, end: 19 });
            const before = ink();
            scope.clear();
            second();
            scope.word({ digit: 7, start: 19.5, end: 20 });
            return [before, ink()];
        }"""
    )
    for begin, end in inked:  # 1.5 to 1 s ago, of six
        assert begin == pytest.approx(1 - 1.5 / 6, abs=0.02)
        assert end == pytest.approx(1 - 1 / 6, abs=0.02)


def test_the_page_is_small(chromium, opened):
    page = opened(chromium)
    sizes = page.evaluate("""performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
        .map(({ name, transferSize }) => [name, transferSize])""")
    assert len(sizes) > 10
    assert sum(size for _, size in sizes) < HEAVIEST
    assert not [name for name, _ in sizes if "vendor" in name]


def test_the_api_page_shows_every_route_and_calls_it(chromium, opened, server):
    page = opened(chromium)
    page.goto(f"{server.rstrip('/')}/docs")
    page.locator(".opblock").first.wait_for()
    shown = {tuple(text.split()[:2]) for text in page.locator(".opblock-summary-control").all_inner_texts()}
    paths = httpx.get(f"{server.rstrip('/')}/openapi.json").json()["paths"]
    assert shown == {(method.upper(), path) for path, methods in paths.items() for method in methods}
    description = page.locator(".info").inner_text()
    assert '"type":"start"' in description
    assert "not_available" in description
    page.locator(".opblock", has_text="/health").locator(".opblock-summary-control").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table", has_text="uptime_seconds").wait_for()


def test_the_page_hides_install_instructions(chromium, opened):
    page = opened(chromium)
    assert "DIGIT_API_URL" in str(page.evaluate("fetch('processors').then((answer) => answer.text())"))
    off = page.locator("#answers tr.off")
    assert off.count() > 0
    assert {text.split("\n")[-1] for text in off.all_inner_texts()} == {"not set up on this server"}
    assert not re.search("DIGIT_|pip ", page.locator("body").inner_text())
    assert "DIGIT_API_URL" in str(off.first.locator("small").get_attribute("title"))
    for width in (1180, 390):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_failing_service_is_reported(chromium, opened, recording):
    page = opened(chromium)

    def answer(route: Any) -> None:
        is_service = "external_api" in (route.request.post_data or "")
        fault = "transcriptions.example refused: 401; check DIGIT_API_KEY" if is_service else None
        result = {"method": "external_api" if is_service else "ml_cnn", "text": "", "digit": None, "confidence": None}
        route.fulfill(json={"seconds": 0.5, "results": [{**result, "milliseconds": 1.0, "error": fault}]})

    row = {"name": "external_api", "title": "A transcription service by HTTP", "available": True, "reason": None}
    page.route("**/processors", lambda route: route.fulfill(json={"processors": [row]}))
    page.route("**/process_audio", answer)
    page.reload()
    page.locator("#answers input").first.check()
    page.locator("#file").set_input_files(recording)
    page.locator("#answers .answer", has_text="failed").wait_for()
    assert page.locator("#answers .sure small").inner_text() == "the service gave no answer"
    assert "DIGIT_API_KEY" in str(page.locator("#answers .sure small").get_attribute("title"))
