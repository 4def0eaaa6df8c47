"""`digits predict FOLDER --out TABLE` as a program: killed, stopped, short of memory and resumed."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import batch as batch_benchmark
import pytest

from digit_detector.labels import MFCC
from ml_training import inference

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of another kind")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., tuple[int, str, str]]
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path, tiny_models):
    """Start the program in `tmp_path`, on the folder `top` there."""

    def begin(out, *words, code="", top="top", **options):
        program = f"import sys\n{code}\nfrom ml_training.inference import main\nsys.exit(main())"
        command = [sys.executable, "-W", "error", "-c", program, top, "--out", out, "--model_dir", str(tiny_models)]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(
            [*command, *words], env=environment, text=True, encoding="utf-8", **{"cwd": tmp_path} | pipes | options
        )

    return begin


@pytest.fixture
def run(start):
    """Run it to its end: exit code, standard output, standard error."""

    def whole(*args, **kwargs):
        with start(*args, **kwargs) as process:
            out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    return whole


def wait_for_rows(part, process, size):
    """Wait until an unfinished table has so many bytes, or the process has ended."""
    deadline = time.monotonic() + 120
    while process.poll() is None and (not part.exists() or part.stat().st_size < size):
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_folder_becomes_a_table_of_what_predict_returns(
    tmp_path, tiny_folder, classifier, read_rows, name, run, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "top/clips")
    Path("top/notes.txt").touch()
    Path("top/empty.wav").touch()
    code, out, err = run(name, "--decoders", "2", "--batch_size", "7")
    assert (code, out) == (1, f"200 answers and 1 errors; 1 other files left out in {name}\n")
    assert err.startswith("answered by your own mfcc in ")
    rows = read_rows(Path(name))
    clips = sorted(f"top/clips/{path.name}" for path in tiny_folder.iterdir())
    assert [row["file"] for row in rows] == [*clips, "top/empty.wav"]
    assert "top/empty.wav is empty (0 bytes)" in rows.pop()["error"]
    for row in rows[::9]:
        answer = classifier.predict(row["file"])
        assert int(row["predicted_digit"]) == answer["predicted_digit"] == int(Path(row["file"]).name[0])
        assert float(row["confidence"]) == pytest.approx(answer["confidence"], abs=2e-6)
        assert float(row["digit_score"]) == pytest.approx(answer["digit_score"], abs=2e-6)
        assert row["is_digit"] in ("true", True)
        assert row["model"].endswith(answer["model"])
    assert sorted(path.name for path in Path().iterdir()) == ["top", name, f"{name}.state.json"]


def test_a_complete_table_is_resumed_or_replaced(tmp_path, make_clips, run, read_rows):
    """New files are predicted, those with an error are tried again, and nothing else changes."""
    make_clips(tmp_path / "top", ["b.wav", "d.wav"])
    (tmp_path / "top" / "c.wav").symlink_to(tmp_path / "unplugged.wav")
    assert run("x.csv")[:2] == (1, "2 answers and 1 errors in x.csv\n")
    first = read_rows(tmp_path / "x.csv")
    assert "No such file" in first[1]["error"]
    code, out, err = run("x.csv")
    assert (code, out) == (1, "")
    assert err == "error: x.csv exists already: --resume adds what it lacks, --overwrite replaces it\n"
    make_clips(tmp_path, ["unplugged.wav"])
    make_clips(tmp_path / "top", ["a.wav"])
    code, out, err = run("x.csv", "--resume")
    assert (code, out) == (0, "4 answers and 0 errors in x.csv\n")
    assert err.startswith("continuing x.csv\n")
    rows = read_rows(tmp_path / "x.csv")
    assert [row["file"] for row in rows] == [f"top/{name}.wav" for name in "abcd"]
    assert (rows[1], rows[3]) == (first[0], first[2])
    before = (tmp_path / "x.csv").stat()
    code, out, err = run("x.csv", "--resume")
    assert (code, out) == (0, "")
    assert err.endswith("x.csv is complete, with 4 answers and 0 errors: nothing to resume\n")
    assert (tmp_path / "x.csv").stat().st_mtime_ns == before.st_mtime_ns
    make_clips(tmp_path / "elsewhere" / "top", ["a.wav"])
    for words, options, why in (
        (("--model_dir", "pretrained", "--pipeline", "mel_cnn"), {}, "pipeline was mfcc, is mel_cnn"),
        (("--model_dir", "pretrained", "--pipeline", "mfcc"), {}, "model was "),
        (("unplugged.wav",), {}, "named was "),
        ((), {"cwd": tmp_path / "elsewhere"}, "working_folder was "),
    ):
        code, out, err = run(str(tmp_path / "x.csv"), "--resume", *words, **options)
        assert (code, out) == (1, "")
        assert re.fullmatch(f"error: .*x.csv is of another run: .*{why}.*\n", err)
    assert read_rows(tmp_path / "x.csv") == rows
    assert run("x.csv", "--overwrite", "--pipeline", "mfcc", "--model_dir", "pretrained")[0] == 0
    code, _, err = run("sub/new.csv", "--resume")
    assert code == 0
    assert err.startswith(f"no {Path('sub/new.csv')} to resume: starting anew\n")


# --- interruption --------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.parquet"])
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(tmp_path, make_clips, start, run, read_rows, name):
    if name == "x.parquet":
        pytest.importorskip("pyarrow")
    make_clips(tmp_path / "top", [f"{n % 7}/{n:04}.wav" for n in range(1200)])
    (tmp_path / "top" / "3" / "bad.wav").write_bytes(b"no sound")
    assert run(f"whole-{name}")[0] == 1
    whole = read_rows(tmp_path / f"whole-{name}")
    part, generator = tmp_path / f"{name}.part", random.Random(name)
    for number in range(5):
        with start(name, "--resume", "--batch_size", "4", "--decoders", "2") as process:
            wait_for_rows(part, process, generator.randrange(10_000, 20_000) * (number + 1))
            time.sleep(generator.random() / 50)
            process.kill()
        assert process.returncode == -signal.SIGKILL
        os.truncate(part, max(0, part.stat().st_size - generator.randrange(100)))  # as if killed within a row
    assert not (tmp_path / name).exists()
    assert run(name, "--resume")[0] == 1
    rows = read_rows(tmp_path / name)
    assert [row["file"] for row in rows] == [row["file"] for row in whole]
    for row, other in zip(rows, whole, strict=True):
        assert (row["predicted_digit"], row["error"]) == (other["predicted_digit"], other["error"])
        if not row["error"]:
            assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=3e-6)
    (tmp_path / "top" / "3" / "bad.wav").unlink()
    assert run(name, "--resume")[0] == 0
    assert [row["file"] for row in read_rows(tmp_path / name)] == [row["file"] for row in whole if not row["error"]]


@posix
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_ends_behind_a_whole_row(tmp_path, make_clips, start, run, read_rows, signum, code):
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(800)])
    with start("x.csv", "--batch_size", "4") as process:
        wait_for_rows(tmp_path / "x.csv.part", process, 5000)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    rows = len(read_rows(tmp_path / "x.csv.part"))
    assert 20 < rows < 800
    assert err.endswith(f"stopped: {rows} rows are in x.csv.part, --resume continues\n")
    assert run("x.csv")[2] == "error: x.csv.part exists already: --resume adds what it lacks, --overwrite replaces it\n"
    assert run("x.csv", "--resume")[0] == 0
    assert [row["file"] for row in read_rows(tmp_path / "x.csv")] == [f"top/{n:04}.wav" for n in range(800)]


# --- limits --------------------------------------------------------------------------------------


@posix
def test_a_file_that_may_not_grow_is_an_error_of_one_line(tmp_path, make_clips, run, read_rows):
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(300)])
    limited = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    code, out, err = run("x.csv", code=limited)
    assert (code, out) == (1, "")
    assert err == "error: cannot write x.csv.part: File too large; make room, and --resume continues its rows\n"
    assert run("x.csv", "--resume")[0] == 0
    assert len(read_rows(tmp_path / "x.csv")) == 300


LIMITED = """
import resource, sys
from pathlib import Path
import numpy, soundfile, soxr, onnxruntime
from ml_training import inference
load = inference.load_classifier
def loading(*args):
    classifier = load(*args)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (180 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return classifier
inference.load_classifier = loading
"""


@linux
def test_a_batch_that_memory_does_not_hold_is_halved(tmp_path, make_clips, run, read_rows):
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(2100)])
    code, out, err = run("x.csv", "--batch_size", "2048", "--decoders", "1", code=LIMITED)
    assert (code, out) == (0, "2,100 answers and 0 errors in x.csv\n"), err
    assert err.startswith("not enough memory for 2048 clips at once: going on with 1024\n")
    assert [row["file"] for row in read_rows(tmp_path / "x.csv")] == [f"top/{n:04}.wav" for n in range(2100)]


def test_impossible_requests_are_one_line(tmp_path, make_clips, tiny_models, capsys, monkeypatch):
    make_clips(tmp_path / "top", ["a.wav"])
    (tmp_path / "a.csv").mkdir()
    monkeypatch.chdir(tmp_path)
    for line, code, why in (
        ("top --out x.txt", 1, "x.txt ends in '.txt': expected one of .csv, .jsonl, .parquet"),
        ("top --out a.csv", 1, "a.csv is a folder"),
        ("top nowhere --out x.csv", 1, "'nowhere' is no file and no folder"),
        ("top top/a.wav --out x.csv", 1, "'top/a.wav' lies in 'top', which is named too"),
        ("top --out x.csv --batch_size many", 2, "expected 1 to .*, got 'many'"),
        ("top --out x.csv --decoders 0", 2, "expected 1 to 64, got '0'"),
        ("top --out x.csv --json", 2, "--json"),
        ("top --out x.csv --resume --overwrite", 2, "not allowed with argument --resume"),
        ("top --resume --batch_size 3", 2, "--batch_size, --resume: name a table with --out"),
        ("top --out x.csv --encoding alaw", 2, "--encoding and --rate are for single files"),
    ):
        try:
            left = inference.main([*line.split(), "--model_dir", str(tiny_models)])
        except SystemExit as error:
            left = int(str(error.code))
        printed = capsys.readouterr()
        assert (left, printed.out, len(printed.err.splitlines())) == (code, "", 1), printed
        assert re.search(why, printed.err)
    Path("top/a.wav").rename("top/a.txt")
    assert inference.main(["top", "--out", "x.csv", "--model_dir", str(tiny_models)]) == 1
    assert (
        "no recordings in top (1 other files): expected files whose names end in .wav, .flac" in capsys.readouterr().err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "top"]


# --- progress and memory -------------------------------------------------------------------------


@posix
def test_on_a_terminal_a_live_line_is_shown_without_rich(tmp_path, make_clips, start, monkeypatch):
    import pty

    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(300)])
    code = "import atexit\natexit.register(lambda: print(sorted({'rich', 'torch', 'pyarrow'} & set(sys.modules))))"
    monkeypatch.setenv("COLUMNS", "60")
    screen, terminal = pty.openpty()
    with start("x.csv", code=code, stderr=terminal) as process:
        out, _ = process.communicate(timeout=120)
    os.close(terminal)
    shown = os.read(screen, 1 << 16).decode()
    os.close(screen)
    assert process.returncode == 0, shown
    assert out.splitlines() == ["300 answers and 0 errors in x.csv", "[]"]
    assert re.match(r"\r[\d,]+ files, [\d,]+ a second, 0 without an answer, 0:00:00 *\r", shown)
    assert re.search(r"\r {59}\ranswered by your own mfcc in ", shown)


def peak_memory(process, part=None, size=0):
    """The most bytes of a process in memory until it has ended, or `part` has grown to `size`."""
    most = 0
    while process.poll() is None and (part is None or not part.exists() or part.stat().st_size < size):
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        most = max(most, int(found[1]) << 10 if found else 0)  # none of a process that has just ended
        time.sleep(0.01)
    return most


@linux
def test_many_files_killed_in_the_middle_take_the_memory_of_few(tmp_path, make_clips, start, read_rows):
    many = [f"{n // 500:03}/{n:06}.wav" for n in range(8000)] + [f"flat/{n:06}.wav" for n in range(8000)]
    make_clips(tmp_path / "many", many)
    (tmp_path / "few").mkdir()
    for name in many[:2000]:
        os.link(tmp_path / "many" / name, tmp_path / "few" / name.replace("/", "_"))
    with start("few.csv", top="few") as process:
        small = peak_memory(process)
    assert process.returncode == 0
    with start("many.csv", top="many") as process:
        killed = peak_memory(process, tmp_path / "many.csv.part", 3 * (tmp_path / "few.csv").stat().st_size)
        process.kill()
    with start("many.csv", "--resume", top="many") as process:
        resumed = peak_memory(process)
    assert process.returncode == 0
    rows = read_rows(tmp_path / "many.csv")
    assert [row["file"].removeprefix("many/") for row in rows] == many, "each once, none lost, in order"
    assert max(killed, resumed) < small + (16 << 20), (small >> 20, killed >> 20, resumed >> 20)


@linux
def test_long_recordings_take_no_more_memory_than_short_ones(capsys):
    """Whole, the three hours alone would take 345 MB."""
    words = ["--long", "--pipelines", MFCC, "--decoders", "2"]
    assert batch_benchmark.main([*words, "--copies", "12", "3"]) == 0, capsys.readouterr().out
    assert re.search(r"\| mfcc \| 15 \| 2 \| \d+ \| \d+ \|", capsys.readouterr().out)
    assert batch_benchmark.main([*words, "--minutes", "1", "--copies", "1", "--limit", "20"]) == 1
