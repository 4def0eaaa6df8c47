"""Damaged recordings: the same few hundred each time; and whether their watchman sees what he is there for."""

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
from fuzz_worker import CANARY, Limits, Worker, message_findings

from digit_detector.audio import load_audio
from digit_detector.classifier import load_classifier

PATIENT = Limits(seconds=120.0)  # a busy machine is no finding here

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="watches a process of Linux"
)
pytest.importorskip("av", reason="makes files with the [formats] extra")

FAULTY = """
import ctypes, os, socket, sys, time
from fuzz_worker import CANARY, work

kept = []

def make():
    faults = {
        b"crash": lambda: os.abort(),
        b"hang": lambda: time.sleep(3600),
        b"memory": lambda: b"x" * 400_000_000,
        b"output": lambda: ctypes.CDLL(None).printf(b"junk"),
        b"descriptors": lambda: kept.append(os.open(os.devnull, os.O_RDONLY)),
        b"socket": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM),
        b"another file": lambda: open(CANARY).close(),
        b"": lambda: [end.close() for end in socket.socketpair()],  # of this machine alone
    }

    def answered(content):
        faults[content]()
        return {"kind": "answer", "findings": []}

    return answered

work(int(sys.argv[1]), make)
"""


@pytest.mark.parametrize(
    "fault", ["crash", "hang", "memory", "output", "descriptors", "socket", "another file", "nothing is wrong"]
)
def test_a_fault_is_seen_and_the_next_input_is_answered(fault: str, tmp_path: Path) -> None:
    (tmp_path / CANARY).write_text("closed", encoding="utf-8")
    (tmp_path / "faulty.py").write_text(FAULTY, encoding="utf-8")
    limits = Limits(seconds=1.0 if fault == "hang" else 120.0)
    worker = Worker(tmp_path, [b""], limits, str(tmp_path / "faulty.py"))
    try:
        whole = fault == "nothing is wrong"
        worker.begin(b"" if whole else fault.encode())
        findings = worker.end().findings
        assert [kind for kind, _ in findings] == ([] if whole else [fault]), findings
        worker.begin(b"")
        assert worker.end().findings == ()
    finally:
        worker.close()


def test_messages_that_tell_too_much() -> None:
    assert not message_findings("the audio (12 bytes) is not audio that can be read: expected wav, flac, audio/ogg")
    told = message_findings("/srv/app/mel_cnn.onnx is damaged: train it again\x1b[2J")
    assert [kind for kind, _ in told] == ["path", "blames the model", "control characters"]


def test_inputs_are_the_same_every_time_and_whole_ones_are_recordings() -> None:
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


def test_no_damage_is_more_than_a_refusal() -> None:
    tally = fuzz_decoding.Tally()
    for given, outcome in fuzz_decoding.fuzz(range(350), seed=0, limits=PATIENT):
        tally.add(given, outcome)
    assert not tally.findings, "\n".join(map(str, tally.findings))
    assert " 350 " in tally.table().splitlines()[-2]


def test_a_finding_can_be_had_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["--formats", "wav_float", "--only", "3", "0", "--memory", "1", "--hang", "120", "--save", str(tmp_path)]
    assert fuzz_decoding.main([*words, "--seed", "5"]) == 1
    printed = capsys.readouterr().out
    assert "fuzz_decoding.py --seed 5 --formats wav_float --only 3  memory: wav_float, " in printed
    assert "findings: 2 memory\n" in printed
    kept = make_input(recordings(("wav_float",)), 5, 3)
    assert (tmp_path / "3_wav_float").read_bytes() == kept.content


def test_what_libraries_print_does_not_stand_in_the_answers(tmp_path: Path) -> None:
    base = recordings(("mp3", "caf_alac"))
    noisy = next(r.content for r in base if r.format == "mp3")
    (tmp_path / "noisy.mp3").write_bytes(noisy[:1224] + bytes(40) + noisy[1264:])  # libmpg123 looks for the next frame
    alac = bytearray(next(r.content for r in base if r.format == "caf_alac"))
    alac[alac.index(b"pakt") + 12 : alac.index(b"pakt") + 20] = (1000).to_bytes(8, "big")  # libsndfile counts packets
    (tmp_path / "noisy.caf").write_bytes(alac)
    names = ["noisy.mp3", "noisy.caf"]
    heard = "import sys; from digit_detector.audio import load_audio\nfor name in sys.argv[1:]:\n    load_audio(name)"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        command = [sys.executable, *words, *names]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)

    assert "Illegal Audio-MPEG-Header" in run("-c", heard).stderr  # or nothing is tested
    done = run("-m", "ml_training.cli", "predict", "--model_dir", "pretrained", "--json")
    assert [entry["file"] for entry in json.loads(done.stdout)] == names
    assert not re.search("mpg123|MPEG|alac", done.stderr)
