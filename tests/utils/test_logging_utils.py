"""The log of a run: text file, JSON Lines, screen, progress, TensorBoard and curves."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from digit_detector.errors import TrainingError
from ml_training.results import EpochRecord
from ml_training.utils.logging_utils import RunLogger


def epochs(count):
    return [EpochRecord(i, 2.0 / i, 0.5, 1.0 / i, 0.8, 1e-3 / i, 0.25) for i in range(1, count + 1)]


@pytest.fixture
def console():
    return Console(file=io.StringIO(), force_terminal=False, highlight=False, soft_wrap=True)


def shown(console):
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def events(logger):
    return [json.loads(line) for line in logger.events_file.read_text(encoding="utf-8").splitlines()]


def nothing(history):
    pass


def test_screen_log_and_events_agree(console, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ml_training"), "propagate", False)  # pytest-xdist sends no surrogates
    with RunLogger(tmp_path / "logs", "mfcc", console) as logger:
        logger.say("[red]three[/red] clips, 100 %", "data", clips=3)
        logging.getLogger("ml_training.data.any_module").warning("synthetic speech")
        logger.record("only in the files: 3_\udcff_1.wav", "start")
    logging.getLogger("ml_training").error("after the run")
    assert re.fullmatch(r"experiment_mfcc_\d{8}_\d{6}\.log", logger.log_file.name)
    assert logger.events_file == logger.log_file.with_suffix(".jsonl")
    assert shown(console) == "[red]three[/red] clips, 100 %\nsynthetic speech\n"
    lines = logger.log_file.read_text(encoding="utf-8").splitlines()
    assert [re.sub(r"^[\d-]{10} [\d:]{8} ", "", line) for line in lines] == [
        "INFO    [red]three[/red] clips, 100 %", "WARNING synthetic speech",
        r"INFO    only in the files: 3_\udcff_1.wav",
    ]  # fmt: skip
    assert [(e["event"], e["level"]) for e in events(logger)] == [
        ("data", "INFO"), ("ml_training.data.any_module", "WARNING"), ("start", "INFO"),
    ]  # fmt: skip
    assert events(logger)[0]["clips"] == 3
    assert events(logger)[2]["message"].endswith("3_\udcff_1.wav")
    assert all(re.match(r"\d{4}-\d\d-\d\dT.*[+-]\d\d:\d\d$", e["time"]) for e in events(logger))


def test_a_traceback_goes_to_the_files_and_one_line_to_the_screen(console, tmp_path):
    with RunLogger(tmp_path, "all", console) as logger:
        try:
            raise ValueError("broken")
        except ValueError as error:
            logger.fail("mfcc failed: broken", error, pipeline="mfcc")
    assert shown(console) == "mfcc failed: broken\n"
    assert "Traceback (most recent call last)" in logger.log_file.read_text(encoding="utf-8")
    (event,) = events(logger)
    assert (event["level"], event["pipeline"]) == ("ERROR", "mfcc")
    assert "ValueError: broken" in event["traceback"]


def test_two_runs_in_one_second_have_a_log_each(console, tmp_path):
    with RunLogger(tmp_path, "all", console) as first, RunLogger(tmp_path, "all", console) as second:
        assert first.log_file != second.log_file


def test_a_picture_that_cannot_be_written_does_not_end_training(console, tmp_path):
    def full(history):
        raise TrainingError("the disk is full")

    with RunLogger(tmp_path, "all", console) as logger, logger.training("mfcc", 9, tmp_path / "tb", full) as view:
        view.epoch(epochs(1), better=True)
    assert "the disk is full" in logger.log_file.read_text()


def test_a_folder_that_cannot_be_written_is_a_clear_error(console, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TrainingError, match=r"cannot write logs to .*--log_dir"):
        RunLogger(tmp_path / "file" / "logs", "all", console)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_and_not_the_training(console, tmp_path):
    with RunLogger(tmp_path, "all", console) as logger:
        descriptors = Path("/proc/self/fd").iterdir()
        (log,) = [fd for fd in descriptors if fd.exists() and os.path.samefile(fd, logger.log_file)]
        full = os.open("/dev/full", os.O_WRONLY)
        os.dup2(full, int(log.name))
        os.close(full)
        logger.say("first")
        logger.say("second")
    assert shown(console).count("No space left on device") == 1
    assert [e["message"] for e in events(logger)] == ["first", "second"]


def test_plain_output_has_a_line_for_each_epoch(console, tmp_path):
    with RunLogger(tmp_path, "all", console) as logger, logger.training("mfcc", 3, tmp_path / "tb", nothing) as view:
        for count in (1, 2, 3):
            for step in range(1, 6):
                view.step(count, step, 5, 1.0, 0.5, 1e-3)
            view.epoch(epochs(count), better=count != 2)
        view.note("something")
    lines = shown(console).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("mfcc epoch 1/3  loss 2.0000  accuracy  50.0 %  validation loss 1.0000")
    assert [("* best" in line) for line in lines] == [True, False, True, False]
    assert lines[2].split(" left")[0].endswith("0:00")
    assert lines[3] == "mfcc: something"
    logged = [e for e in events(logger) if e["event"] == "epoch"]
    assert [(e["figures"]["epoch"], e["best"]) for e in logged] == [(1, True), (2, False), (3, True)]


def test_a_terminal_gets_a_progress_bar(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with RunLogger(tmp_path, "all", console) as logger, logger.training("mfcc", 2, tmp_path / "tb", nothing) as view:
        view.step(1, 1, 10, 1.234, 0.5, 1e-3)
        time.sleep(0.11)  # the bar shows ten states a second at most
        view.step(1, 2, 10, 1.111, 0.75, 1e-3)
        time.sleep(0.3)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(console))
    assert re.search(r"mfcc 1/2 .*loss 1\.111  accuracy 75\.0 %  rate 1\.0e-03 +[\d-]:", text)


@pytest.mark.parametrize("fails", [False, True])
def test_curves_are_drawn_now_and_then_and_at_the_end(fails, console, tmp_path):
    drawn: list[int] = []
    try:
        with (
            RunLogger(tmp_path, "all", console) as logger,
            logger.training("mfcc", 9, tmp_path / "tb", lambda history: drawn.append(len(history))) as view,
        ):
            for count in range(1, 5):
                view.epoch(epochs(count), better=True)
            assert drawn == [1]
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    assert drawn == [1, 4]


def test_tensorboard_gets_every_epoch_once_those_before_a_resume_too(console, tmp_path):
    with RunLogger(tmp_path, "all", console) as logger, logger.training("mfcc", 9, tmp_path / "tb", nothing) as view:
        view.epoch(epochs(3), better=True)
        view.epoch(epochs(4), better=True)
        view.catch_up(epochs(4))
    written = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(e.step, e.value) for e in written.Scalars("loss/validation")] == [
        (i, pytest.approx(1.0 / i)) for i in (1, 2, 3, 4)
    ]
    assert set(written.Tags()["scalars"]) >= {"loss/train", "accuracy/train", "accuracy/validation", "learning_rate"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_closed_pipe_does_not_end_the_run(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    program = (
        "import sys, pathlib; from ml_training.utils.logging_utils import RunLogger\n"
        f"with RunLogger(pathlib.Path({str(tmp_path)!r}), 'mfcc') as logger:\n"
        "    for number in range(3): logger.say(f'line {number}')\n"
        "print('done')"
    )
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", program], stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    (log,) = tmp_path.glob("*.log")
    assert len(log.read_text().splitlines()) == 3
