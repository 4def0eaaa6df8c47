"""What doors owe to pipes that close and to terminals of few signs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ml_training
from ml_training import train

DOORS = Path(ml_training.__file__).parent
SAY = "import sys; from digit_detector.cli.program import program; sys.exit(program(lambda argv: print({}) or 0)())"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("words", ["'one line'", r"'many lines\n' * 100_000"])
def test_a_reader_that_stops_reading_ends_a_door_without_a_traceback(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run([sys.executable, "-c", SAY.format(words)], stdout=closed, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full is Linux's")
@pytest.mark.parametrize("words", ["'one line'", r"'many lines\n' * 100_000"])
def test_a_full_disk_behind_the_output_is_one_line(words):
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", SAY.format(words)], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "error: cannot write the output: No space left on device; make room\n")


def test_a_locked_folder_is_one_line():
    look = SAY.format("(_ for _ in ()).throw(PermissionError(13, 'Permission denied', 'models'))")
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: models: Permission denied; change its rights or name another\n"


def test_a_folder_that_is_only_to_be_read_is_one_line():
    look = SAY.format("(_ for _ in ()).throw(OSError(30, 'Read-only file system', 'models'))")
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: models: Read-only file system; name another place\n"


def test_signs_that_the_output_lacks_are_escaped():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", SAY.format(r"'\xe9\udcff'")], capture_output=True, env=environment)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [rb"\xe9\udcff"], b"")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("door", ["train.py", "inference.py", "demo.py"])
def test_a_door_behind_a_link_finds_its_package_and_drops_its_folder(door, tmp_path):
    link = tmp_path / "bin" / door
    link.parent.mkdir()
    link.symlink_to(DOORS / door)
    look = (
        f"import runpy, sys; sys.path.insert(0, {str(DOORS)!r}); sys.argv = ['x', '--help']\n"  # as Python itself does
        f"try: runpy.run_path({str(link)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print(sys.path[0], {str(DOORS)!r} in sys.path)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"{DOORS.parent} False", done.stderr


def test_the_word_latest_is_not_left_in_the_command_to_go_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digits train"])
    assert train.resume_command(["--resume", "latest", "--seed", "4"]) == "digits train --seed 4 --resume"
