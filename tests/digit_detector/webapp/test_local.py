"""The browser-only mode in a real browser: it equals Python, sends nothing, and reports errors."""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from digit_detector import Detection, StreamingDetector
from digit_detector.audio import trim_silence
from digit_detector.evaluation.streams import Word, join_with_pauses
from digit_detector.processors import PROCESSORS, load_processors
from digit_detector.streaming.config import CONTEXTS
from ml_training.data.tts import VOICES, synthesize_words

LOCAL = ("ml_mfcc", "ml_cnn", "ml_raw", "ensemble")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RATES = (8000, 16_000, 44_100, 48_000)

SAMPLES = "(text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer)"
ANSWER = f"""async (clips) => {{
    const {{ LocalProcessors }} = await import("/local/processors.js");
    const processors = new LocalProcessors();
    const answers = [];
    for (const [text, rate] of clips) answers.push(await processors.answerAll(({SAMPLES})(text), rate));
    return answers;
}}"""
DETECT = f"""async ([text, rate, sizes, context]) => {{
    const {{ LocalSession }} = await import("/local/local_session.js");
    const samples = ({SAMPLES})(text);
    const session = new LocalSession();
    const result = {{ ready: 0, digits: [], provisional: [], faults: [], seconds: 0, levels: 0, voice: 0 }};
    let wake;
    session.onready = () => result.ready++;
    session.ondigits = (digits) => result.digits.push(...digits);
    session.onerror = (fault) => (result.faults.push(fault), wake?.());
    session.onlevel = ({{ seconds, voice, provisional }}) => {{
        result.provisional.push(provisional.map(({{ digit }}) => digit));
        result.seconds = seconds;
        result.voice = Math.max(result.voice, voice);
        result.levels++;
        wake?.();
    }};
    await session.open(rate, context ?? "digits");
    for (let at = 0, i = 0; at < samples.length && !result.faults.length; at += sizes[i++ % sizes.length]) {{
        const done = new Promise((resolve) => (wake = resolve));
        session.send(samples.subarray(at, at + sizes[i % sizes.length]));
        await done;
    }}
    await session.stop();
    return result;
}}"""


@pytest.fixture(scope="module")
def browsing(chromium: Any) -> Iterator[Any]:
    context = chromium.new_context()
    yield context
    context.close()


@pytest.fixture(scope="module")
def page(browsing: Any, server: str) -> Any:
    page = browsing.new_page()
    page.goto(server)
    return page


@pytest.fixture
def fresh(chromium: Any, server: str) -> Iterator[Any]:
    """A page whose browser has fetched nothing yet."""
    context = chromium.new_context()
    page = context.new_page()
    page.goto(server)
    yield page
    context.close()


@pytest.fixture(scope="module")
def spoken() -> list[np.ndarray]:
    """The ten words in ten voices, as synthesised."""
    return synthesize_words([(VOICES[voice], word) for voice in range(10) for word in WORDS], seed=1)


@pytest.fixture(scope="module", params=["synthetic", pytest.param("recorded", marks=pytest.mark.real_data)])
def clips(request: pytest.FixtureRequest) -> list[tuple[np.ndarray, int]]:
    """100 clips with their rates: short ones, and ones of which a second has to be chosen; loud and quiet."""
    if request.param == "synthetic":
        sounds = request.getfixturevalue("spoken")
    else:
        files = {file.name: file for file in request.getfixturevalue("fsdd_dir").rglob("*.wav")}
        speakers = ("george", "jackson", "lucas", "nicolas", "theo")
        names = [f"{digit}_{speaker}_{take}.wav" for digit in range(10) for speaker in speakers for take in (0, 1)]
        sounds = [soundfile.read(files[name], dtype="float32")[0] for name in names]
    assert len(sounds) == 100
    rng = np.random.default_rng(3)
    made = []
    for i, sound in enumerate(sounds):
        if i % 3 == 0:
            noise = 0.002 * rng.standard_normal(rng.integers(9000, 20_000))
            at = rng.integers(0, len(noise) - min(len(sound), 8999))
            noise[at : at + len(sound)] += sound[: len(noise) - at]
            sound = noise * 10 ** rng.uniform(-1, 0)
        rate = RATES[i % 4]
        if rate == 8000 and i % 5 == 0:  # as cheap microphones add; at other rates the filters differ at its edges
            sound = 0.5 * sound + 0.2
        made.append((soxr.resample(sound, 8000, rate).astype(np.float32) if rate != 8000 else as_floats(sound), rate))
    return made


