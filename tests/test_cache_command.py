"""digits cache, after a real training filled it."""

import json

import pytest


@pytest.fixture
def trained(run_door, tiny_folder, tmp_path):
    folder = tmp_path / "cache"
    words = ["--pipeline", "mfcc", "--dataset", "folder", "--data_dir", str(tiny_folder), "--epochs", "1"]
    done = run_door("train.py", *words, "--negative_ratio", "0", DIGIT_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def list_cache(run_door, folder):
    found: dict[str, object] = json.loads(run_door("cache.py", "--json", DIGIT_CACHE_DIR=str(folder)).stdout)
    return found


def test_a_training_fills_it_and_the_command_lists_limits_checks_and_clears_it(run_door, trained):
    done = run_door("cache.py", DIGIT_CACHE_DIR=str(trained))
    assert (done.returncode, done.stderr) == (0, "")
    *entries, last = done.stdout.splitlines()
    assert {line.split("ago")[1].strip().rpartition("-")[0] for line in entries} >= {"recordings", "features"}
    assert last.startswith(f"{trained}: {len(entries)} entries of ")
    assert last.endswith("limit 8.6 GB")

    path = next(trained.glob("features-*")) / "features.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (trained / "foreign-1").mkdir()  # not an entry: neither listed nor removed
    done = run_door("cache.py", "list", "--check", DIGIT_CACHE_DIR=str(trained))
    assert done.returncode == 1
    assert "damaged, removed: features has another checksum" in done.stdout
    assert not path.parent.exists()
    assert done.stdout.splitlines()[-1].startswith(f"{trained}: {len(entries) - 1} entries of ")

    done = run_door("cache.py", "limit", "1MB", DIGIT_CACHE_DIR=str(trained))
    assert done.returncode == 0
    left = list_cache(run_door, trained)
    assert left["limit"] == 10**6
    assert sum(entry["bytes"] for entry in left["entries"]) <= 10**6  # type: ignore[attr-defined]

    done = run_door("cache.py", "clear", DIGIT_CACHE_DIR=str(trained))
    assert (done.returncode, done.stderr) == (0, "")
    assert "removed" in done.stdout
    assert list_cache(run_door, trained)["entries"] == []
    assert {path.name for path in trained.iterdir()} == {"foreign-1", "limit"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["limit"], "limit takes a size"),
        (["limit", "much"], "'much' is no size"),
        (["clear", "1GB"], "clear takes no size"),
        (["clear", "--check"], "--check belongs to list"),
        (["empty"], "choose from"),
    ],
)
def test_impossible_words_are_one_line(run_door, tmp_path, words, expected):
    done = run_door("cache.py", *words, DIGIT_CACHE_DIR=str(tmp_path))
    assert done.returncode == 2
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1
