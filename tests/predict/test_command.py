"""The whole of it, as a program: killed, stopped, starved and resumed."""

from __future__ import annotations

import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import batch as long_recordings
import pytest

from digit_detector.classifier import DigitClassifier
from digit_detector.errors import ConfigError
from ml_training import inference
from ml_training.predict.command import BatchRequest, answer_all, default_decoders

posix = pytest.mark.skipif(os.name == "nt", reason="signals and limits of another kind")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or measures memory by rusage")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def start(tmp_path: Path, tiny_models: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the door in `tmp_path`, on the folder `top` there."""

    def begin(
        out: str, *words: str | Path, code: str = "", top: str = "top", folder: str = ""
    ) -> subprocess.Popen[str]:
        door = ["-c", f"import sys\n{code}\nfrom ml_training.inference import main\nsys.exit(main())"]
        command = [sys.executable, "-W", "error", *door, top, "--out", out, "--model_dir", str(tiny_models), *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
        return subprocess.Popen(
            [str(word) for word in command], cwd=tmp_path / folder, env=environment, text=True, encoding="utf-8",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    return begin


@pytest.fixture
def run(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., tuple[int, str, str]]:
    """Run it to its end: exit code, what was printed, and what was told beside."""

    def whole(*args: str | Path, **kwargs: str) -> tuple[int, str, str]:
        with start(*args, **kwargs) as process:
            printed, told = process.communicate(timeout=300)
        return process.returncode, printed, told

    return whole


def grown(part: Path, process: subprocess.Popen[str], size: int) -> None:
    """Wait until an unfinished table has so many bytes, or the process is done."""
    deadline = time.monotonic() + 120
    while process.poll() is None and (not part.exists() or part.stat().st_size < size):
        assert time.monotonic() < deadline
        time.sleep(0.002)


def answers_of(rows: Sequence[dict[str, str]]) -> dict[str, tuple[str, str]]:
    return {row["file"]: (row["predicted_digit"], row["error"]) for row in rows}


# --- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_a_folder_becomes_a_table_of_what_predict_says(
    tmp_path, tiny_folder, classifier: DigitClassifier, read_rows, name, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, "top/clips")
    Path("top/notes.txt").touch()
    Path("top/empty.wav").touch()
    outcome = answer_all(classifier, BatchRequest(("top",), Path(name), decoders=2, batch_size=7))
    assert str(outcome) == "200 answers and 1 errors; 1 other files left out"
    rows = read_rows(Path(name))
    assert [row["file"] for row in rows] == [
        *sorted(f"top/clips/{p.name}" for p in tiny_folder.iterdir()),
        "top/empty.wav",
    ]
    assert "top/empty.wav is empty (0 bytes)" in rows.pop()["error"]
    for row in rows[::9]:
        answer = classifier.predict(row["file"])
        assert int(row["predicted_digit"]) == answer["predicted_digit"] == int(Path(row["file"]).name[0])
        assert float(row["confidence"]) == pytest.approx(answer["confidence"], abs=2e-6)
        assert float(row["digit_score"]) == pytest.approx(answer["digit_score"], abs=2e-6)
        assert row["is_digit"] in ("true", True)
        assert row["model"] == answer["model"]
    told = capsys.readouterr()
    assert told.out == ""
    assert sorted(path.name for path in Path().iterdir()) == ["top", name, f"{name}.state.json"]


def test_one_file_without_an_answer_leaves_with_1(tmp_path, make_clips, run) -> None:
    make_clips(tmp_path / "top", ["a.wav", "b.wav"])
    assert run("x.csv")[:2] == (0, "2 answers and 0 errors in x.csv\n")
    (tmp_path / "top" / "b.wav").write_bytes(b"no sound")
    code, printed, told = run("x.csv")
    assert (code, printed) == (1, "")
    assert told == "error: x.csv is there already: --resume adds what it lacks, --overwrite replaces it\n"
    code, printed, told = run("x.csv", "--overwrite")
    assert (code, printed) == (1, "1 answers and 1 errors in x.csv\n")
    assert told.startswith("answered by your own mfcc in ")


def test_a_whole_table_is_resumed(tmp_path, make_clips, run, read_rows) -> None:
    """What came is answered, what had an error is tried again, and nothing else happens."""
    make_clips(tmp_path / "top", ["b.wav", "d.wav"])
    (tmp_path / "top" / "c.wav").symlink_to(tmp_path / "unplugged.wav")
    assert run("x.csv")[:2] == (1, "2 answers and 1 errors in x.csv\n")
    first = read_rows(tmp_path / "x.csv")
    make_clips(tmp_path, ["unplugged.wav"])
    make_clips(tmp_path / "top", ["a.wav"])
    code, printed, told = run("x.csv", "--resume")
    assert (code, printed) == (0, "4 answers and 0 errors in x.csv\n")
    assert told.startswith("going on behind 2 rows with an answer; 1 with an error are answered again\n")
    rows = read_rows(tmp_path / "x.csv")
    assert [row["file"] for row in rows] == [f"top/{name}.wav" for name in "abcd"]
    assert (rows[1], rows[3]) == (first[0], first[2])
    before = (tmp_path / "x.csv").stat()
    code, printed, told = run("x.csv", "--resume")
    assert (code, printed) == (0, "")
    assert told.endswith("x.csv is whole, with 4 answers and 0 errors: nothing to resume\n")
    assert (tmp_path / "x.csv").stat().st_mtime_ns == before.st_mtime_ns
    make_clips(tmp_path / "elsewhere" / "top", ["a.wav"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere", "top", "unplugged.wav", "x.csv", "x.csv.state.json",
    ]  # fmt: skip
    for words, folder, why in (
        (("--model_dir", "pretrained", "--pipeline", "mel_cnn"), "", "pipeline was mfcc, is mel_cnn"),
        (("--model_dir", "pretrained", "--pipeline", "mfcc"), "", "model was "),
        (("unplugged.wav",), "", "named was top, is top, unplugged.wav"),
        ((), "elsewhere", f"working_folder was {tmp_path}, is {tmp_path}/elsewhere"),
    ):
        words = (str(tmp_path / "x.csv"), "--resume", *words) if folder else ("x.csv", "--resume", *words)
        code, printed, told = run(*words, folder=folder)
        assert (code, printed) == (1, "")
        assert re.fullmatch(f"error: .*x.csv belongs to another run: .*{why}.*\n", told)
    (tmp_path / "notes.csv").write_text("mine\n")
    code, printed, told = run("notes.csv", "--resume")
    assert (code, printed, len(told.splitlines())) == (1, "", 1)
    assert "notes.csv (5 bytes) cannot be gone on with: notes.csv.state.json, which says what it answers, is" in told
    assert (tmp_path / "notes.csv").read_text() == "mine\n"
    assert read_rows(tmp_path / "x.csv") == rows


def test_control_characters_in_names_do_not_reach_the_terminal(tmp_path, make_clips, run, read_rows) -> None:
    odd = "\x1b]0;mine\x07\x9b2J\n.wav"
    make_clips(tmp_path / f"top{odd}", [odd])
    out = f"{odd}.csv"
    told = "".join("".join(map(str, run(out, "--resume", top=f"top{odd}"))) for _ in range(2))
    told += str(run(out, top=f"top{odd}"))
    (tmp_path / out).write_text("mine\n")
    told += "".join("".join(map(str, run(name, "--resume", top=f"top{odd}"))) for name in (out, f"{odd}.txt"))
    assert "1 answers and 0 errors in \\x1b]0;mine\\x07\\x9b2J\\n.wav.csv\n" in told
    assert "nothing to resume" in told
    assert "cannot be gone on with" in told
    assert not set(told) & {"\x1b", "\x07", "\x9b"}


def test_parquet_is_written_and_resumed(tmp_path, make_clips, start, run, read_rows) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(600)])
    with start("x.parquet", "--batch_size", "8") as process:
        grown(tmp_path / "x.parquet.part", process, 5000)
        process.kill()
    assert not (tmp_path / "x.parquet").exists()
    code, printed, told = run("x.parquet", "--resume")
    assert (code, printed) == (0, "600 answers and 0 errors in x.parquet\n")
    assert "going on behind " in told
    files = parquet.read_table(tmp_path / "x.parquet").column("file").to_pylist()
    assert files == [f"top/{n:04}.wav" for n in range(600)]


