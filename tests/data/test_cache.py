"""The cache: whole entries or none, by whoever writes, whatever kills it and however full the disk is."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from digit_detector.errors import DataError
from ml_training.data import cache
from ml_training.data.array_file import Block
from ml_training.data.cache import Cache, caching, kept

KEY = {"data": "a", "setting": 1}
ROOT = Path(__file__).resolve().parents[2]


def blocks(count: int = 3, rows: int = 5, value: int = 0) -> Iterator[Block]:
    for number in range(count):
        first = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 100 * number + value
        yield {"samples": first, "labels": np.arange(rows) + number}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def filled(folder: Path, **kwargs: object) -> Cache:
    found = Cache(folder, **kwargs)  # type: ignore[arg-type]
    assert found.keep("things", KEY, blocks()) is not None
    return found


def test_what_was_kept_is_found_again_mapped_and_as_it_was(folder: Path) -> None:
    filled(folder)
    stored = Cache(folder).find("things", KEY)
    assert stored is not None
    expected = list(blocks())
    np.testing.assert_array_equal(stored.arrays["samples"], np.concatenate([b["samples"] for b in expected]))
    np.testing.assert_array_equal(stored.arrays["labels"], np.concatenate([b["labels"] for b in expected]))
    assert stored.arrays["samples"].dtype == np.float32
    assert set(stored.places) == {"samples", "labels"}
    with pytest.raises(ValueError, match="read-only"):
        stored.arrays["samples"][0] = 1


@pytest.mark.parametrize("other", [{"data": "b", "setting": 1}, {"data": "a", "setting": 2}, {"data": "a"}])
def test_another_key_finds_nothing(folder: Path, other: dict[str, object]) -> None:
    found = filled(folder)
    assert found.find("things", other) is None
    assert found.find("others", KEY) is None
    assert (found.hits, found.misses) == (0, 2)


def test_a_file_under_another_keys_name_is_not_believed(folder: Path) -> None:
    lines: list[str] = []
    found = filled(folder, report=lines.append)
    other = {**KEY, "setting": 2}
    found.path("things", KEY).rename(found.path("things", other))
    assert found.find("things", other) is None
    assert "of another key" in lines[0]


def test_the_code_that_makes_an_entry_is_part_of_its_key(tmp_path: Path) -> None:
    module = tmp_path / "front_end_of_a_test.py"
    module.write_text("HOP = 80\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import front_end_of_a_test  # type: ignore[import-not-found]

        before = cache.code_hash(front_end_of_a_test)
        module.write_text("HOP = 81\n")
        assert cache.code_hash("front_end_of_a_test") != before
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("cut", [1, 30, 300, 10_000])
def test_a_cut_entry_is_removed_and_made_anew(folder: Path, cut: int) -> None:
    lines: list[str] = []
    found = filled(folder, report=lines.append)
    path = found.path("things", KEY)
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])
    with caching(found):
        again = kept("things", lambda: KEY, blocks)
    assert "damaged" in lines[0]
    np.testing.assert_array_equal(again.arrays["labels"][:5], np.arange(5))
    assert path.read_bytes() == content


def test_a_changed_description_is_noticed_at_once_and_a_changed_byte_by_a_check(folder: Path) -> None:
    found = filled(folder)
    path = found.path("things", KEY)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[3] ^= 1
    path.write_bytes(flipped)
    assert [entry.fault for entry in found.entries(check=True)] == ["samples has another checksum"]
    path.write_bytes(whole.replace(b'"offset": 0', b'"offset": 8'))
    assert found.find("things", KEY) is None
    assert not path.exists()


def test_the_oldest_go_where_there_is_no_room(folder: Path) -> None:
    found = Cache(folder, limit=10**6)
    for number in range(4):
        assert found.keep("things", {"number": number}, blocks(rows=5000)) is not None  # 240 kB and 120 kB each
        os.utime(found.path("things", {"number": number}), (number, number))
    assert found.find("things", {"number": 0}) is None, "three of 360 kB are more than a megabyte"
    assert found.find("things", {"number": 2}) is not None  # used just now
    assert found.keep("things", {"number": 4}, blocks(rows=5000)) is not None
    left = {entry.path for entry in found.entries()}
    assert left == {found.path("things", {"number": number}) for number in (2, 4)}


def test_an_entry_above_the_limit_is_not_kept_and_everything_else_stays(folder: Path) -> None:
    lines: list[str] = []
    found = filled(folder, limit=10_000, report=lines.append)
    with caching(found):
        stored = kept("large", lambda: KEY, lambda: blocks(rows=5000))
    assert stored.places == {}
    assert len(stored.arrays["samples"]) == 15_000
    assert "larger than the limit" in lines[0]
    assert found.find("things", KEY) is not None
    assert not [path for path in folder.iterdir() if path.suffix == ".part"]


def test_an_error_of_whoever_makes_an_entry_is_passed_on_and_leaves_nothing(folder: Path) -> None:
    def broken() -> Iterator[Block]:
        yield from blocks(1)
        raise OSError(5, "the recordings' disk is gone")

    with pytest.raises(OSError, match="recordings"):
        Cache(folder).keep("things", KEY, broken())
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("folder", ["file/below", "closed/below"])
def test_a_folder_that_cannot_be_had_costs_one_line(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "closed").mkdir(mode=0o500)
    if folder.startswith("closed") and os.access(tmp_path / "closed", os.W_OK):
        pytest.skip("the superuser may write everywhere")
    lines: list[str] = []
    with caching(Cache(tmp_path / folder, report=lines.append)):
        for _ in range(2):
            assert len(kept("things", lambda: KEY, blocks).arrays["samples"]) == 15
    assert len(lines) == 1
    assert "going on without" in lines[0]


def test_a_full_disk_costs_one_line(folder: Path) -> None:
    lines: list[str] = []
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with caching(Cache(folder, report=lines.append)):
            stored = kept("things", lambda: KEY, lambda: blocks(rows=5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(stored.arrays["samples"]) == 15_000
    assert len(lines) == 1
    assert "cannot write" in lines[0]
    assert list(folder.iterdir()) == []


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from ml_training.data.cache import Cache
def blocks():
    for number in range(int(sys.argv[2])):
        print(number, flush=True)
        time.sleep(float(sys.argv[3]))
        yield {"samples": np.full((1000, 8), number, np.float32)}
assert Cache(Path(sys.argv[1])).keep("things", {"data": "a"}, blocks()) is not None
"""


