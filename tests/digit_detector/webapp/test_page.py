"""The page in a real browser, with a recording as its microphone: what people see when they speak, click and type."""

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from digit_detector.webapp.settings import Settings
from ml_training.data.synthetic import VOICES, say

pytestmark = pytest.mark.browser

RATE = 44_100  # Hz; files of other rates slip when they are the microphone
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
SERIOUS = ("serious", "critical")
HEAVIEST = 300_000  # bytes of the page when the server hears


def as_microphone(path: Path) -> tuple[str, ...]:
    return (*FAKE, f"--use-file-for-fake-audio-capture={path}%noloop")


def speech(words: list[tuple[int, np.ndarray]], path: Path) -> str:
    """Write words at 8 kHz with pauses as a microphone's recording -> what is said in it."""
    rng = np.random.default_rng(7)
    parts = [np.zeros(int(1.2 * RATE))]
    for _, word in words:
        parts += [
            0.4 * soxr.resample(word / np.abs(word).max(), 8000, RATE),
            np.zeros(int(rng.uniform(0.4, 0.8) * RATE)),
        ]
    sound = np.concatenate([*parts, np.zeros(2 * RATE)])
    soundfile.write(path, sound + 5e-4 * rng.standard_normal(len(sound)), RATE, subtype="PCM_16")
    return "".join(str(digit) for digit, _ in words)


@pytest.fixture(scope="module")
def spoken() -> list[tuple[int, np.ndarray]]:
    order = (7, 3, 9, 4, 0, 8)
    return list(zip(order, say([(VOICES[1], WORDS[digit]) for digit in order], seed=3), strict=True))