# --- interruption --------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_killed_again_and_again_it_ends_as_if_nothing_had_been(
    tmp_path, make_clips, start, run, read_rows, name
) -> None:
    places = [f"{n % 7}/{n:04}.wav" for n in range(1200)]
    make_clips(tmp_path / "top", places)
    (tmp_path / "top" / "3" / "bad.wav").write_bytes(b"no sound")
    assert run(f"whole-{name}")[0] == 1
    whole = read_rows(tmp_path / f"whole-{name}")
    part, kills, generator = tmp_path / f"{name}.part", 0, random.Random(name)
    for _ in range(6):
        before = part.stat().st_size if part.exists() else 0
        with start(name, "--resume", "--batch_size", "4", "--decoders", "2") as process:
            grown(part, process, before + generator.randrange(10_000, 30_000))
            time.sleep(generator.random() / 50)
            process.kill()
            kills += process.wait() == -signal.SIGKILL
        with part.open("r+b") as file:  # as if it had been killed within a row
            file.truncate(max(0, part.stat().st_size - generator.randrange(100)))
    assert kills == 6
    assert run(name, "--resume")[0] == 1
    rows = read_rows(tmp_path / name)
    assert [row["file"] for row in rows] == [row["file"] for row in whole]
    assert answers_of(rows) == answers_of(whole)
    for row, other in zip(rows, whole, strict=True):
        if not row["error"]:
            assert float(row["confidence"]) == pytest.approx(float(other["confidence"]), abs=3e-6)
    (tmp_path / "top" / "3" / "bad.wav").unlink()
    assert run(name, "--resume")[0] == 0
    assert [row["file"] for row in read_rows(tmp_path / name)] == [row["file"] for row in whole if not row["error"]]


