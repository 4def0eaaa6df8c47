"""Entry points whose output is a closed pipe, a full disk or a terminal of few characters."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ml_training
from ml_training import train

FOLDER = Path(ml_training.__file__).parent
PROGRAM = "import sys; from digit_detector.cli.program import program; sys.exit(program(lambda argv: print({}) or 0)())"


def run(words, **options):
    """Run a program that prints the value of an expression."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.run([sys.executable, "-c", PROGRAM.format(words)], **pipes | options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="SIGPIPE, and a disk that is always full")
@pytest.mark.parametrize("words", ["'one line'", r"'many lines\n' * 100_000"])
def test_a_closed_pipe_ends_without_a_traceback_and_a_full_disk_with_one_line(words):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed, Path("/dev/full").open("wb") as full:
        done = run(words, stdout=closed)
        assert (done.returncode, done.stderr) == (141, b"")
        done = run(words, stdout=full)
    line = b"error: cannot write the output: No space left on device; make room\n"
    assert (done.returncode, done.stderr) == (1, line)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("PermissionError(13, 'Permission denied', 'models')", "Permission denied; change its rights or name another"),
        ("OSError(30, 'Read-only file system', 'models')", "Read-only file system; name another place"),
    ],
)
def test_a_folder_that_cannot_be_written_is_one_line(error, line):
    done = run(f"(_ for _ in ()).throw({error})", text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: models: {line}\n")


def test_characters_that_the_output_lacks_are_escaped():
    done = run(r"'\xe9\udcff'", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [rb"\xe9\udcff"], b"")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("script", ["train.py", "inference.py", "demo.py"])
def test_a_script_behind_a_link_finds_its_package_and_drops_its_folder(script, tmp_path):
    link = tmp_path / "bin" / script
    link.parent.mkdir()
    link.symlink_to(FOLDER / script)
    look = (
        f"import runpy, sys; sys.path.insert(0, {str(FOLDER)!r}); sys.argv = ['x', '--help']\n"  # as Python itself does
        f"try: runpy.run_path({str(link)!r}, run_name='__main__')\n"
        "except SystemExit: pass\n"
        f"print(sys.path[0], {str(FOLDER)!r} in sys.path)"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == f"{FOLDER.parent} False", done.stderr


def test_the_word_latest_is_not_left_in_the_command_to_go_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["digits train"])
    assert train.resume_command(["--resume", "latest", "--seed", "4"]) == "digits train --seed 4 --resume"
