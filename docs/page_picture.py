"""docs/images/page.png: the page in Chromium, listening to synthetic digits. Run: python docs/page_picture.py"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from web_load import Server  # noqa: E402

from digit_detector.audio import SAMPLE_RATE  # noqa: E402
from ml_training.data.tts import VOICES, say  # noqa: E402

PICTURE = ROOT / "docs" / "images" / "page.png"
RATE = 44_100
WORDS = {4: "four", 7: "seven", 3: "three", 0: "zero", 9: "nine", 8: "eight"}


def main() -> None:
    rng = np.random.default_rng(0)
    parts = [np.zeros(2 * RATE)]
    for word in say([(VOICES[1], word) for word in WORDS.values()], seed=3):
        parts += [0.4 * soxr.resample(word / np.abs(word).max(), SAMPLE_RATE, RATE), np.zeros(RATE // 2)]
    sound = np.concatenate([*parts, np.zeros(RATE)])
    with tempfile.TemporaryDirectory() as folder, Server() as server, sync_playwright() as playwright:
        microphone = Path(folder) / "microphone.wav"
        soundfile.write(microphone, sound + 1e-3 * rng.standard_normal(len(sound)), RATE, subtype="PCM_16")
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=[
                "--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}%noloop",
            ],
        )  # fmt: skip
        page = browser.new_page(viewport={"width": 1180, "height": 1086}, color_scheme="light")
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.locator("#answers tbody tr").first.wait_for()
        page.locator("#listen").click()
        page.locator("#strip", has_text="".join(map(str, WORDS))).wait_for(timeout=1000 * len(sound) // RATE)
        page.wait_for_timeout(300)
        page.screenshot(path=PICTURE)
    print(PICTURE)


if __name__ == "__main__":
    main()