@posix
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_ends_behind_a_whole_row(tmp_path, make_clips, start, run, read_rows, signum, code) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(800)])
    with start("x.csv", "--batch_size", "4") as process:
        grown(tmp_path / "x.csv.part", process, 5000)
        process.send_signal(signum)
        printed, told = process.communicate(timeout=60)
    assert (process.returncode, printed) == (code, "")
    rows = len(read_rows(tmp_path / "x.csv.part"))
    assert told.endswith(f"stopped: {rows} rows are in x.csv.part, --resume goes on\n")
    assert 20 < rows < 800
    refused, _, why = run("x.csv")
    assert refused == 1
    assert "x.csv.part holds the rows of a run that did not end: --resume goes on with it" in why
    assert len(why.splitlines()) == 1
    assert run("x.csv", "--resume")[0] == 0
    assert [row["file"] for row in read_rows(tmp_path / "x.csv")] == [f"top/{n:04}.wav" for n in range(800)]


@posix
def test_what_came_and_went_meanwhile_is_neither_lost_nor_repeated(tmp_path, make_clips, start, run, read_rows) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(0, 800, 2)])
    with start("x.csv", "--batch_size", "4") as process:
        grown(tmp_path / "x.csv.part", process, 8000)
        process.kill()
    make_clips(tmp_path / "top", ["0001.wav", "0003/a.wav", "0799.wav"])
    (tmp_path / "top" / "0000.wav").unlink()
    (tmp_path / "top" / "0798.wav").unlink()
    assert run("x.csv", "--resume")[0] == 0
    files = [row["file"].removeprefix("top/") for row in read_rows(tmp_path / "x.csv")]
    assert len(files) == len(set(files))
    assert set(files) == {f"{n:04}.wav" for n in range(0, 798, 2)} | {"0001.wav", "0003/a.wav", "0799.wav"}


def test_a_file_that_vanishes_while_it_is_waiting_is_a_row(tmp_path, make_clips, run, read_rows) -> None:
    make_clips(tmp_path / "top", [f"{n:03}.wav" for n in range(60)])
    vanishing = """
import os, sys
from ml_training.predict import decoding
before = decoding._decode_all
def removing(stretch):
    for gone in stretch[1:3]:
        if os.path.exists(gone.name):
            os.unlink(gone.name)
    return before(stretch)
decoding._decode_all = removing
"""
    code, printed, _ = run("x.csv", "--decoders", "1", code=vanishing)
    assert (code, printed) == (1, "52 answers and 8 errors in x.csv\n")
    rows = read_rows(tmp_path / "x.csv")
    assert len(rows) == 60
    assert Counter(row["error"].rsplit(": ")[-1] for row in rows) == {"": 52, "No such file or directory": 8}


def test_settings_of_another_run_are_refused(tmp_path, make_clips, start, run, read_rows, tiny_models) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(400)])
    make_clips(tmp_path / "more", ["a.wav"])
    with start("x.csv", "--batch_size", "4") as process:
        grown(tmp_path / "x.csv.part", process, 5000)
        process.kill()
    kept = (tmp_path / "x.csv.part").read_bytes()
    for words, told in {
        ("--model_dir", "pretrained", "--pipeline", "mel_cnn"): "pipeline was mfcc, is mel_cnn",
        ("--model_dir", "pretrained", "--pipeline", "mfcc"): "model was ",
        ("more",): "named was top, is more, top",
    }.items():
        code, printed, why = run("x.csv", "--resume", *words)
        assert (code, printed) == (1, "")
        assert re.fullmatch(f"error: x.csv.part belongs to another run: .*{told}.*\n", why)
    assert (tmp_path / "x.csv.part").read_bytes() == kept
    assert run("x.csv", "--resume", "--batch_size", "auto", "--decoders", "3", "--threads", "2")[0] == 0


