"""The array cache: complete entries or none, whatever kills a writer, fills the disk or damages a file."""

import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from digit_detector.errors import DataError
from ml_training.config import TrainConfig
from ml_training.data import feature_cache
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, get_or_compute, use_cache
from ml_training.data.mapped_arrays import concatenate, content_hash, take

KEY = {"data": "a", "setting": 1}


def blocks(count=3, rows=5):
    for number in range(count):
        first = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + 100 * number
        yield {"samples": first, "labels": np.arange(rows) + number}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def filled(folder, **kwargs):
    cache = Cache(folder, **kwargs)  # type: ignore[arg-type]
    assert cache.store("things", KEY, blocks()) is not None
    return cache


def leftovers(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_an_entry_is_found_memory_mapped_under_its_key_alone(folder):
    filled(folder)
    cache = Cache(folder)
    arrays = cache.find("things", KEY)
    assert arrays is not None
    for name in ("samples", "labels"):
        expected = np.concatenate([block[name] for block in blocks()])
        np.testing.assert_array_equal(arrays[name], expected)
        assert arrays[name].dtype == expected.dtype
    assert isinstance(arrays["samples"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        arrays["samples"][0] = 1
    assert json.loads((cache.path("things", KEY) / "entry.json").read_text())["key"] == KEY
    np.load(cache.path("things", KEY) / "samples.npy", allow_pickle=False)
    for other in ({"data": "b", "setting": 1}, {"data": "a", "setting": 2}, {"data": "a"}):
        assert cache.find("things", other) is None
    assert cache.find("others", KEY) is None
    assert (cache.hits, cache.misses) == (1, 4)


def damage(path, how):
    samples, entry = path / "samples.npy", path / "entry.json"
    if how == "cut off":
        os.truncate(samples, 200)
    elif how == "empty":
        os.truncate(entry, 0)
    elif how in ("without a file", "without its description"):
        (samples if how == "without a file" else entry).unlink()
    elif how == "of another key":
        entry.write_text(entry.read_text().replace('"setting": 1', '"setting": 2'))
    elif how == "objects":  # numpy would have to unpickle them
        size = samples.stat().st_size
        with samples.open("wb") as file:
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
            file.write(bytes(size - file.tell()))


@pytest.mark.parametrize(
    "how", ["cut off", "empty", "without a file", "without its description", "of another key", "objects"]
)
def test_a_damaged_entry_is_computed_again(folder, how):
    cache = filled(folder)
    damage(cache.path("things", KEY), how)
    with use_cache(cache):
        found = get_or_compute("things", lambda: KEY, blocks)
    assert isinstance(found["samples"], np.memmap)
    np.testing.assert_array_equal(found["samples"], np.concatenate([block["samples"] for block in blocks()]))
    assert [entry.fault for entry in Cache(folder).entries(check=True)] == [""]
    path = cache.path("things", KEY) / "samples.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")  # one byte, which only a check reads
    assert [entry.fault for entry in cache.entries(check=True)] == ["samples has another checksum"]


def test_the_least_recently_used_entries_are_evicted(folder):
    cache = Cache(folder, limit=10**6)
    for number in range(4):
        assert cache.store("things", {"number": number}, blocks(rows=5000)) is not None  # 360 kB each
        os.utime(cache.path("things", {"number": number}) / "entry.json", (number, number))
    assert cache.find("things", {"number": 0}) is None
    assert cache.find("things", {"number": 2}) is not None  # used just now
    assert cache.store("things", {"number": 4}, blocks(rows=5000)) is not None
    assert {e.path for e in cache.entries()} == {cache.path("things", {"number": number}) for number in (2, 4)}


def test_a_limit_holds_for_every_later_run(folder):
    assert len(filled(folder).set_limit(10)) == 1
    assert Cache(folder).limit == 10
    (folder / "limit").write_text("many\n")
    assert Cache(folder).limit == feature_cache.DEFAULT_LIMIT


def test_an_entry_above_the_limit_stays_in_memory_and_evicts_nothing(folder, caplog):
    cache = filled(folder, limit=10_000)
    with use_cache(cache):
        found = get_or_compute("large", lambda: KEY, lambda: blocks(rows=5000))
    assert not isinstance(found["samples"], np.memmap)
    assert found["samples"].shape == (15_000, 4)
    assert "larger than the limit" in caplog.text
    assert [entry.kind for entry in cache.entries()] == ["things"]
    assert leftovers(folder) == []


def test_an_error_of_the_computation_is_raised_and_leaves_nothing(folder):
    def broken():
        yield from blocks(1)
        raise OSError(5, "the recordings' disk is gone")

    with use_cache(Cache(folder)), pytest.raises(OSError, match="recordings"):
        get_or_compute("things", lambda: KEY, broken)
    with pytest.raises(ValueError, match="numbers alone"):
        Cache(folder).store("things", KEY, [{"samples": np.array([{}], dtype=object)}])
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_or_a_full_disk_costs_one_line(tmp_path, folder, caplog):
    (tmp_path / "file").write_text("no folder")
    with use_cache(Cache(tmp_path / "file" / "below")):
        for _ in range(2):
            assert len(get_or_compute("things", lambda: KEY, blocks)["samples"]) == 15
    with pytest.raises(DataError, match="name another folder in"):
        Cache(tmp_path / "file" / "below").set_limit(5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with use_cache(Cache(folder)):
            found = get_or_compute("things", lambda: KEY, lambda: blocks(rows=5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert len(found["samples"]) == 15_000
    assert [("cannot write" in line, "going on without" in line) for line in caplog.messages] == [(True, True)] * 2
    assert list(folder.iterdir()) == []


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from ml_training.data.feature_cache import Cache
def blocks():
    for number in range(int(sys.argv[2])):
        yield {"samples": np.full((1000, 8), number, np.float32)}
        print(number, flush=True)
        time.sleep(float(sys.argv[3]))
assert Cache(Path(sys.argv[1])).store("things", {"data": "a"}, blocks()) is not None
"""


def writer(folder, count, seconds):
    command = [sys.executable, "-c", WRITER, str(folder), str(count), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_writer_left_is_no_entry_and_is_cleared_by_the_next_one(folder):
    process = writer(folder, 1000, 0.05)
    assert process.stdout is not None
    process.stdout.readline()
    filled(folder)
    assert len(leftovers(folder)) == 1, "a live process's folder stays"
    process.kill()
    process.communicate()
    assert [entry.kind for entry in Cache(folder).entries()] == ["things"]
    assert Cache(folder).find("things", {"data": "a"}) is None
    old = folder / f"things-{'0' * 40}.arrays"  # an entry of 0.1
    old.write_bytes(b"")
    (left,) = leftovers(folder)
    for path in (old, left):
        os.utime(path, (0, 0))
    assert Cache(folder).store("things", {"data": "b"}, blocks()) is not None
    assert leftovers(folder) == []
    assert not old.exists()


def test_processes_that_write_one_entry_at_once_all_get_it(folder):
    processes = [writer(folder, 50, 0.002) for _ in range(3)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    (entry,) = Cache(folder).entries(check=True)
    assert entry.fault == ""
    arrays = Cache(folder).find("things", {"data": "a"})
    assert arrays is not None
    assert len(arrays["samples"]) == 50_000
    assert leftovers(folder) == []


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="becomes a user without a home")
def test_a_user_without_a_home_gets_one_line():
    become = (
        "import os\nfrom ml_training.data.feature_cache import Cache\nfrom digit_detector.errors import DataError\n"
        "os.setuid(54321)\ntry: Cache()\nexcept DataError as error: print(error)"
    )
    spared = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME", "DIGIT_CACHE_DIR")}
    done = subprocess.run([sys.executable, "-c", become], capture_output=True, text=True, env=spared)
    assert "name one in $DIGIT_CACHE_DIR, or train with --no_cache" in done.stdout, done.stderr


# --- arrays that may be memory-mapped ------------------------------------------------------------


@pytest.mark.parametrize("cached", [False, True])
def test_waveforms_of_a_corpus_are_a_numpy_array_with_a_cache_and_without(cached, tiny_folder, folder):
    config = TrainConfig(dataset="folder", data_dir=str(tiny_folder), extra_digits_dir=None)
    with use_cache(Cache(folder) if cached else None):
        corpus = load_corpus(config)
        waveforms = corpus.waveforms
        assert isinstance(concatenate([waveforms, waveforms[:3]]), np.memmap if cached else np.ndarray)
    assert isinstance(waveforms, np.ndarray)
    assert isinstance(waveforms, np.memmap) == cached
    assert waveforms.ndim == 2
    plain = np.array(load_corpus(config).waveforms)
    np.testing.assert_array_equal(waveforms * 2, plain * 2)
    assert waveforms.mean() == plain.mean()
    assert torch.equal(torch.from_numpy(waveforms[[3, 1]]), torch.from_numpy(plain[[3, 1]]))


@pytest.mark.parametrize("rows", [slice(None), slice(8, 12), slice(11, 2, -3), [12, 0, 0, 9], [], np.arange(15) < 4])
def test_taken_and_concatenated_rows_are_those_of_arrays_in_memory(folder, rows):
    arrays = filled(folder).find("things", KEY)
    assert arrays is not None
    plain = np.array(arrays["samples"])
    for array in (arrays["samples"], plain):
        found = take(array, rows)
        np.testing.assert_array_equal(found, plain[rows])
        found[...] = 0
    with use_cache(Cache(folder)):
        both = concatenate([arrays["samples"], plain[:2], arrays["samples"][3:5]])
    assert isinstance(both, np.memmap)
    np.testing.assert_array_equal(both, np.concatenate([plain, plain[:2], plain[3:5]]))
    np.testing.assert_array_equal(concatenate([arrays["samples"], plain]), np.concatenate([plain, plain]))


def test_a_content_hash_differs_wherever_values_do(folder):
    arrays = filled(folder).find("things", KEY)
    assert arrays is not None
    mapped, plain = arrays["samples"], np.array(arrays["samples"])
    assert content_hash(mapped) == content_hash(mapped)
    assert content_hash(mapped[1:]) == content_hash(plain[1:])
    different = [mapped, mapped[1:], mapped[::-1], arrays["labels"], plain + 1, plain.reshape(5, 12)]
    assert len({content_hash(array) for array in different}) == len(different)
