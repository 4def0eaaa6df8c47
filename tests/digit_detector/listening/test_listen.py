"""`digits listen`: files, lines, JSON, real time, Ctrl-C, errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector import listen
from digit_detector.audio import decode
from digit_detector.classifier import model_file
from digit_detector.examples import example_recording
from digit_detector.labels import PRETRAINED
from digit_detector.listening.display import Display
from digit_detector.listening.microphone import note_silence
from digit_detector.streaming.detector import Detection, StreamingDetector

NUMBER = "4135550127"  # of the bundled recording
COMMAND = [sys.executable, "-m", "ml_training.cli", "listen"]


def detect(samples: np.ndarray, context: str) -> str:
    detector = StreamingDetector(context)
    return "".join(str(d.digit) for d in (*detector.feed(samples), *detector.flush()))


DIGITS = detect(decode(example_recording("phone_number")), "digits")  # whatever the model is worth
IN_ANY = detect(decode(example_recording("phone_number")), "any")


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("talk") / "talk.wav"
    soundfile.write(file, decode(example_recording("phone_number")), 8000)
    return file


def test_a_file_prints_a_line_per_digit(talk, capsys):
    assert listen.main(["--file", str(talk)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert "".join(line[0] for line in lines) == DIGITS
    assert all("known after" in line for line in lines)
    assert last == DIGITS


def test_json_is_one_object_per_line(talk, capsys):
    assert listen.main(["--file", str(talk), "--json"]) == 0
    *rows, whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert whole == {"file": str(talk), "digits": DIGITS, "seconds": round(soundfile.info(talk).duration, 3)}
    assert "".join(str(row["digit"]) for row in rows) == DIGITS
    assert rows[0].keys() == {"digit", "confidence", "start", "end", "delay"}
    assert all(0 < row["confidence"] <= 1 and row["start"] < row["end"] for row in rows)


@pytest.fixture
def silence(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 8000)
    return tmp_path / "silence.wav"


def test_a_file_without_digits_says_so(silence, capsys):
    assert listen.main(["--file", str(silence)]) == 0
    assert capsys.readouterr() == ("", f"no digits in {silence}\n")
    assert listen.main(["--file", str(silence), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"file": str(silence), "digits": "", "seconds": 2.0}
    assert captured.err == f"no digits in {silence}\n"


def test_several_files_and_folders(talk, silence, capsys):
    (silence.parent / "notes.txt").write_text("no recording")
    (silence.parent / "damaged.wav").write_bytes(b"RIFF")
    assert listen.main(["--file", str(talk), str(silence.parent), "--file", str(talk)]) == 1
    captured = capsys.readouterr()
    wholes = [line for line in captured.out.splitlines() if "known after" not in line]
    assert wholes == [f"{talk}: {DIGITS}", f"{silence}: no digits", f"{talk}: {DIGITS}"]
    assert captured.err.startswith(f"error: {silence.parent / 'damaged.wav'}")
    assert len(captured.err.splitlines()) == 1
    assert listen.main(["--json", "--file", str(talk), str(silence.parent)]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    wholes = [row for row in rows if "file" in row]
    assert [row.get("digits") for row in wholes] == [DIGITS, None, ""]
    assert "damaged.wav" in wholes[1]["error"]


def test_a_folder_without_recordings_is_an_error(silence, capsys):
    (empty := silence.parent / "empty").mkdir()
    assert listen.main(["--file", str(empty)]) == 1
    assert "holds no recordings" in capsys.readouterr().err
    assert listen.main(["--file", str(empty), str(silence)]) == 1  # and takes no other with it
    out, err = capsys.readouterr()
    assert out == f"{silence}: no digits\n"
    assert err == f"error: {empty} holds no recordings: expected a folder with some\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such names and no pipes in folders")
def test_folders_with_pipes_and_control_characters_in_names(silence):
    silence.rename(silence.parent / "a\nb\x1b[31m.wav")
    (silence.parent / "folder.wav").mkdir()
    os.mkfifo(silence.parent / "pipe.wav")
    done = subprocess.run([*COMMAND, "--file", str(silence.parent)], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{silence.parent}/a\\nb\\x1b[31m.wav: no digits\n"
    assert (done.stderr, done.returncode) == ("", 0)  # a pipe in a folder, which may never end, is left out


@pytest.mark.parametrize("piped", [False, True])
def test_standard_input_is_a_recording(piped, talk):
    with talk.open("rb") as file:
        source = {"input": talk.read_bytes()} if piped else {"stdin": file}
        done = subprocess.run([*COMMAND, "--file", "-"], capture_output=True, timeout=60, **source)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().splitlines()[-1] == DIGITS
    if piped:
        done = subprocess.run([*COMMAND, "--file", talk, "-"], capture_output=True, timeout=60, **source)
        lines = [line for line in done.stdout.decode().splitlines() if "known after" not in line]
        assert lines == [f"{talk}: {DIGITS}", f"-: {DIGITS}"]


def test_context_any_reports_digits_at_once(talk, capsys):
    assert listen.main(["--file", str(talk), "--context", "any", "--json"]) == 0
    *rows, whole = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert whole["digits"] == IN_ANY
    assert all(row["delay"] < 0.5 for row in rows)


def test_utterances_are_separated_by_a_blank_line(talk, tmp_path, capsys):
    sound = decode(talk)
    sound = np.concatenate([sound, np.zeros(8000, dtype=np.float32), sound])
    soundfile.write(tmp_path / "twice.wav", sound, 8000)
    detector = StreamingDetector()
    found = [*detector.feed(decode(tmp_path / "twice.wav")), *detector.flush()]
    utterances = ["".join(str(d.digit) for d in group) for _, group in groupby(found, lambda d: round(d.reported, 3))]
    assert len(utterances) >= 2
    assert listen.main(["--file", str(tmp_path / "twice.wav")]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "".join(utterances)
    assert "".join(line[:1] or " " for line in lines) == " ".join(utterances)


def test_a_model_can_be_named_and_flags_of_earlier_versions_are_ignored(talk, tmp_path, capsys):
    shutil.copy(Path(listen.__file__).parent / PRETRAINED / "acoustic.onnx", tmp_path / "own.onnx")
    old = ["--spotter", "x.onnx", "--pipeline", "mfcc", "mel_cnn", "--model_dir", "none"]
    assert listen.main(["--file", str(talk), "--live_model", str(tmp_path / "own.onnx"), *old]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == DIGITS
    assert [line.split()[0] for line in captured.err.splitlines()] == ["--spotter", "--pipeline", "--model_dir"]
    assert listen.main(["--file", str(talk), "--live_model", str(model_file("pretrained", "mfcc"))]) == 1
    assert "mfcc.onnx is no acoustic model of this version" in capsys.readouterr().err


def test_ctrl_c_ends_without_a_traceback(talk):
    with subprocess.Popen(
        [*COMMAND, "--file", talk, "--realtime", "--context", "any"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline()[0] in DIGITS
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--file", "none.wav"], "cannot read none.wav", 1),
        (["--file", ""], "the name of the file is empty", 1),
        (["--file", "/dev/zero"], "/dev/zero is a device", 1),
        (["--file", "-", "-"], "given twice", 2),
        (["--realtime"], "--realtime belongs to --file", 2),
        (["--file", "a.wav", "--device", "1"], "--device and --seconds are for the microphone", 2),
        (["--file", "a.wav", "--thresholds", "none.json"], "none.json", 2),
        (["--file", "a.wav", "--live_model", "none.onnx"], "cannot read none.onnx", 1),
        (["--file", "a.wav", "--context", "all"], "invalid choice: 'all'", 2),
    ],
)
def test_errors_are_one_line(words, message, code, tmp_path):
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["no such microphone", "99", "²"])
def test_a_missing_microphone_is_one_line(name):
    done = subprocess.run([*COMMAND, "--device", name], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert any(word in done.stderr for word in ("PortAudio", "[mic]", "cannot be used"))


class Terminal(io.StringIO):
    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True


def test_the_live_line_shows_level_voice_and_digits():
    out, live = io.StringIO(), Terminal()
    display = Display(as_json=False, out=out, live=live)
    display.show(Detection(7, 0.98, 1.0, 1.4, 0.13))
    display.level(-20.0, 0.9, 61.0)
    shown = live.getvalue()
    assert "1:01" in shown
    assert "█" in shown
    assert shown.rstrip().endswith("7")
    assert out.getvalue().startswith("7    98 %   1.00-1.40 s")
    display.close()


@pytest.mark.parametrize(("columns", "shown"), [(80, " 0 1 2 3"), (56, " 1 2 3"), (20, "")])
def test_a_narrow_terminal_shows_the_newest_digits(columns, shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    live = Terminal()
    display = Display(as_json=False, out=io.StringIO(), live=live)
    for i in range(24):
        display.show(Detection(i % 10, 0.98, i + 0.0, i + 0.4, 0.13))
    display.level(-20.0, 0.9, 61.0)
    line = live.getvalue().split("\r")[-1]
    assert len(line) == columns - 1
    assert line.endswith(shown)


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
@pytest.mark.parametrize(("columns", "shown"), [(80, "7 4 1"), (54, "4 1"), (20, "")])
def test_provisional_digits_are_dim(columns, shown, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", terminal)
    live = Terminal()
    display = Display(as_json=False, out=io.StringIO(), live=live)
    display.show(Detection(7, 0.98, 0.0, 0.4, 0.13))
    provisional = [Detection(digit, 0.98, 1.0, 1.4, 0.13) for digit in (4, 1)]
    display.level(-20.0, 0.9, 61.0, provisional)
    line = live.getvalue().split("\r")[-1]
    if terminal == "xterm" and shown:
        assert "\x1b[2m4 1\x1b[22m" in line
    plain = line.replace("\x1b[2m", "").replace("\x1b[22m", "")
    assert len(plain) == columns - 1
    assert plain.rstrip().endswith(shown)


def test_a_muted_microphone_is_noted_once():
    notes: list[str] = []
    zeros, sound = np.zeros(2000, np.float32), np.ones(2000, np.float32)
    pieces = [(1000, piece) for piece in (zeros, sound, zeros, zeros, zeros, sound, zeros, zeros)]
    counts = [len(notes) for _ in note_silence(pieces, notes.append)]
    assert counts == [0, 0, 0, 0, 1, 1, 1, 1]
    assert "muted" in notes[0]


def test_standard_error_may_be_closed(talk):
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *COMMAND, "--file", talk], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == DIGITS


def test_invalid_samples_are_reported_with_their_frame(talk, tmp_path, capsys):
    samples, rate = soundfile.read(talk, dtype="float32")
    samples = np.concatenate([samples, np.zeros(rate), samples]).astype(np.float32)
    samples[-1000] = np.nan
    soundfile.write(tmp_path / "nan.wav", samples, rate, subtype="FLOAT")
    assert listen.main(["--file", str(tmp_path / "nan.wav")]) == 1
    found = capsys.readouterr()
    assert found.out, "digits before the invalid sample are printed"
    assert found.err.endswith(
        f"nan.wav has NaN or infinite samples, first at frame {len(samples) - 1000}: record it again\n"
    )


def test_channels_that_cancel_and_a_file_that_is_cut_off(talk, tmp_path, capsys):
    samples, rate = soundfile.read(talk, dtype="float32")
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.stack([samples, -samples], axis=1), rate)
    path.write_bytes(path.read_bytes()[:-40])
    assert listen.main(["--file", str(path)]) == 0
    found = capsys.readouterr()
    assert found.out.splitlines()[-1] == DIGITS
    assert "talk.wav is cut off: its header promises" in found.err


def test_the_bundled_example(capsys):
    assert listen.main(["--example"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == NUMBER


def test_files_without_a_header_take_encoding_and_rate(tmp_path, capsys):
    samples, rate = soundfile.read(example_recording("phone_number"), dtype="int16")
    (tmp_path / "call.raw").write_bytes(samples.astype("<i2").tobytes())
    assert listen.main(["--file", str(tmp_path / "call.raw"), "--encoding", "s16", "--rate", str(rate)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == DIGITS