def test_nothing_to_resume_starts_anew_and_says_so(tmp_path, make_clips, run) -> None:
    make_clips(tmp_path / "top", ["a.wav"])
    code, printed, told = run("sub/x.csv", "--resume")
    assert (code, printed) == (0, "1 answers and 0 errors in sub/x.csv\n")
    assert told.startswith(f"no {Path('sub/x.csv')} and no x.csv.part to resume: starting anew\n")


# --- what cannot be ------------------------------------------------------------------------------


@posix
def test_a_file_that_may_not_grow_is_a_clear_line(tmp_path, make_clips, run, read_rows) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(300)])
    limited = "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))"
    code, printed, told = run("x.csv", code=limited)
    assert (code, printed) == (1, "")
    assert re.fullmatch(
        r"error: cannot write x.csv.part: File too large; the \d+ rows before are whole: .*--resume goes on\n", told
    )
    assert read_rows(tmp_path / "x.csv.part")
    assert run("x.csv", "--resume")[0] == 0
    assert len(read_rows(tmp_path / "x.csv")) == 300


@linux
def test_a_batch_that_memory_cannot_hold_goes_on_in_halves(tmp_path, make_clips, run, read_rows) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(2100)])
    limited = """
import resource, sys
from pathlib import Path
import numpy, soundfile, soxr, onnxruntime
from ml_training import inference
from ml_training.predict import command
load = inference.load_classifier
def loading(*args):
    classifier = load(*args)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + (180 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return classifier
inference.load_classifier = loading
"""
    code, printed, told = run("x.csv", "--batch_size", "2048", "--decoders", "1", code=limited)
    assert (code, printed) == (0, "2,100 answers and 0 errors in x.csv\n"), told
    assert re.match(r"not enough memory for 2048 clips at once: going on with 1024\n", told)
    assert [row["file"] for row in read_rows(tmp_path / "x.csv")] == [f"top/{n:04}.wav" for n in range(2100)]


def test_what_cannot_be_meant_is_one_line(tmp_path, make_clips, run) -> None:
    make_clips(tmp_path / "top", ["a.wav"])
    (tmp_path / "a.csv").mkdir()
    for words, code, told in (
        (("x.txt",), 1, r"x.txt ends in '.txt': expected one of .csv, .jsonl, .parquet"),
        (("a.csv",), 1, "a.csv is a folder"),
        (("x.csv", "nowhere"), 1, "'nowhere' is no file and no folder"),
        (("x.csv", "top/a.wav"), 1, "'top/a.wav' lies in 'top', which is named too"),
        (("x.csv", "--batch_size", "many"), 2, "batch_size: expected a number or auto, got 'many'"),
        (("x.csv", "--batch_size", "0", "--decoders", "0"), 2, "2 faults .* got 0; decoders: expected 1 to 64, got 0"),
        (("x.csv", "--json"), 2, "json: a table is asked for"),
        (("x.csv", "--resume", "--overwrite"), 2, "resume goes on with a table and overwrite replaces it: give one"),
    ):
        left, printed, why = run(*words)
        assert (left, printed, len(why.splitlines())) == (code, "", 1)
        assert re.search(told, why)
    (tmp_path / "top" / "a.wav").rename(tmp_path / "top" / "a.txt")
    code, _, why = run("x.csv")
    assert code == 1
    assert "no recordings in top (1 other files): expected files whose names end in .wav, .flac" in why
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "top"]


def test_flags_of_a_table_want_a_table(capsys) -> None:
    assert inference.main(["x.wav", "--resume", "--batch_size", "3"]) == 2
    assert "batch_size belongs to a table: name one with --out; resume belongs" in capsys.readouterr().err


def test_requests_are_checked(tmp_path) -> None:
    assert 1 <= default_decoders() <= 8
    with pytest.raises(ConfigError, match="batch_size: expected 1 or more, or auto, got 0"):
        BatchRequest(("x",), tmp_path / "x.csv", batch_size=0)
    with pytest.raises(ConfigError, match="decoders: expected 1 to 64, got 65"):
        BatchRequest(("x",), tmp_path / "x.csv", decoders=65)


