"""The page in Chromium with a recording as its microphone: how soon digits are shown, how many are right, its weight.

python benchmarks/web_page.py --digits FOLDER [--glob "*_[0-4].wav"] [--count 20] [--seeds 0] [--update-docs]

Strings recordings like 7_anna_0.wav of FOLDER with pauses of 0.4 to 1 s, as the page's microphone; the server detects
them, then the browser itself. What the page sends to the recogniser is found again in that recording to the sample, so
the delay of a digit is from the end of its word (the last hundredth of a second within 25 dB of its loudest) until it
stands on the page; a sample counts as heard when the microphone would have given it without any buffer.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from web_load import Server, write_table

from digit_detector.audio import SAMPLE_RATE
from digit_detector.evaluation.streams import Word, load_words

RATE = 44_100
MODES = ("server", "browser")
SERIOUS = ("serious", "critical")
_LAST_DB = -25.0
_WATCH = """() => {
    window.told = []; window.pieces = [];
    const send = WebSocket.prototype.send, post = Worker.prototype.postMessage;
    WebSocket.prototype.send = function (data) {
        if (typeof data !== "string") pieces.push([performance.now(), new Int16Array(data.slice(0))]);
        return send.call(this, data);
    };
    Worker.prototype.postMessage = function (message, ...rest) {
        if (message.name === "feed") {
            pieces.push([performance.now(), Int16Array.from(message.args[1], (sample) => 32767 * sample)]);
        }
        return post.call(this, message, ...rest);
    };
    document.addEventListener("DOMContentLoaded", () => {
        const strip = document.getElementById("strip");
        new MutationObserver(() => requestAnimationFrame(() => {
            const shown = strip.textContent;
            while (told.length < shown.length) told.push([shown[told.length], performance.now()]);
        })).observe(strip, { childList: true, characterData: true, subtree: true });
    });
}"""
_SENT = """() => {
    const whole = new Int16Array(pieces.reduce((sum, [, piece]) => sum + piece.length, 0));
    let at = 0;
    const arrivals = pieces.map(([when, piece]) => (whole.set(piece, at), (at += piece.length), [when, at]));
    const bytes = new Uint8Array(whole.buffer);
    let text = "";
    for (let n = 0; n < bytes.length; n += 32768) text += String.fromCharCode(...bytes.subarray(n, n + 32768));
    return { sound: btoa(text), arrivals, told };
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--glob", default="*.wav", help="which files of it (default: *.wav)")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--browser", default="/usr/bin/chromium", help="the program")
    parser.add_argument("--update-docs", action="store_true", help="write the table of docs/web.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for path in args.digits.glob(args.glob):
            shutil.copy(path, folder)
        words = load_words(Path(folder))
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in MODES}
    for seed in args.seeds:
        rng = np.random.default_rng(seed)
        sound, ends = strung([words[i] for i in rng.permutation(len(words))[: args.count]], rng)
        with tempfile.TemporaryDirectory() as folder, Server() as server:
            path = Path(folder) / "microphone.wav"
            soundfile.write(path, sound, RATE, subtype="PCM_16")
            for mode, found in runs.items():
                address = f"http://127.0.0.1:{server.port}/"
                told = heard(address, path, len(sound) / RATE, mode == "browser", args.browser)
                found.append(figures(told, sound, ends))
                print(json.dumps({"seed": seed, "who hears": mode, **found[-1]}), flush=True)
    print(table(runs))
    if args.update_docs:
        write_table("page", table(runs))
    return 0


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What was measured, one column for each of those who hear."""
    delays = {mode: [delay for run in found for delay in run["delays"]] for mode, found in runs.items()}
    counts = [[str(sum(run[key] for run in found)) for key in ("said", "wrong", "more")] for found in runs.values()]
    rows = {
        "digits said, missed or mistaken, too many": [", ".join(cells) for cells in counts],
        "first digit shown after the end of its word, ms": [
            _listed(run["delays"][0] if run["delays"] else None for run in found) for found in runs.values()
        ],
        "any digit, p50 / p95, ms": [
            f"{np.percentile(d, 50):.0f} / {np.percentile(d, 95):.0f}" if d else "-" for d in delays.values()
        ],
        "first paint, ms": [_listed(run["paint"] for run in found) for found in runs.values()],
        "fetched until it listens, kB": [f"{found[0]['weight'] / 1000:,.0f}" for found in runs.values()],
        "faults that axe calls serious or critical": [str(max(run["axe"] for run in found)) for found in runs.values()],
    }
    lines = ["| | server | browser |", "|---|---:|---:|"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())]) + "\n"


def _listed(values: Iterable[float | None]) -> str:
    return ", ".join("-" if value is None else f"{value:.0f}" for value in values)


def strung(words: list[Word], rng: np.random.Generator) -> tuple[np.ndarray, list[tuple[int, float]]]:
    """A microphone's recording, and the digits of it with the seconds at which they end."""
    parts, ends = [np.zeros(2 * RATE)], []
    at = 2 * RATE
    for word in words:
        wave = soxr.resample(word.samples * (0.3 / np.abs(word.samples).max()), SAMPLE_RATE, RATE)
        frame = RATE // 100
        energy = np.square(wave[: len(wave) // frame * frame].reshape(-1, frame)).sum(axis=1)
        last = int(np.flatnonzero(energy >= energy.max() * 10 ** (_LAST_DB / 10))[-1]) + 1
        ends.append((word.digit, (at + last * frame) / RATE))
        pause = np.zeros(int(rng.uniform(0.4, 1.0) * RATE))
        parts += [wave, pause]
        at += len(wave) + len(pause)
    whole = np.concatenate([*parts, np.zeros(2 * RATE)])
    return whole + 5e-4 * rng.standard_normal(len(whole)), ends


def heard(address: str, microphone: Path, seconds: float, local: bool, browser: str) -> dict[str, Any]:
    """What the page sent and showed while it listened to a recording, what it fetched, and what axe finds in it."""
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox", "--disable-gpu", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={microphone}%noloop",
    ]  # fmt: skip
    with sync_playwright() as playwright:
        page = playwright.chromium.launch(executable_path=browser, args=flags).new_page()
        page.add_init_script(f"({_WATCH})()")
        fetched: list[Any] = []
        page.context.on("requestfinished", lambda request: fetched.append(request))
        page.goto(address)
        page.locator("#answers tbody tr").first.wait_for()
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null")
        if local:
            page.locator("#local").click()
            page.locator("#where", has_text="No sound leaves it").wait_for(timeout=60_000)
        page.locator("#listen").click()
        page.locator("#status", has_text="Listening").wait_for(timeout=60_000)
        until = time.monotonic() + seconds
        weight = sum(request.sizes()["responseBodySize"] for request in fetched)
        page.wait_for_timeout(1000 * (until - time.monotonic()))
        found: dict[str, Any] = page.evaluate(_SENT)
        faults = Axe().run(page).response["violations"]
    return {**found, "weight": weight, "paint": paint, "axe": sum(fault["impact"] in SERIOUS for fault in faults)}


def figures(found: dict[str, Any], sound: np.ndarray, ends: list[tuple[int, float]]) -> dict[str, Any]:
    """`said` digits; of them `wrong` were missed or mistaken, `more` were shown that nobody said; `delays` in ms."""
    sent = np.frombuffer(base64.b64decode(found["sound"]), dtype="<i2") / 32767
    skipped = _place(sound, sent)  # samples of the recording that went by before the page listened
    zero = min(when - 1000 * count / RATE for when, count in found["arrivals"])  # ms of the clock, of the first sample
    shown = [(int(digit), (when - zero) / 1000 + skipped / RATE) for digit, when in found["told"]]
    said = [(digit, end) for digit, end in ends if end < (skipped + len(sent)) / RATE - 1]
    delays = []
    left = list(shown)
    for digit, end in said:
        match = next(((d, when) for d, when in left if d == digit and -0.3 < when - end < 1.5), None)
        if match:
            left.remove(match)
            delays.append(round(1000 * (match[1] - end)))
    return {
        "digits": "".join(str(digit) for digit, _ in said), "shown": "".join(str(digit) for digit, _ in shown),
        "said": len(said), "wrong": len(said) - len(delays), "more": len(left), "delays": delays,
        "weight": found["weight"], "paint": found["paint"], "axe": found["axe"],
    }  # fmt: skip


def _place(sound: np.ndarray, sent: np.ndarray) -> int:
    """At which sample of the recording what was sent begins."""
    piece = sent[: 8 * RATE]
    size = 1 << (len(sound) + len(piece)).bit_length()
    match = np.fft.irfft(np.fft.rfft(sound, size) * np.conj(np.fft.rfft(piece, size)), size)
    lag = int(np.argmax(match))
    return lag if lag < len(sound) else lag - size


if __name__ == "__main__":
    raise SystemExit(main())
