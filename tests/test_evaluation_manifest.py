"""benchmarks/evaluation_manifest.py: the names of clips in their sources, and the packaged list."""

from __future__ import annotations

import csv
import re
import runpy
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "benchmarks" / "evaluation_manifest.py"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0_2f813234_1", "Speech Commands zero/2f813234_nohash_1.wav"),
        ("backward_0cb74144_2", "Speech Commands backward/0cb74144_nohash_2.wav"),
        ("background_running-tap_0", "Speech Commands _background_noise_/running_tap.wav"),
        ("esc10_baby-cry_3-151080-A", "ESC-10 3-151080-A.ogg"),
        ("sentence_01a50d1b_0", "speech-to-intent-benchmark 01a50d1b*.wav"),
    ],
)
def test_a_clip_has_the_name_of_its_source(manifest: dict[str, Any], name: str, expected: str) -> None:
    assert manifest["original_name"](name) == expected


def test_the_list_is_complete_and_holds_no_clip_twice(manifest: dict[str, Any]) -> None:
    with manifest["OUTPUT"].open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == manifest["COLUMNS"]
    counts = Counter(row["set"] for row in rows)
    assert list(counts) == ["fsdd official test", *manifest["SETS"]]
    assert counts["fsdd official test"] == 300
    assert len({(row["set"], row["file"]) for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch("[0-9a-f]{64}", row["sha256"])
        assert int(row["sample_rate"]) in (8000, 16000)
        assert int(row["samples"]) > 0
        official = f"FSDD v1.0.10 recordings/{row['file']}"
        source = manifest["original_name"](row["file"].rpartition(".")[0])
        assert row["original"] == (official if row["set"] == "fsdd official test" else source)


@pytest.mark.parametrize("existing", [False, True])
def test_a_list_stays_where_no_other_can_be_made(
    manifest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    path = tmp_path / "clips.csv"
    path.write_text("as it was")
    monkeypatch.setattr(sys, "argv", ["evaluation_manifest.py", "--output", str(path)])
    for name in ("DIGIT_DATA_DIR", "DIGIT_CORPORA_DIR"):
        monkeypatch.setenv(name, str(tmp_path)) if existing else monkeypatch.delenv(name, raising=False)
    with pytest.raises(FileNotFoundError if existing else SystemExit):
        manifest["main"]()
    assert path.read_text() == "as it was"


@pytest.mark.real_data
@pytest.mark.usefixtures("fsdd_dir")
def test_the_list_matches_the_recordings(
    manifest: dict[str, Any], corpora_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = [name for name in manifest["SETS"] if not (corpora_dir / name).is_dir()]
    if missing:
        pytest.skip(f"{corpora_dir} has no {', '.join(missing)}")
    path = tmp_path / "clips.csv"
    monkeypatch.setattr(sys, "argv", ["evaluation_manifest.py", "--output", str(path)])
    assert manifest["main"]() == 0
    assert path.read_bytes() == manifest["OUTPUT"].read_bytes(), "run: python benchmarks/evaluation_manifest.py"