def test_a_folder_that_is_gone_is_no_empty_folder(tmp_path, make_clips, start, run) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(400)])
    with start("x.csv", "--batch_size", "4") as process:
        grown(tmp_path / "x.csv.part", process, 5000)
        process.kill()
    (tmp_path / "top").rename(tmp_path / "unplugged")
    code, _, why = run("x.csv", "--resume")
    assert code == 1
    assert "'top' is no file and no folder (No such file or directory): name what is there" in why
    assert (tmp_path / "x.csv.part").exists()


# --- what is shown, and what it takes ------------------------------------------------------------


@posix
def test_on_a_terminal_a_live_line_is_shown_without_rich(tmp_path, make_clips, tiny_models) -> None:
    make_clips(tmp_path / "top", [f"{n:04}.wav" for n in range(300)])
    code = (
        "import sys\nfrom ml_training.inference import main\n"
        "left = main(['top', '--out', 'x.csv', '--model_dir', sys.argv[1]])\n"
        "print(sorted({'rich', 'torch', 'pyarrow', 'multiprocessing'} & set(sys.modules)))\nsys.exit(left)"
    )
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", code, str(tiny_models)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "60"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=theirs, timeout=120)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0, shown
    assert done.stdout.decode().splitlines() == ["300 answers and 0 errors in x.csv", "[]"]
    assert re.match(r"\r[\d,]+ files, [\d,]+ a second, 0 without an answer, 0:00:00 *\r", shown)
    assert re.search(rf"\r {{59}}\ranswered by your own mfcc in .*{re.escape(tiny_models.name)}", shown)


def peak(process: subprocess.Popen[str], part: Path | None = None, size: int = 0) -> int:
    """The most memory of a process in bytes, until it has ended or `part` has grown to `size`.

    Read while it runs: what the system tells in the end, rusage, counts the process that started it too.
    """
    most = 0
    while process.poll() is None and (part is None or not part.exists() or part.stat().st_size < size):
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        most = max(most, int(found[1]) << 10 if found else 0)  # none of a process that has just ended
        time.sleep(0.01)
    return most


@linux
def test_a_hundred_thousand_files_killed_in_the_middle_take_the_memory_of_ten_thousand(
    tmp_path, make_clips, start, read_rows
) -> None:
    """Each file is a recording of its own; half of them lie in one folder, which is listed in pieces."""
    many = [f"{n // 500:03}/{n:06}.wav" for n in range(50_000)] + [f"flat/{n:06}.wav" for n in range(50_000)]
    few = many[45_000:55_000]
    make_clips(tmp_path / "many", many)
    for name in few:
        (tmp_path / "few" / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(tmp_path / "many" / name, tmp_path / "few" / name)
    with start("few.csv", top="few") as process:
        small = peak(process)
    assert process.returncode == 0
    with start("many.csv", top="many") as process:
        killed = peak(process, tmp_path / "many.csv.part", 5 * (tmp_path / "few.csv").stat().st_size)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = (tmp_path / "many.csv.part").read_bytes().count(b"\n") - 1
    assert 45_000 < done < 80_000
    with start("many.csv", "--resume", top="many") as process:
        resumed = peak(process)
    assert process.returncode == 0
    rows = read_rows(tmp_path / "many.csv")
    assert [row["file"].removeprefix("many/") for row in rows] == many, "each once, none lost, in order"
    for row, undisturbed in zip(rows[45_000:], read_rows(tmp_path / "few.csv"), strict=False):
        assert row["file"].removeprefix("many/") == undisturbed["file"].removeprefix("few/")
        assert row["predicted_digit"] == undisturbed["predicted_digit"]
        assert float(row["confidence"]) == pytest.approx(float(undisturbed["confidence"]), abs=3e-6)
    print(f"peak memory in MB: {small >> 20} of 10,000 files; of 100,000 {killed >> 20}, resumed {resumed >> 20}")
    assert max(killed, resumed) < small + (16 << 20)


@linux
def test_long_recordings_take_no_more_memory_than_short_ones(capsys) -> None:
    """Whole, the three hours alone would take 345 MB."""
    words = ["--long", "--pipelines", "mfcc", "--decoders", "2"]
    assert long_recordings.main([*words, "--copies", "12", "3"]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert re.search(r"\| mfcc \| 15 \| 2 \| \d+ \| \d+ \|", printed)
    assert long_recordings.main([*words, "--minutes", "1", "--copies", "1", "--limit", "20"]) == 1
