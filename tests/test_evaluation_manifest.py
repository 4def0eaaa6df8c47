"""benchmarks/evaluation_manifest.py: what clips are called where they come from; the list is of these clips."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def manifest() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evaluation_manifest", ROOT / "benchmarks" / "evaluation_manifest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(manifest: ModuleType) -> list[dict[str, str]]:
    with manifest.OUTPUT.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0_2f813234_1", "Speech Commands zero/2f813234_nohash_1.wav"),
        ("9_0132a06d_3", "Speech Commands nine/0132a06d_nohash_3.wav"),
        ("backward_0cb74144_2", "Speech Commands backward/0cb74144_nohash_2.wav"),
        ("background_running-tap_0", "Speech Commands _background_noise_/running_tap.wav"),
        ("esc10_baby-cry_3-151080-A", "ESC-10 3-151080-A.ogg"),
        ("sentence_01a50d1b_0", "speech-to-intent-benchmark 01a50d1b*.wav"),
    ],
)
def test_a_clip_is_named_as_where_it_comes_from(manifest: ModuleType, name: str, expected: str) -> None:
    assert manifest.original(name) == expected


def test_the_list_is_whole_and_no_clip_is_in_it_twice(manifest: ModuleType, rows: list[dict[str, str]]) -> None:
    assert tuple(rows[0]) == manifest.COLUMNS
    counts = Counter(row["set"] for row in rows)
    assert list(counts) == ["fsdd official test", *manifest.SETS]
    assert counts["fsdd official test"] == 300
    assert len({(row["set"], row["file"]) for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row["sha256"])
        assert int(row["sample_rate"]) in (8000, 16000)
        assert int(row["samples"]) > 0
        stem = row["file"].rpartition(".")[0]
        ours = row["set"] == "fsdd official test"
        assert row["original"] == (f"FSDD v1.0.10 recordings/{row['file']}" if ours else manifest.original(stem))


@pytest.mark.parametrize("there", [False, True])
def test_a_list_stays_whole_where_no_other_can_be_made(
    manifest: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("as it was")
    monkeypatch.setattr(sys, "argv", ["evaluation_manifest.py", "--output", str(path)])
    for name in ("DIGIT_DATA_DIR", "DIGIT_CORPORA_DIR"):
        monkeypatch.setenv(name, str(tmp_path)) if there else monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError if there else SystemExit):
        manifest.main()
    assert path.read_text() == "as it was"


@pytest.mark.real_data
@pytest.mark.usefixtures("fsdd_dir")
def test_the_list_is_what_the_recordings_say(
    manifest: ModuleType, corpora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [name for name in manifest.SETS if not (corpora_dir / name).is_dir()]
    if missing:
        pytest.skip(f"{corpora_dir} has no {', '.join(missing)}")
    path = tmp_path / "clips.csv"
    monkeypatch.setattr(sys, "argv", ["evaluation_manifest.py", "--output", str(path)])
    assert manifest.main() == 0
    assert path.read_bytes() == manifest.OUTPUT.read_bytes(), "run: python benchmarks/evaluation_manifest.py"
