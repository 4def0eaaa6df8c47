"""benchmarks/reach.py leaves out what it says, and its page holds the means of what is finished."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from ml_training.config import TrainConfig, load_config

ROOT = Path(__file__).resolve().parents[1]
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The script, small corpora of empty files, and a training that leaves its settings behind."""
    fsdd, corpora = tmp_path / "fsdd" / "recordings", tmp_path / "corpora"
    names = {
        fsdd: [f"{digit}_{speaker}_0.wav" for digit in range(10) for speaker in SPEAKERS],
        corpora / "iitg_digits": [f"{digit}_iitg0{n}_0.flac" for digit in range(10) for n in (1, 2)],
        corpora / "words/train": [f"{word}_{who}_{n}.flac" for word in ("yes", "no") for who in "abcd" for n in "01"],
        corpora / "noise/train": [f"esc10_rain_{n}.flac" for n in range(6)],
    }
    for folder, files in names.items():
        folder.mkdir(parents=True)
        for file in files:
            (folder / file).touch()
    monkeypatch.setenv("DIGIT_DATA_DIR", str(fsdd.parent))
    monkeypatch.setenv("DIGIT_CORPORA_DIR", str(corpora))
    script = runpy.run_path(str(ROOT / "benchmarks" / "reach.py"))

    def train(folder: Path, settings: Any) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(settings))

    monkeypatch.setattr("trainings.train", train)
    return script


def speakers_in(folder: str) -> set[str]:
    return {path.stem.split("_")[1] for path in Path(folder).iterdir()}


def test_nothing_that_is_scored_is_trained_on(reach: dict[str, Any], tmp_path: Path) -> None:
    assert sorted(name for pair in reach["PAIRS"] for name in pair) == sorted((*SPEAKERS, "iitg01", "iitg02"))
    whole: dict[tuple[str, str], TrainConfig] = {}
    for row in reach["ROWS"]:
        for pair in reach["PAIRS"]:
            folder = reach["train_row"](tmp_path / "work", row, "mel_cnn", 0, pair, 3)
            config = TrainConfig(**load_config(folder / "config.json"))
            data = reach["split_data"](tmp_path / "work", pair)
            assert speakers_in(data["digits left out"]) == set(pair)
            assert speakers_in(config.data_dir) == set(SPEAKERS) - set(pair)
            assert speakers_in(config.data_dir) | speakers_in(data["iitg"]) | set(pair) == {
                *SPEAKERS, "iitg01", "iitg02"
            }  # fmt: skip
            assert not speakers_in(data["words"]) & speakers_in(data["words left out"])
            noises = [{path.name for path in Path(data[name]).iterdir()} for name in ("noise", "noise left out")]
            assert not noises[0] & noises[1]
            assert len(noises[0] | noises[1]) == 6
            assert config.non_digit_dir in (data["words"], None)
            assert config.extra_digits_dir in (data["iitg"], None)
            assert (config == whole.setdefault(pair, config)) == (row == reach["WHOLE"])


def test_links_of_relative_folders_lead_to_files(
    reach: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIGIT_DATA_DIR", "fsdd")
    monkeypatch.setenv("DIGIT_CORPORA_DIR", "corpora")
    for _ in range(2):
        data = reach["split_data"](tmp_path / "work", reach["PAIRS"][0])
        assert all(path.is_file() for folder in data.values() for path in Path(folder).iterdir())


def test_other_settings_need_another_folder(reach: dict[str, Any], tmp_path: Path) -> None:
    arguments = (tmp_path, reach["WHOLE"], "mfcc", 0, reach["PAIRS"][0])
    first = reach["train_row"](*arguments, 3)
    assert reach["train_row"](*arguments, 3) == first, "not trained again"
    with pytest.raises(SystemExit, match="other settings"):
        reach["train_row"](*arguments, 4)


def test_the_page_has_means_of_finished_rows(reach: dict[str, Any], tmp_path: Path) -> None:
    for row, missing in ((reach["WHOLE"], 0), ("without recorded words", 1)):
        for number, pair in enumerate(reach["PAIRS"][missing:]):
            folder = tmp_path / "rows" / "+".join(pair) / f"{row.replace(' ', '_')}_mfcc_0"
            folder.mkdir(parents=True)
            figures = dict.fromkeys(reach["FIGURES"], 10.0 * number)
            result = {"figures": figures, "speakers": {pair[0]: 91.25}, "epochs": 3, "commit": "abc"}
            (folder / "result.json").write_text(json.dumps(result))
    page = reach["format_page"](tmp_path)
    assert "| everything | 15.0 | 15.0 | 15.0 | 15.0 | 15.0 |" in page
    assert "| without recorded words" not in page
    assert "shortened to 3 epochs" in page
    assert "commit abc." in page
    assert "left out: george 91.2, jackson 91.2, lucas 91.2, nicolas 91.2." in page