@pytest.fixture(scope="module")
def talking(launch: Callable[..., Any], spoken: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A browser whose microphone says synthetic digits, and which."""
    path = tmp_path_factory.mktemp("microphone") / "digits.wav"
    said = speech(spoken, path)
    return launch(*as_microphone(path)), said


@pytest.fixture
def opened(server: str) -> Iterator[Callable[..., Any]]:
    """`opened(browser, **options)` -> a page that has loaded, and at the end had nothing to complain of."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def open_page(browser: Any, address: str = server, expected: str = "^$", **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()

        def complain(text: str) -> None:
            if not re.search(expected, text):
                complaints.append(text)

        page.on("console", lambda message: complain(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on(
            "request", lambda asked: None if asked.url.startswith((address, "blob:", "data:")) else complain(asked.url)
        )
        page.goto(address)
        page.locator("#answers tbody tr").first.wait_for()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints


def listen(page: Any) -> None:
    page.keyboard.press("Space")
    page.locator("#status", has_text="Listening").wait_for(timeout=60_000)


def stop(page: Any) -> None:
    page.keyboard.press("Space")
    page.locator("#listen-label", has_text="Listen").wait_for()


def strip(page: Any) -> str:
    text: str = page.locator("#strip").inner_text()
    return text


def until_said(page: Any, count: int, seconds: float) -> str:
    """The digits on the page as soon as there are so many, or when the time is over."""
    for _ in range(int(seconds / 0.1)):
        if len(strip(page)) >= count:
            break
        page.wait_for_timeout(100)
    return strip(page)


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


def wrong(said: str, shown: str) -> int:
    """Digits that are missing, too many or others: Levenshtein's distance."""
    costs = list(range(len(shown) + 1))
    for i, expected in enumerate(said):
        before, costs[0] = costs[0], i + 1
        for j, got in enumerate(shown):
            before, costs[j + 1] = costs[j + 1], min(costs[j] + 1, costs[j + 1] + 1, before + (expected != got))
    return costs[-1]


@pytest.fixture(scope="module")
def recording(spoken: list[tuple[int, np.ndarray]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recordings") / "seven.wav"
    soundfile.write(path, soxr.resample(0.5 * spoken[0][1], 8000, 16_000), 16_000)
    return path


@pytest.mark.parametrize("local", [False, True], ids=["server", "browser"])
def test_what_is_said_is_shown_in_order(talking: tuple[Any, str], opened: Callable[..., Any], local: bool):
    browser, said = talking
    page = opened(browser)
    if local:
        page.locator("#local").click()
        page.locator("#where", has_text="No sound leaves it").wait_for()
        page.evaluate("document.activeElement.blur()")
    sent: list[str] = []
    page.on("websocket", lambda socket: sent.append(socket.url))
    listen(page)
    shown = until_said(page, len(said), 25)
    stop(page)
    assert wrong(said, shown) <= 1
    assert len(sent) == (0 if local else 1)
    assert page.locator("#digit").inner_text() == shown[-1]
    assert re.search(r"\d+ % sure, \d+ ms after the word", page.locator("#sure").inner_text())
    assert page.locator("#told").text_content() == WORDS[int(shown[-1])]
    assert page.locator("#words li").count() == len(shown)
    assert page.locator("#words li strong").first.inner_text() == shown[-1]


@pytest.mark.real_data
@pytest.mark.parametrize("local", [False, True], ids=["server", "browser"])
def test_digits_of_real_speakers_are_shown_in_order(
    launch: Callable[..., Any], opened: Callable[..., Any], fsdd_dir: Path, tmp_path: Path, local: bool
):
    rng = np.random.default_rng(4)
    speakers = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    chosen = [(int(digit), speakers[i % 6]) for i, digit in enumerate(rng.permutation(10))]
    clips = [(digit, fsdd_dir / "recordings" / f"{digit}_{speaker}_1.wav") for digit, speaker in chosen]
    said = speech([(digit, soundfile.read(clip)[0]) for digit, clip in clips], tmp_path / "microphone.wav")
    page = opened(launch(*as_microphone(tmp_path / "microphone.wav")))
    if local:
        page.locator("#local").click()
        page.evaluate("document.activeElement.blur()")
    listen(page)
    assert wrong(said, until_said(page, len(said), 30)) <= 1


def test_space_listens_and_stops_but_not_where_it_means_something_else(
    talking: tuple[Any, str], opened: Callable[..., Any]
):
    page = opened(talking[0])
    pressed = page.locator("#listen[aria-pressed=true]")
    page.locator("#noise-live").focus()
    page.keyboard.press("Space")
    assert page.locator("#noise-live").is_checked()
    assert pressed.count() == 0
    page.locator("#listen").focus()
    page.keyboard.press("Space")
    page.locator("#status", has_text="Listening").wait_for()
    page.keyboard.press("Space")
    page.locator("#listen-label", has_text="Listen").wait_for()
    page.evaluate("document.activeElement.blur()")
    for _ in range(5):  # faster than it can follow: it ends as it began, and does not hang
        page.keyboard.press("Space")
    page.locator("#status", has_text="Listening").wait_for()
    assert pressed.count() == 1


def test_the_strip_is_copied_and_cleared(talking: tuple[Any, str], opened: Callable[..., Any]):
    page = opened(talking[0], permissions=["clipboard-read", "clipboard-write", "microphone"])
    assert page.locator("#copy").is_disabled()
    listen(page)
    until_said(page, 2, 20)
    stop(page)
    page.locator("#copy").click()
    page.locator("#copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == strip(page) != ""
    page.locator("#clear").click()
    assert strip(page) == ""
    assert page.locator("#copy").is_disabled()


@pytest.mark.parametrize("suffix", ["wav", "mp3", "flac", "ogg"])
def test_recordings_of_all_formats_are_compared(
    chromium: Any, opened: Callable[..., Any], recording: Path, tmp_path: Path, suffix: str
):
    sound, rate = soundfile.read(recording)
    path = tmp_path / f"seven.{suffix}"
    soundfile.write(path, sound, rate)
    page = opened(chromium)
    give(page, path)
    assert answers(page) == ["7"] * 4
    assert page.locator("#words li").count() == 1
    assert "1" in page.locator("#stats tbody tr").first.inner_text()


def test_a_webm_recording_is_compared(chromium: Any, opened: Callable[..., Any], recording: Path, tmp_path: Path):
    page = opened(chromium)
    written = page.evaluate(
        """async (wav) => {
            const context = new AudioContext();
            const bytes = Uint8Array.from(atob(wav), (c) => c.charCodeAt(0));
            const source = context.createBufferSource();
            source.buffer = await context.decodeAudioData(bytes.buffer);
            const into = context.createMediaStreamDestination();
            source.connect(into);
            const recorder = new MediaRecorder(into.stream, { mimeType: "audio/webm" });
            const parts = [];
            recorder.ondataavailable = ({ data }) => parts.push(data);
            const whole = new Promise((resolve) => (recorder.onstop = resolve));
            recorder.start();
            source.start();
            source.onended = () => recorder.stop();
            await whole;
            const made = new Uint8Array(await new Blob(parts).arrayBuffer());
            return btoa(Array.from(made, (byte) => String.fromCharCode(byte)).join(""));
        }""",
        base64.b64encode(recording.read_bytes()).decode(),
    )
    (tmp_path / "seven.webm").write_bytes(base64.b64decode(written))
    give(page, tmp_path / "seven.webm")
    assert "7" in answers(page)


def test_a_file_is_dropped(chromium: Any, opened: Callable[..., Any], recording: Path):
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
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    answered(page, "dropped.wav")
    assert answers(page) == ["7"] * 4


def test_what_is_no_recording_is_said_to_be_none(chromium: Any, opened: Callable[..., Any], tmp_path: Path):
    page = opened(chromium, expected="422|Failed to load resource")
    (tmp_path / "letter.wav").write_bytes(b"Dear Sir or Madam" * 50)
    page.set_input_files("#file", tmp_path / "letter.wav")
    page.locator("#problem", has_text="cannot decode letter.wav").wait_for()
    page.locator("#answers .answer", has_text="failed").first.wait_for()
    (tmp_path / "long.wav").write_bytes(bytes(9 << 20))
    page.set_input_files("#file", tmp_path / "long.wav")
    page.locator("#problem", has_text="up to 8 MB").wait_for()


def test_noise_reaches_the_recognisers(chromium: Any, opened: Callable[..., Any], recording: Path):
    page = opened(chromium)
    give(page, recording)
    sure = page.locator("#answers tr[data-name=ml_mfcc] .sure")
    before = sure.inner_text()
    picture = page.locator("#logmel").evaluate("canvas => canvas.toDataURL()")
    page.locator("#noise-kind").select_option("pink")
    page.locator("#noise-level").fill("0.5")
    page.locator("#noise-said", has_text="0.50").wait_for()
    page.locator("#answers tr[data-name=ml_mfcc] .sure").filter(has_not_text=before).wait_for()
    assert page.locator("#logmel").evaluate("canvas => canvas.toDataURL()") != picture
    page.locator("#sweep").click()
    page.locator("#sweep-answers tbody tr").nth(3).locator("td").nth(11).filter(has_text="0").or_(
        page.locator("#sweep-answers tbody tr").nth(3).locator("td").nth(11).filter(has_text="not up to")
    ).wait_for(timeout=60_000)
    assert page.locator("#sweep-answers tbody tr").count() == 4
    assert page.locator("#sweep-answers tbody tr").first.locator("td").first.inner_text() == "7"


def test_the_kinds_of_noise_have_the_spectra_of_their_names(chromium: Any, opened: Callable[..., Any]):
    page = opened(chromium)
    levels = {}
    for kind in ("white", "pink", "brown", "background"):
        noise = np.array(
            page.evaluate(
                "async (kind) => [...(await import('/noise.js')).makeNoise(kind, 16000)].map(Math.fround)", kind
            )
        )
        assert len(noise) == 64_000
        assert np.sqrt(np.mean(noise**2)) == pytest.approx(1, abs=0.01)
        power = np.abs(np.fft.rfft(noise)) ** 2
        hertz = np.fft.rfftfreq(len(noise), 1 / 16_000)
        octaves = [10 * np.log10(power[(hertz >= f) & (hertz < 2 * f)].mean()) for f in (125, 250, 500, 1000, 2000)]
        levels[kind] = float(np.mean(np.diff(octaves)))
    assert levels["white"] == pytest.approx(0, abs=0.5)
    assert levels["pink"] == pytest.approx(-3, abs=0.7)
    assert levels["brown"] == pytest.approx(-6, abs=0.7)
    assert levels["background"] < -3


def test_the_log_mel_is_what_the_network_sees(chromium: Any, opened: Callable[..., Any], spoken: Any):
    import torch

    from ml_training.audio import fit
    from ml_training.pipelines.mel_cnn_pipeline import MelCnnClassifier

    second = fit(spoken[1][1].astype(np.float32))
    with torch.inference_mode():
        expected = MelCnnClassifier().eval().features(torch.from_numpy(second)[None])[0].numpy() * 15 - 30
    page = opened(chromium)
    seen = page.evaluate(
        "async (second) => [...(await import('/logmel.js')).logMel(new Float32Array(second)).values]", second.tolist()
    )
    np.testing.assert_allclose(np.array(seen).reshape(64, 51), expected, atol=0.05)


def test_words_are_heard_again_and_compared_again(
    chromium: Any, opened: Callable[..., Any], recording: Path, tmp_path: Path, spoken: Any
):
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


def test_an_ear_is_asked_and_told(talking: tuple[Any, str], opened: Callable[..., Any]):
    page = opened(talking[0])
    assert page.locator("#quiz").is_disabled()
    listen(page)
    shown = until_said(page, 1, 20)[:1]
    stop(page)
    page.locator("#clear").click()
    page.locator("#quiz").click()
    page.locator("#quiz-said", has_text="What was it?").wait_for()
    page.locator("#guesses").get_by_role("button", name=shown, exact=True).click()
    page.locator("#quiz-said", has_text=re.compile("You: [01] of 1")).wait_for()


def test_dark_and_light_are_chosen_and_kept(chromium: Any, opened: Callable[..., Any]):
    page = opened(chromium, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.locator("#theme").click()
    light = page.evaluate(ground)
    assert light != dark
    page.reload()
    assert page.evaluate(ground) == light


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_lies_beyond_a_narrow_screen(chromium: Any, opened: Callable[..., Any], width: int):
    page = opened(chromium, viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_refused_microphone_is_explained(chromium: Any, opened: Callable[..., Any]):
    page = opened(chromium)
    page.keyboard.press("Space")
    page.locator("#problem", has_text="microphone").wait_for()
    assert "Allow it" in page.locator("#problem").inner_text() or "Plug one in" in page.locator("#problem").inner_text()
    page.locator("#listen-label", has_text="Listen").wait_for()


def test_without_a_microphone_it_says_so(launch: Callable[..., Any], opened: Callable[..., Any]):
    page = opened(launch("--use-fake-ui-for-media-stream"))
    page.keyboard.press("Space")
    page.locator("#problem", has_text="No microphone was found").wait_for()


def test_it_reaches_a_server_that_was_gone(
    talking: tuple[Any, str], opened: Callable[..., Any], serving: Callable[..., Any]
):
    with serving() as address:
        page = opened(talking[0], address, expected="ERR_CONNECTION|WebSocket")
        listen(page)
    page.locator("#status", has_text="The server is gone").wait_for(timeout=20_000)
    with serving(Settings(port=int(address.rstrip("/").rpartition(":")[2]))):
        page.locator("#status", has_text="Listening").wait_for(timeout=20_000)
        stop(page)


def test_a_program_can_find_no_serious_fault_for_those_who_cannot_see_it(
    talking: tuple[Any, str], opened: Callable[..., Any], recording: Path
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page: Any, state: str) -> None:
        found = [fault for fault in axe.run(page).response["violations"] if fault["impact"] in SERIOUS]
        assert not found, (state, [(fault["id"], fault["nodes"][0]["html"]) for fault in found])

    for scheme in ("light", "dark"):
        page = opened(talking[0], color_scheme=scheme)
        check(page, f"{scheme}, idle")
        listen(page)
        until_said(page, 1, 20)
        check(page, f"{scheme}, listening")
        stop(page)
        give(page, recording)
        page.locator("#sweep").click()
        page.locator("#sweep-answers tbody tr").first.wait_for()
        check(page, f"{scheme}, compared")
        page.evaluate("document.getElementById('problem').hidden = false")
        check(page, f"{scheme}, with a problem")


def test_the_page_is_light(chromium: Any, opened: Callable[..., Any]):
    page = opened(chromium)
    sizes = page.evaluate("""performance.getEntriesByType("resource").concat(performance.getEntriesByType("navigation"))
        .map(({ name, transferSize }) => [name, transferSize])""")
    assert len(sizes) > 10
    assert sum(size for _, size in sizes) < HEAVIEST
    assert not [name for name, _ in sizes if "vendor" in name]


def test_the_interface_is_documented_on_a_page_of_its_own(chromium: Any, opened: Callable[..., Any], server: str):
    page = opened(chromium)
    page.goto(f"{server.rstrip('/')}/docs")
    page.locator("details").first.wait_for()
    shown = set(page.locator("summary").all_inner_texts())
    paths = page.evaluate(
        "fetch('openapi.json').then((answer) => answer.json()).then(({ paths }) => Object.keys(paths))"
    )
    assert len(paths) > 10
    assert all(any(path in line for line in shown) for path in paths)
    page.locator("summary", has_text="/process_audio").click()
    assert "curl -F file=@x.wav -F method=all" in page.locator("details[open]").inner_text()
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    assert not [fault["id"] for fault in axe.run(page).response["violations"] if fault["impact"] in SERIOUS]
