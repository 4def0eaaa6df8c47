"""The page in a real browser, with a recording as its microphone: what people see when they speak, click and type."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from digit_detector.streaming.config import load_config
from digit_detector.webapp.limits import ServerLimits

pytestmark = pytest.mark.browser

RATE = 44_100  # Hz; files of other rates slip when they are the microphone
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FAKE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
FAULTS = ("moderate", "serious", "critical")


def as_microphone(path: Path) -> tuple[str, ...]:
    return (*FAKE, f"--use-file-for-fake-audio-capture={path}%noloop")


def speech(words: list[tuple[int, np.ndarray]], path: Path) -> str:
    """Write words at 8 kHz with pauses as a microphone's recording -> its digits."""
    rng = np.random.default_rng(7)
    parts = [np.zeros(int(2.5 * RATE))]  # until it listens
    for _, word in words:
        parts += [
            0.4 * soxr.resample(word / np.abs(word).max(), 8000, RATE),
            np.zeros(int(rng.uniform(0.4, 0.8) * RATE)),
        ]
    sound = np.concatenate([*parts, np.zeros(2 * RATE)])
    soundfile.write(path, sound + 5e-4 * rng.standard_normal(len(sound)), RATE, subtype="PCM_16")
    return "".join(str(digit) for digit, _ in words)


