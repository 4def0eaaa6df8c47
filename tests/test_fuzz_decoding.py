"""Damaged recordings: a few hundred, the same each time."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import fuzz_decoding
import pytest
from fuzz_inputs import FORMATS, make_input, recordings
from fuzz_worker import Limits

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier

PATIENT = Limits(seconds=120.0)  # a busy machine is no finding here

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="watches a process of Linux"
)
pytest.importorskip("av", reason="makes files with the [formats] extra")


def test_inputs_are_the_same_every_time_and_whole_ones_are_recordings():
    base, again = recordings(), recordings()
    assert base == again
    assert {recording.format for recording in base if recording.is_audio} == set(FORMATS) - {"text"}
    made = [make_input(base, 7, index) for index in range(600)]
    assert made == [make_input(again, 7, index) for index in range(600)]
    assert [given.content for given in made if given.is_whole] == [recording.content for recording in base]
    assert len({given.content for given in made}) > 500
    assert {name for given in made for name in given.mutations} == {
        "bits", "bytes", "field", "cut", "repeat", "splice", "chunks", "floats", "sums",
    }  # fmt: skip
    words = (7, 3, 9, 0, 4)  # spoken by turns
    classifier = load_classifier("pretrained", "mel_cnn")
    for place, recording in enumerate(recording for recording in base if recording.is_audio):
        assert len(load_audio(recording.content)) == 8000
        assert classifier.predict(recording.content)["predicted_digit"] == words[place % len(words)], recording.format


def test_no_damage_is_more_than_a_refusal():
    tally = fuzz_decoding.Tally()
    for given, outcome in fuzz_decoding.fuzz(range(350), seed=0, limits=PATIENT):
        tally.add(given, outcome)
    assert not tally.findings, "\n".join(map(str, tally.findings))
    assert " 350 " in tally.table().splitlines()[-2]


def test_what_libraries_print_does_not_stand_in_the_answers(tmp_path):
    base = recordings(("mp3", "caf_alac"))
    noisy = next(r.content for r in base if r.format == "mp3")
    (tmp_path / "noisy.mp3").write_bytes(noisy[:1224] + bytes(40) + noisy[1264:])  # libmpg123 looks for the next frame
    alac = bytearray(next(r.content for r in base if r.format == "caf_alac"))
    alac[alac.index(b"pakt") + 12 : alac.index(b"pakt") + 20] = (1000).to_bytes(8, "big")  # libsndfile counts packets
    (tmp_path / "noisy.caf").write_bytes(alac)
    names = ["noisy.mp3", "noisy.caf"]
    code = "import sys; from digit_detector.audio import load_audio\nfor name in sys.argv[1:]:\n    load_audio(name)"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        command = [sys.executable, *words, *names]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)

    assert "Illegal Audio-MPEG-Header" in run("-c", code).stderr  # or nothing is tested
    done = run("-m", "ml_training.cli", "predict", "--model_dir", "pretrained", "--json")
    assert [entry["file"] for entry in json.loads(done.stdout)] == names
    assert not re.search("mpg123|MPEG|alac", done.stderr)