def writer(folder: Path, count: int, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder), str(count), str(pause)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_killed_writer_leaves_no_entry_and_what_it_left_is_swept_up(folder: Path) -> None:
    process = writer(folder, 1000, 0.01)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    process.kill()
    process.communicate()
    found = Cache(folder)
    (part,) = list(folder.iterdir())
    assert part.suffix == ".part"
    assert found.entries() == []
    assert found.find("things", {"data": "a"}) is None
    os.utime(part, (time.time() - 10,) * 2)
    filled(folder)
    assert not part.exists()


def test_what_somebody_is_writing_is_not_swept_up(folder: Path) -> None:
    process = writer(folder, 3, 0.6)
    assert process.stdout is not None
    process.stdout.readline()
    (part,) = list(folder.iterdir())
    os.utime(part, (time.time() - 10_000,) * 2)
    found = filled(folder)
    assert found.clear()
    process.communicate()
    assert process.returncode == 0
    assert found.find("things", {"data": "a"}) is not None


def test_of_processes_that_write_at_once_each_finds_a_whole_entry(folder: Path) -> None:
    processes = [writer(folder, 50, 0.002) for _ in range(3)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    (entry,) = Cache(folder).entries(check=True)
    assert entry.fault == ""
    stored = Cache(folder).find("things", {"data": "a"})
    assert stored is not None
    assert len(stored.arrays["samples"]) == 50_000
    assert [path for path in folder.iterdir() if path.suffix == ".part"] == []


def test_threads_that_clear_and_fill_do_not_disturb_who_reads(folder: Path) -> None:
    filled(folder)
    stored = Cache(folder).find("things", KEY)
    assert stored is not None
    ended = threading.Event()

    def restless() -> None:
        while not ended.is_set():
            Cache(folder).clear()
            filled(folder)

    thread = threading.Thread(target=restless)
    thread.start()
    try:
        for _ in range(50):
            with caching(Cache(folder)):
                assert len(kept("things", lambda: KEY, blocks).arrays["samples"]) == 15
    finally:
        ended.set()
        thread.join()
    assert stored.arrays["samples"][14, 3] == 219, "a map outlives its file's name"


def test_a_limit_is_remembered_and_holds_for_every_run(folder: Path) -> None:
    found = filled(folder)
    assert len(found.set_limit(10)) == 1
    assert Cache(folder).limit == 10
    (folder / "limit").write_text("many\n")
    assert Cache(folder).limit == cache.DEFAULT_LIMIT


def test_a_folder_that_cannot_be_cleared_is_an_error(folder: Path) -> None:
    folder.write_text("")
    with pytest.raises(DataError, match="name another folder in"):
        Cache(folder / "below").set_limit(5)


def test_objects_are_never_kept(folder: Path) -> None:
    with pytest.raises(ValueError, match="numbers alone"):
        Cache(folder).keep("things", KEY, [{"samples": np.array([{}], dtype=object)}])


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="becomes a user without a home")
def test_a_user_without_a_home_is_one_line() -> None:
    become = (
        "import os\nfrom ml_training.data.cache import Cache\nfrom digit_detector.errors import DataError\n"
        "os.setuid(54321)\ntry: Cache()\nexcept DataError as error: print(error)"
    )
    spared = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "DIGIT_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", become], capture_output=True, text=True, env=spared)
    assert "name one in $DIGIT_CACHE_DIR, or train with --no_cache" in done.stdout, done.stderr