@pytest.fixture(scope="module")
def talking(
    launch: Callable[..., Any], bundled: dict[int, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, str]:
    """A browser whose microphone says digits, and which."""
    path = tmp_path_factory.mktemp("microphone") / "digits.wav"
    spoken_digits = speech([(digit, bundled[digit]) for digit in (7, 3, 3, 7, 3, 7)], path)
    return launch(*as_microphone(path)), spoken_digits


def listen(page: Any) -> None:
    page.keyboard.press("Space")
    page.locator("#status", has_text="Listening").wait_for(timeout=60_000)


def stop(page: Any) -> None:
    page.keyboard.press("Space")
    page.locator("#listen-label", has_text="Listen").wait_for()


def keep_sound_here(page: Any) -> None:
    page.locator("#local").click()
    page.locator("#where", has_text="No sound leaves it").wait_for(timeout=60_000)  # when the models are loaded
    page.evaluate("document.activeElement.blur()")


def strip(page: Any) -> str:
    text: str = page.locator("#strip").inner_text()
    return text


def wait_for_digits(page: Any, count: int, seconds: float) -> str:
    """The digits on the page, once there are `count`, or after `seconds`."""
    for _ in range(int(seconds / 0.1)):
        if len(strip(page)) >= count:
            break
        page.wait_for_timeout(100)
    return strip(page)


def edit_distance(spoken_digits: str, shown: str) -> int:
    """Digits that are missing, too many or others: Levenshtein's distance."""
    costs = list(range(len(shown) + 1))
    for i, expected in enumerate(spoken_digits):
        before, costs[0] = costs[0], i + 1
        for j, got in enumerate(shown):
            before, costs[j + 1] = costs[j + 1], min(costs[j] + 1, costs[j + 1] + 1, before + (expected != got))
    return costs[-1]


@pytest.fixture(scope="module")
def real_speakers(
    launch: Callable[..., Any], fsdd_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, str]:
    """A browser whose microphone plays ten digits of six speakers, and which."""
    speakers = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    names = [(int(digit), speakers[i % 6]) for i, digit in enumerate(np.random.default_rng(4).permutation(10))]
    clips = [(d, soundfile.read(fsdd_dir / "recordings" / f"{d}_{speaker}_1.wav")[0]) for d, speaker in names]
    path = tmp_path_factory.mktemp("speakers") / "digits.wav"
    digits = speech(clips, path)
    return launch(*as_microphone(path)), digits


@pytest.mark.parametrize("local", [False, True], ids=["server", "browser"])
@pytest.mark.parametrize("source", ["talking", pytest.param("real_speakers", marks=pytest.mark.real_data)])
def test_digits_are_shown_in_order(request, opened, source, local):
    browser, spoken_digits = request.getfixturevalue(source)
    page = opened(browser)
    if local:
        keep_sound_here(page)
    sent: list[str] = []
    page.on("websocket", lambda socket: sent.append(socket.url))
    listen(page)
    shown = wait_for_digits(page, len(spoken_digits), 30)
    stop(page)
    assert edit_distance(spoken_digits, shown) <= (1 if source == "talking" else 2)
    assert len(sent) == (0 if local else 1)
    assert page.locator("#digit").inner_text() == shown[-1]
    assert re.search(r"\d+ % sure, \d+ ms after the word", page.locator("#sure").inner_text())
    assert page.locator("#announcement").text_content().split()[-1] == WORDS[int(shown[-1])]
    assert page.locator("#provisional").text_content() == ""
    assert page.locator("#words li").count() == len(shown)
    assert page.locator("#words li strong").first.inner_text() == shown[-1]


def test_digits_of_an_utterance_are_grey_until_it_ends(launch, opened):
    permissions = ["clipboard-read", "clipboard-write", "microphone"]
    page = opened(launch(*FAKE), permissions=permissions, expected="422")  # there is no sound at these times
    sockets: list[Any] = []
    page.route_web_socket(re.compile("/ws$"), lambda socket: sockets.append(socket))

    def say(digits: str, reported: float | None = None) -> None:
        """Send digits as provisional ones, or as final ones that are reported at a second."""
        ends = [0.5 * (i + 1) for i in range(len(digits))]
        pairs = zip(map(int, digits), ends, strict=True)
        said = [{"digit": digit, "confidence": 0.9, "start": end - 0.3, "end": end} for digit, end in pairs]
        for digit in said if reported else ():
            sockets[0].send(json.dumps({"type": "digit", **digit, "delay": reported - digit["end"]}))
        provisional = [] if reported else [{**digit, "delay": 0.1} for digit in said]
        status = {"type": "status", "frames": 1, "seconds": 1.0, "level_db": -20.0, "voice": 0.9}
        sockets[0].send(json.dumps({**status, "provisional": provisional}))

    page.keyboard.press("Space")
    page.locator("#status", has_text="Reaching the server").wait_for()
    sockets[0].send('{"type":"ready","sample_rate":48000,"session":null}')
    page.locator("#status", has_text="Listening").wait_for()
    digit, provisional = page.locator("#digit"), page.locator("#provisional")
    say("55")
    page.locator("#provisional", has_text="55").wait_for()
    assert (strip(page), digit.inner_text(), digit.get_attribute("data-provisional")) == ("", "5", "true")
    say("551", reported=3.0)
    page.locator("#announcement", has_text="five five one").wait_for()
    assert (strip(page), digit.inner_text(), digit.get_attribute("data-provisional")) == ("551", "1", "false")
    say("8")
    page.locator("#provisional", has_text="8").wait_for()
    assert digit.inner_text() == "8"
    say("")  # its utterance is dropped
    page.locator("#sure", has_text="not counted").wait_for()
    assert (strip(page), digit.inner_text(), provisional.inner_text()) == ("551", "1", "")
    say("07", reported=9.0)
    page.locator("#announcement", has_text="zero seven").wait_for()
    assert page.locator("#strip .group").all_inner_texts() == ["551", "07"]
    assert page.locator("#words li").count() == 5
    page.locator("#copy").click()
    page.locator("#copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "55107"


def test_the_context_is_chosen_remembered_and_sent(launch, opened, serving):
    browser = launch(*FAKE)
    page = opened(browser)
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda content: sent.append(content)))

    def contexts() -> list[str]:
        return [json.loads(each)["context"] for each in sent if isinstance(each, str) and "start" in each]

    def chosen(page: Any) -> str:
        return str(page.locator("input[name=context]:checked").input_value())

    assert chosen(page) == "digits"
    page.get_by_role("radio", name="Anywhere in speech").check()
    page.locator("#context-hint", has_text="at once").wait_for()
    page.evaluate("document.activeElement.blur()")
    listen(page)
    assert contexts() == ["any"]
    page.get_by_role("radio", name="Digits only").check()  # while it listens
    page.locator("#status", has_text="then pause").wait_for()
    assert contexts() == ["any", "digits"]
    page.get_by_role("radio", name="Anywhere in speech").check()
    page.reload()
    page.locator("#context-hint", has_text="at once").wait_for()
    assert chosen(page) == "any"
    with serving(ServerLimits(port=0, workers=1), config=load_config(context="any")) as address:
        other = opened(browser, address)
        other.locator("#context-hint", has_text="at once").wait_for()
        assert chosen(other) == "any"  # that of the server


