"""Listening to a microphone: ALSA's file device, through PortAudio."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soxr

from digit_detector.evaluation.streams import Word, join_with_pauses
from ml_training.data.tts import VOICES, synthesize_words

RATE = 48_000
NAMES = ("four", "four", "three", "six", "three", "one", "two")
DIGITS = "4436312"
DEVICE = """
pcm.talk {{
  type file
  slave.pcm "null"
  file "/dev/null"
  infile "{file}"
  format "raw"
}}
pcm.!default {{
  type plug
  slave {{ pcm "talk" format S16_LE rate {rate} channels 1 }}
}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder whose default microphone plays NAMES."""
    probe = "import sounddevice as s; assert any(a['name'] == 'ALSA' for a in s.query_hostapis())"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode:
        pytest.skip("PortAudio with ALSA is not here: on Debian and Ubuntu apt install libportaudio2")
    folder = tmp_path_factory.mktemp("home")
    noise = np.random.default_rng(0).standard_normal(80_000).astype(np.float32)
    words = [Word(clip, 0, "a") for clip in synthesize_words([(VOICES[1], name) for name in NAMES], seed=0)]
    stream = join_with_pauses(words, noise, 25.0, np.random.default_rng(1), (0.2, 0.5))
    wide = np.clip(soxr.resample(stream.samples, 8000, RATE), -1, 1)
    (wide * 32767).astype("<i2").tofile(folder / "talk.raw")
    (folder / ".asoundrc").write_text(DEVICE.format(file=folder / "talk.raw", rate=RATE))
    return folder


def listen(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ml_training.cli", "listen", *words]
    environment = {**os.environ, "HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


def test_digits_of_a_microphone_are_printed(home):
    done = listen(home, "--seconds", "6")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("listening to default")
    detected = [line[0] for line in done.stdout.splitlines()]
    assert len(detected) >= 5, detected  # this device loses every third piece of 32 ms
    expected = iter(DIGITS)
    assert all(digit in expected for digit in detected), f"{detected} are not digits of {DIGITS} in their order"


def test_microphones_are_listed_and_chosen_by_name(home):
    listed = listen(home, "--list")
    assert "default  (default)" in listed.stdout
    done = listen(home, "--device", "talk", "--seconds", "1")
    assert "listening to talk" in done.stderr or "microphone 'talk'" in done.stderr
    done = listen(home, "--device", "none of them")
    assert done.returncode == 1
    assert "digits listen --list" in done.stderr