@pytest.fixture(scope="module")
def sound(spoken: list[np.ndarray], bundled: dict[int, np.ndarray]) -> np.ndarray:
    """34 words with pauses over noise, at 8 kHz, half of them recorded, half synthetic."""
    rng = np.random.default_rng(2)
    words = [Word(trim_silence(spoken[i], -30), i % 10, "voice") for i in range(0, 100, 6)]
    words += [Word(as_floats(bundled[(7, 3)[i % 2]]), (7, 3)[i % 2], "recorded") for i in range(17)]
    noise = rng.standard_normal(80_000).astype(np.float32)
    return as_floats(join_with_pauses([words[i] for i in rng.permutation(len(words))], noise, 25.0, rng).samples)


def as_floats(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(samples, dtype=np.float32)


def packed(samples: np.ndarray) -> str:
    return base64.b64encode(as_floats(samples).tobytes()).decode()


def detect_in_python(samples: np.ndarray, rate: int = 8000, context: str = "digits") -> list[Detection]:
    detector = StreamingDetector(context)
    return detector.feed(samples, rate) + detector.flush()


def detect(
    page: Any, samples: np.ndarray, rate: int = 8000, sizes: Sequence[int] = (256,), context: str = "digits"
) -> dict[str, Any]:
    result: dict[str, Any] = page.evaluate(DETECT, [packed(samples), rate, list(sizes), context])
    return result


@pytest.mark.browser
def test_processors_equal_those_of_python(page, clips):
    processors = load_processors(LOCAL)
    found = page.evaluate(ANSWER, [[packed(samples), rate] for samples, rate in clips])
    texts = set()
    for (samples, rate), answers in zip(clips, found, strict=True):
        file = io.BytesIO()
        soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
        assert [answer["name"] for answer in answers] == list(LOCAL)
        for answer in answers:
            want = processors[answer["name"]].answer(file.getvalue())
            assert (answer["text"], answer["error"]) == (want.text, None)
            assert answer["confidence"] == pytest.approx(want.confidence, abs=1e-4 if rate == 8000 else 0.03)
            assert 0.0 < answer["milliseconds"] < 5000.0
            texts.add(answer["text"])
    assert len(texts) >= 10, "all digits came up"


@pytest.mark.browser
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("sizes", [(256,), (7, 131, 1, 999), (255,), (8000,), (31, 32)])
def test_detections_equal_those_of_python(page, sound, sizes, context):
    samples = sound[: 8000 * (40 if sizes == (256,) else 12)]
    expected = detect_in_python(samples, 8000, context)
    result = detect(page, samples, 8000, sizes, context)
    assert len(expected) >= 4
    assert result["faults"] == []
    assert result["ready"] == 1
    assert result["seconds"] == pytest.approx(len(samples) / 8000 + 0.4, abs=0.032)
    assert result["voice"] > 0.5
    for found, want in zip(result["digits"], expected, strict=True):
        assert found["digit"] == want.digit
        assert (found["start"], found["end"], found["delay"]) == pytest.approx(
            (want.start, want.end, want.delay), abs=1e-4
        )
        assert found["confidence"] == pytest.approx(want.confidence, abs=1e-3)


@pytest.mark.browser
def test_provisional_digits_equal_those_of_python(page, sound):
    samples = sound[: 256 * (8000 * 10 // 256)]
    detector = StreamingDetector()
    expected = []
    for block in samples.reshape(-1, 256):
        detector.feed(block)
        expected.append([digit.digit for digit in detector.provisional])
    assert any(expected)
    assert detect(page, samples)["provisional"] == [*expected, []]
    assert not any(detect(page, samples, context="any")["provisional"])


@pytest.mark.browser
@pytest.mark.parametrize("rate", [11_025, 16_000, 44_100, 48_000])
def test_detections_equal_at_any_rate_and_offset(page, sound, rate):
    samples = as_floats(0.5 * soxr.resample(sound[: 8000 * 15], 8000, rate, quality="HQ") + 0.3)
    expected = detect_in_python(samples, rate)
    result = detect(page, samples, rate, [rate // 40])
    assert len(expected) >= 4
    assert [found["digit"] for found in result["digits"]] == [want.digit for want in expected]
    assert [found["end"] for found in result["digits"]] == pytest.approx([want.end for want in expected], abs=1e-4)
    for found, want in zip(result["digits"], expected, strict=True):
        assert found["confidence"] == pytest.approx(want.confidence, abs=1e-2)
    assert result["digits"] == detect(page, samples, rate, [rate // 7, 1])["digits"]


@pytest.mark.browser
def test_nothing_is_sent_after_the_models_are_loaded(chromium, server, sound):
    context = chromium.new_context()
    requests: list[Any] = []
    sockets: list[Any] = []
    context.on("request", lambda request: requests.append(request))
    page = context.new_page()
    page.on("websocket", lambda socket: sockets.append(socket))
    page.goto(server)
    detect(page, sound[:8000])
    page.evaluate(ANSWER, [[packed(sound[:8000]), 8000]])
    paths = {request.url.removeprefix(server.rstrip("/")) for request in requests}
    for needed in ("acoustic", "mfcc", "mel_cnn", "raw_cnn"):
        assert f"/models/{needed}.onnx" in paths, "requests of the worker are recorded"
    assert all(request.method == "GET" and request.url.startswith(server) for request in requests)
    before = len(requests)
    context.set_offline(True)
    expected = detect_in_python(sound[: 8000 * 10])
    result = detect(page, sound[: 8000 * 10])
    answers = page.evaluate(ANSWER, [[packed(sound[:8000]), 8000]])
    assert [found["digit"] for found in result["digits"]] == [want.digit for want in expected]
    assert [answer["error"] for answer in answers[0]] == [None] * len(LOCAL)
    assert len(requests) == before
    assert sockets == []
    context.close()


@pytest.mark.browser
def test_several_streams_and_recordings_at_once_do_not_mix(page, sound):
    first, second = sound[: 8000 * 8], sound[8000 * 8 : 8000 * 16]
    both = page.evaluate(
        f"async ([a, b, c]) => Promise.all([({DETECT})(a), ({DETECT})(b), ({ANSWER})([c, c, c])])",
        [[packed(first), 8000, [256]], [packed(second), 8000, [256]], [packed(first[:8000]), 8000]],
    )
    for result, samples in zip(both[:2], (first, second), strict=True):
        assert [found["digit"] for found in result["digits"]] == [want.digit for want in detect_in_python(samples)]


@pytest.mark.browser
def test_the_list_of_local_processors(page):
    rows = page.evaluate(
        '() => import("/local/processors.js").then(({ LocalProcessors }) => new LocalProcessors().list())'
    )
    assert {row["name"]: row["title"] for row in rows} == {name: kind.title for name, kind in PROCESSORS.items()}
    for row in rows:
        assert row["available"] == (row["name"] in LOCAL)
        assert (row["reason"] is None) == row["available"]
        assert row["available"] or "needs the server" in row["reason"]


SILENCE = np.zeros(4000)
BAD = {
    "empty": (np.zeros(0), 8000, "no samples"),
    "huge": (np.array([0.1, 3e38]), 8000, "sample 1 of the recording is 3"),
    "low rate": (SILENCE, 999, "sample rate is 999"),
    "no number": (np.array([0.1, np.nan]), 8000, "sample 1 of the recording is NaN"),
    "no rate": (SILENCE, 0, "sample rate is 0"),
    "half a rate": (SILENCE, 8000.5, "sample rate is 8000.5"),
}


@pytest.mark.browser
@pytest.mark.parametrize("name", BAD)
def test_invalid_recordings_have_an_error(page, name):
    samples, rate, why = BAD[name]
    for answer in page.evaluate(ANSWER, [[packed(samples), rate]])[0]:
        assert (answer["text"], answer["confidence"]) == ("", None)
        assert why in answer["error"]


@pytest.mark.browser
def test_silence_holds_no_digit(page):
    faint = 1e-7 * np.sin(np.arange(4000))
    for samples, rate in ((SILENCE, 8000), (faint, 48_000), (np.full(4000, 0.25), 8000)):
        for answer in page.evaluate(ANSWER, [[packed(samples), rate]])[0]:
            assert (answer["text"], answer["error"]) == ("", None)
            assert answer["confidence"] == pytest.approx(0.1)


@pytest.mark.browser
def test_invalid_live_samples_close_the_stream(page, sound):
    for samples, rate, why in ((np.array([0.1, np.inf]), 8000, "expected numbers"), (SILENCE, 800, "from 1000")):
        result = detect(page, samples, rate)
        assert [fault["code"] for fault in result["faults"]] == ["bad_audio"]
        assert why in result["faults"][0]["message"]
    assert [fault["code"] for fault in detect(page, SILENCE, context="all")["faults"]] == ["bad_context"]
    assert detect(page, sound[: 8000 * 3])["seconds"] > 3, "the next stream works"


@pytest.mark.browser
def test_audio_faster_than_processing_ends_the_stream(page):
    result = page.evaluate(
        """async () => {
            const { LocalSession } = await import("/local/local_session.js");
            const session = new LocalSession();
            const faults = [];
            session.onerror = (fault) => faults.push(fault);
            await session.open(48000);
            for (let i = 0; i < 400; i++) session.send(new Float32Array(1536));
            await session.stop();
            return faults;
        }"""
    )
    assert [fault["code"] for fault in result] == ["too_slow"]
    assert "too slow" in result[0]["message"]


def refuse(route: Any) -> None:
    route.fulfill(status=503, body="busy")


def cut_off(route: Any) -> None:
    route.abort()


def spoil(route: Any) -> None:
    route.fulfill(status=200, body="this is no model")


@pytest.mark.browser
@pytest.mark.parametrize(
    ("address", "how", "code", "why"),
    [
        ("**/models/acoustic.onnx", refuse, "not_fetched", "the server answered 503"),
        ("**/models/acoustic.onnx", cut_off, "not_fetched", "see that the server runs"),
        ("**/models/acoustic.onnx", spoil, "bad_model", "acoustic.onnx is damaged"),
        ("**/models/detector.json", spoil, "bad_model", "detector.json"),
        ("**/*.wasm", refuse, "not_fetched", "ort-wasm-simd-threaded.wasm"),
        ("**/*.wasm", spoil, "no_wasm", "cannot run the models"),
        ("**/local/worker.js", cut_off, "no_worker", "could not start"),
        ("**/ort.wasm.min.mjs", refuse, "no_worker", "could not start"),
    ],
)
def test_failed_loading_is_reported_and_retried(fresh, sound, address, how, code, why):
    fresh.context.route(address, how)
    result = detect(fresh, sound[:8000])
    assert [fault["code"] for fault in result["faults"]] == [code]
    assert why in result["faults"][0]["message"]
    assert result["ready"] == 0
    if "/models/" not in address:
        answers = fresh.evaluate(ANSWER, [[packed(sound[:8000]), 8000]])[0]
        assert why in answers[LOCAL.index("ml_cnn")]["error"]
    fresh.context.unroute(address)
    if code != "no_wasm":
        assert detect(fresh, sound[: 8000 * 3])["seconds"] > 3