def test_the_space_bar_listens_and_stops(talking, opened):
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


def test_the_strip_is_copied_and_cleared(talking, opened):
    page = opened(talking[0], permissions=["clipboard-read", "clipboard-write", "microphone"])
    assert page.locator("#copy").is_disabled()
    listen(page)
    wait_for_digits(page, 2, 20)
    stop(page)
    page.locator("#copy").click()
    page.locator("#copy", has_text="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == strip(page) != ""
    page.locator("#clear").click()
    assert strip(page) == ""
    assert page.locator("#copy").is_disabled()


def test_the_quiz(talking, opened):
    page = opened(talking[0])
    assert page.locator("#quiz").is_disabled()
    listen(page)
    shown = wait_for_digits(page, 1, 20)[:1]
    stop(page)
    page.locator("#clear").click()
    page.locator("#quiz").click()
    page.locator("#quiz-result", has_text="What was it?").wait_for()
    page.locator("#guesses").get_by_role("button", name=shown, exact=True).click()
    page.locator("#quiz-result", has_text=re.compile("You: [01] of 1")).wait_for()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--use-fake-device-for-media-stream", "--deny-permission-prompts"), "was refused. Allow it for this page"),
        (("--use-fake-ui-for-media-stream",), "No microphone was found"),
    ],
)
def test_a_denied_or_missing_microphone_is_explained(launch, opened, flags, problem):
    page = opened(launch(*flags))
    page.keyboard.press("Space")
    page.locator("#problem", has_text=problem).wait_for()
    page.locator("#listen-label", has_text="Listen").wait_for()


def test_a_silent_muted_or_suspended_microphone_is_explained(launch, opened, serving, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE, subtype="PCM_16")
    with serving(ServerLimits(port=0, slow_seconds=4.0)) as address:  # silence is audio: the stream goes on
        page = opened(launch(*as_microphone(tmp_path / "silence.wav")), address)
        page.add_init_script("""
            const Usual = AudioContext;
            window.AudioContext = class extends Usual {
              constructor(options) { super(options); window.contextOfPage = this; }
            };
            const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = async (wanted) => {
              const stream = await open(wanted);
              window.track = stream.getAudioTracks()[0];
              return stream;
            };
        """)
        page.reload()
        page.locator("#answers tbody tr").first.wait_for()
        listen(page)
        microphone = page.locator("#microphone")
        page.locator(
            "#microphone", has_text="The microphone sends only silence. Check that it is switched on"
        ).wait_for()
        page.evaluate("""
            Object.defineProperty(track, "muted", { value: true, configurable: true });
            track.dispatchEvent(new Event("mute"));
        """)
        page.locator("#microphone", has_text="The microphone is muted. Unmute it").wait_for()
        page.evaluate("""delete track.muted; track.dispatchEvent(new Event("unmute"))""")
        page.locator("#microphone", has_text="sends only silence").wait_for()
        page.wait_for_timeout(3000)  # more than slow_seconds in all
        assert page.locator("#problem").is_hidden()
        page.evaluate("contextOfPage.suspend()")
        page.locator("#problem", has_text="The browser has paused the sound of this page. Close other").wait_for()
        page.locator("#listen-label", has_text="Listen").wait_for()
        assert microphone.inner_text() == ""
        listen(page)  # as it says
        page.evaluate("""track.dispatchEvent(new Event("ended"))""")
        page.locator("#problem", has_text="The microphone is gone. Plug it in").wait_for()
        page.locator("#listen-label", has_text="Listen").wait_for()


def test_it_waits_for_an_unreachable_server(talking, opened, serving):
    with serving() as address:
        page = opened(talking[0], address, expected="ERR_CONNECTION|WebSocket")
        listen(page)
        stop(page)
        page.context.set_offline(True)
        page.keyboard.press("Space")
        page.locator("#status", has_text="The server is gone").wait_for(timeout=20_000)
        page.wait_for_timeout(500)  # in which sound comes
        page.context.set_offline(False)
        page.locator("#status", has_text="Listening").wait_for(timeout=20_000)
        stop(page)
    page.keyboard.press("Space")  # no file of the page is fetched again
    page.locator("#status", has_text="The server is gone").wait_for(timeout=20_000)
    stop(page)


