"""The browser-only mode in a real browser: how long an answer takes, what live detection costs, whether Python agrees.

python benchmarks/web_local.py

Needs $DIGIT_DATA_DIR (FSDD's test clips) and $DIGIT_CORPORA_DIR (iitg_digits, and noise/train behind them).
An answer lasts from when the page asks its worker until it has it; the share of real time is that of detection in
sound that comes as fast as it is processed, messages included. Frames are those that the page draws during detection
in real time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from web_load import Server

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.scoring import score
from digit_detector.evaluation.streams import (
    TestStream,
    Word,
    audio_files,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
)
from digit_detector.streaming.detector import Detection, StreamingDetector

PROCESSORS = ("ml_mfcc", "ml_cnn", "ml_raw", "ensemble")
FLOOR_MS = 40.0
SNR_DB = 20.0
TEST_TAKES = ("_0", "_1", "_2", "_3", "_4")  # of FSDD's official split

SOUND = "/sound-of-the-benchmark"  # where the page fetches the sound
ANSWER = f"""async ([sizes, rate, names]) => {{
    const {{ LocalProcessors }} = await import("/local/processors.js");
    const processors = new LocalProcessors();
    const samples = new Float32Array(await (await fetch("{SOUND}")).arrayBuffer());
    let at = 0;
    const clips = sizes.map((size) => samples.slice(at, (at += size)));
    const rows = {{}};
    for (const name of names) {{
        rows[name] = [];
        for (const clip of [clips[0], ...clips]) {{
            const began = performance.now();
            const {{ text, error }} = await processors.answer(name, clip, rate);
            if (error) throw new Error(error);
            rows[name].push([text, performance.now() - began]);
        }}
        rows[name].shift(); // the first fetched the model
    }}
    return rows;
}}"""
DETECT = f"""async ([rate, piece, live]) => {{
    const {{ LocalSession }} = await import("/local/local_session.js");
    const samples = new Float32Array(await (await fetch("{SOUND}")).arrayBuffer());
    const session = new LocalSession();
    const result = {{ digits: [], pieces: [], frames: [], seconds: 0 }};
    let wake;
    session.onlevel = () => wake?.();
    session.ondigits = (digits) => result.digits.push(...digits);
    let fault = null;
    session.onerror = ({{ message }}) => ((fault = message), wake?.());
    await session.open(rate);
    let last = null;
    const drawn = (now) => {{
        if (last !== null) result.frames.push(now - last);
        last = now;
        requestAnimationFrame(drawn);
    }};
    if (live) requestAnimationFrame(drawn);
    const began = performance.now();
    for (let at = 0; at < samples.length && !fault; at += piece) {{
        if (live) {{
            const due = began + (1000 * at) / rate - performance.now();
            if (due > 0) await new Promise((resolve) => setTimeout(resolve, due));
        }}
        const sent = performance.now();
        const processed = new Promise((resolve) => (wake = resolve));
        session.send(samples.subarray(at, at + piece));
        await processed;
        result.pieces.push(performance.now() - sent);
    }}
    result.seconds = (performance.now() - began) / 1000;
    await session.stop();
    if (fault) throw new Error(fault);
    return result;
}}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--words", type=int, default=150, help="of the stream, also classified one by one")
    parser.add_argument("--live", type=float, default=15.0, help="seconds in real time while frames are counted")
    parser.add_argument("--out", help="a JSON file for the figures")
    args = parser.parse_args()
    words, stream = make_words(args.words)
    with Server() as server, browser() as chromium:
        page = chromium.new_page()
        page.goto(f"http://127.0.0.1:{server.port}/")
        found = {
            "words": [answers(page, words, rate) for rate in (8000, 48_000)],
            "live": [detect(page, stream, rate) for rate in (8000, 48_000)],
            "frames": frames(page, stream, args.live),
        }
    print(json.dumps(found, indent=2))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