def test_a_missing_file_of_the_page_is_reported(talking, opened, serving):
    with serving() as address:
        page = opened(talking[0], address, expected="ERR_CONNECTION")
    page.keyboard.press("Space")
    page.locator("#problem", has_text="could not be fetched. See that the server runs, then listen again.").wait_for()
    page.locator("#listen-label", has_text="Listen").wait_for()


@pytest.mark.parametrize(("code", "state"), [("busy", "busy"), ("restarted", "restarting")])
def test_a_stream_closed_by_the_server_is_restarted(launch, opened, code, state):
    page = opened(launch(*FAKE))
    replies = ["ready", "busy", "busy", "ready"]  # the last of a stream that was begun, and of tries to begin another

    def talk(socket: Any) -> None:
        def answer(message: Any) -> None:
            if isinstance(message, str) and "start" in message:
                begin()
            elif isinstance(message, bytes) and replies and replies[0] == "busy":
                refuse()

        def begin() -> None:
            if replies[0] == "ready":
                replies.pop(0)
                socket.send('{"type":"ready","sample_rate":48000,"session":null}')
            else:
                refuse()

        def refuse() -> None:
            replies.pop(0)
            socket.send(json.dumps({"type": "error", "code": code, "message": "try again in a moment"}))
            socket.close(code=1013, reason=code)

        socket.on_message(answer)

    page.route_web_socket(re.compile("/ws$"), talk)
    page.keyboard.press("Space")
    page.locator("#status", has_text=f"The server is {state}").wait_for()
    page.locator("#status", has_text="Listening").wait_for()
    assert replies == []
    stop(page)


def test_listening_can_be_stopped_while_the_server_is_silent(launch, opened):
    page = opened(launch(*FAKE))
    page.route_web_socket(re.compile("/ws$"), lambda socket: None)
    page.keyboard.press("Space")
    page.locator("#status", has_text="Reaching the server").wait_for()
    stop(page)


def test_loading_can_be_stopped(launch, opened):
    page = opened(launch(*FAKE))
    page.context.route("**/models/*.onnx", lambda route: None)
    page.locator("#local").click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.locator("#status", has_text="Loading the recogniser").wait_for()
    stop(page)
    page.locator("#local").click()
    page.locator("#where", has_text="Sound goes to the server").wait_for()
    page.evaluate("document.activeElement.blur()")
    listen(page)
    stop(page)


def test_failed_local_loading_is_reported_and_nothing_is_sent(chromium, opened, serving, recording):
    with serving() as address:
        page = opened(chromium, address, expected="ERR_CONNECTION|Failed to")
    page.locator("#local").click()
    page.locator("#problem", has_text="The recogniser was not loaded").wait_for()
    page.locator("#where", has_text="nothing is recognised in it yet").wait_for()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.set_input_files("#file", recording)
    page.locator("#answers .answer", has_text="failed").nth(3).wait_for()
    assert not [url for url in requests if "process_audio" in url]
    with serving(ServerLimits(port=int(address.rstrip("/").rpartition(":")[2]))):
        page.locator("#local").click()
        page.locator("#where", has_text="Sound goes to the server").wait_for()
        keep_sound_here(page)
        page.get_by_role("button", name="Compare seven.wav").click()
        page.locator("#answers tr[data-name=ensemble] .answer", has_text="7").wait_for(timeout=60_000)


def test_axe_finds_no_accessibility_problem(talking, opened, recording):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()

    def check(page: Any, state: str) -> None:
        found = [fault for fault in axe.run(page).response["violations"] if fault["impact"] in FAULTS]
        assert not found, (state, [(fault["id"], fault["nodes"][0]["html"]) for fault in found])

    for scheme in ("light", "dark"):
        page = opened(talking[0], color_scheme=scheme)
        check(page, f"{scheme}, idle")
        listen(page)
        wait_for_digits(page, 1, 20)
        check(page, f"{scheme}, listening")
        stop(page)
        page.set_input_files("#file", recording)
        page.locator("#word-name", has_text=recording.name).wait_for()
        page.locator("#sweep").click()
        page.locator("#sweep-answers tbody tr").first.wait_for()
        check(page, f"{scheme}, compared")
        page.evaluate("document.getElementById('problem').hidden = false")
        check(page, f"{scheme}, with a problem")