def make_words(count: int) -> tuple[list[Word], TestStream]:
    """`count` recorded words of both corpora, and a stream of them with pauses over noise."""
    corpora = Path(os.environ["DIGIT_CORPORA_DIR"])
    rng = np.random.default_rng(0)
    folder = Path(os.environ["DIGIT_DATA_DIR"])
    known = zip(load_words(folder), audio_files(folder), strict=True)
    fsdd = [word for word, path in known if path.stem.endswith(TEST_TAKES)]
    iitg = load_words(corpora / "iitg_digits")
    words = [corpus[i] for corpus in (fsdd, iitg) for i in rng.permutation(len(corpus))[: count // 2]]
    words = [words[i] for i in rng.permutation(len(words))]
    noise = make_noise_track(load_sounds(corpora / "noise" / "train"), 600.0, rng)
    return words, join_with_pauses(words, noise, SNR_DB, rng)


@contextmanager
def browser() -> Iterator[Any]:
    """The chromium that is installed, or playwright's own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def answers(page: Any, words: Sequence[Word], rate: int) -> dict[str, Any]:
    """What each processor takes for a word, and how many it gets right."""
    clips = [_at(word.samples, rate) for word in words]
    _offer(page, np.concatenate(clips))
    rows = page.evaluate(ANSWER, [[len(clip) for clip in clips], rate, list(PROCESSORS)])
    table = {}
    for name, row in rows.items():
        p50, p95 = np.percentile([milliseconds for _, milliseconds in row], (50, 95))
        right = sum(text == str(word.digit) for (text, _), word in zip(row, words, strict=True))
        table[name] = {"p50_ms": round(p50, 2), "p95_ms": round(p95, 2), "right": right / len(words)}
    return {"rate": rate, "fast_enough": all(row["p95_ms"] < FLOOR_MS for row in table.values()), **table}


def detect(page: Any, stream: TestStream, rate: int) -> dict[str, Any]:
    """The time that detection in a stream takes, and its digits in the browser and in Python."""
    samples = _at(stream.samples, rate)
    _offer(page, samples)
    result = page.evaluate(DETECT, [rate, round(0.032 * rate), False])
    in_browser = [Detection(**digit) for digit in result["digits"]]
    detector = StreamingDetector()
    in_python = detector.feed(samples, rate) + detector.flush()
    p50, p95 = np.percentile(result["pieces"], (50, 95))
    return {
        "rate": rate, "seconds": round(len(samples) / rate, 1), "said": len(stream.digits),
        "share_of_real_time": round(result["seconds"] / (len(samples) / rate), 4),
        "piece_p50_ms": round(p50, 2), "piece_p95_ms": round(p95, 2),
        "right_in_the_browser": score(stream.digits, in_browser).correct,
        "right_in_python": score(stream.digits, in_python).correct,
        "inserted_in_the_browser": score(stream.digits, in_browser).inserted,
        "inserted_in_python": score(stream.digits, in_python).inserted,
        "the_same_digits": [d.digit for d in in_browser] == [d.digit for d in in_python],
    }  # fmt: skip


def frames(page: Any, stream: TestStream, seconds: float) -> dict[str, Any]:
    """How evenly the page draws during detection in real time at 48 kHz."""
    samples = _at(stream.samples[: round(seconds * SAMPLE_RATE)], 48_000)
    _offer(page, samples)
    result = page.evaluate(DETECT, [48_000, 1536, True])
    p50, p95 = np.percentile(result["frames"], (50, 95))
    piece50, piece95 = np.percentile(result["pieces"], (50, 95))
    return {
        "a_second": round(1000 / float(np.mean(result["frames"])), 1), "p50_ms": round(p50, 2), "p95_ms": round(p95, 2),
        "piece_p50_ms": round(piece50, 2), "piece_p95_ms": round(piece95, 2),
    }  # fmt: skip


def _at(samples: Floats, rate: int) -> Floats:
    import soxr

    return samples if rate == SAMPLE_RATE else soxr.resample(samples, SAMPLE_RATE, rate).astype(np.float32)


def _offer(page: Any, samples: Floats) -> None:
    page.unroute_all()
    page.route(f"**{SOUND}", lambda route: route.fulfill(body=samples.astype("<f4").tobytes()))


if __name__ == "__main__":
    raise SystemExit(main())
