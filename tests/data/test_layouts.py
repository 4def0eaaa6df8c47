"""Recordings as people keep them: folders of digits with files of any name, speakers in sub-folders or unknown."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data.corpus import UNKNOWN_SPEAKER
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def found(folder: Path) -> dict[str, tuple[int, str]]:
    corpus = load_folder(folder)
    return dict(zip(corpus.files, zip(corpus.labels.tolist(), corpus.speakers, strict=True), strict=True))


def test_folders_of_digits_hold_files_of_any_name(tmp_path, wav):
    expected = {
        "0/Aufnahme 12.wav": (0, UNKNOWN_SPEAKER), "Zero/anna/x.wav": (0, "anna"), "SEVEN/7.wav": (7, UNKNOWN_SPEAKER),
        "7/bob/monday/take 1.flac": (7, "bob"), "7/eva_nohash_3.wav": (7, "eva"), "7/7_ida_4.wav": (7, "ida"),
        "7/3_rec_1.wav": (7, UNKNOWN_SPEAKER), "nine/anna/y.WAV": (9, "anna"),
    }  # fmt: skip
    write(tmp_path, {name: wav() for name in expected} | {"noise/hum.wav": wav(), "7/.hidden.wav": b"", "7/a.txt": b""})
    assert found(tmp_path) == expected
    corpus = load_folder(tmp_path)
    assert corpus.files == tuple(sorted(expected))
    assert not corpus.official_split
    assert corpus.skipped == ()


def test_speakers_may_come_before_digits(tmp_path, wav):
    write(tmp_path, {f"{who}/{digit}/take {n}.wav": wav() for who in ("anna", "bob") for digit in "37" for n in (1, 2)})
    assert found(tmp_path)["bob/3/take 2.wav"] == (3, "bob")
    assert len(load_folder(tmp_path)) == 8


def test_folders_of_speakers_called_by_numbers_stay_speakers(tmp_path, wav):
    write(tmp_path, {f"{speaker}/{digit}_{speaker}_0.wav": wav() for speaker in "123" for digit in range(10)})
    assert found(tmp_path)["3/7_3_0.wav"] == (7, "3")


def test_digits_beside_files_of_the_flat_layout_count_too(tmp_path, wav):
    write(tmp_path, {f"{digit}_anna_{n}.wav": wav() for digit in range(10) for n in (0, 7)} | {"4/more.wav": wav()})
    corpus = load_folder(tmp_path)
    assert (len(corpus), corpus.labels[corpus.files.index("4/more.wav")]) == (21, 4)
    assert not corpus.official_split  # its numbers are not those of FSDD


def test_a_link_that_leads_back_is_walked_once(tmp_path, wav):
    write(tmp_path, {"3/anna/x.wav": wav()})
    (tmp_path / "3" / "anna" / "round").symlink_to(tmp_path / "3")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "y.wav").write_bytes(wav())
    (tmp_path / "3" / "bob").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path) == {"3/anna/x.wav": (3, "anna"), "3/bob/y.wav": (3, "bob")}


def test_an_error_names_one_refused_file_why_and_how_many_more(tmp_path, wav):
    write(tmp_path, {f"{word}/{n}.wav": wav() for word in LABELS for n in range(9)})
    write(tmp_path, {f"0/bad {n}.wav": b"no audio" for n in range(7)})
    expected = r"7 of 97 files .* first 0/bad 0\.wav: .*not audio that can be read.*, and 6 more: fix or remove them$"
    with pytest.raises(DataError, match=expected) as caught:
        load_folder(tmp_path)
    assert "bad 1" not in str(caught.value)
    with pytest.raises(DataError, match=r"\(2 audio files, first a\.wav: its name is not .*, and 1 more\): expected"):
        load_folder(write(tmp_path / "flat", {"a.wav": wav(), "b.wav": wav()}))


def test_without_names_of_speakers_none_can_be_left_out(tmp_path, wav):
    write(tmp_path, {f"{word}/{who}/{n}.wav": wav() for word in LABELS for who in ("anna", "bob") for n in range(5)})
    assert (
        split_corpus(load_folder(tmp_path), TrainConfig(split="speaker", held_out_speaker="anna")).parts["test"] == 50
    )
    write(tmp_path, {"3/who.wav": wav()})
    corpus = load_folder(tmp_path)
    with pytest.raises(DataError, match=r"does not say who speaks in 1 of its 101 clips: leaving a speaker out needs"):
        split_corpus(corpus, TrainConfig(split="speaker", held_out_speaker="anna"))
    random = split_corpus(corpus, TrainConfig(split="random"))
    assert sum(random.parts.values()) == 101
    assert min(random.parts.values()) > 0


def test_two_sets_of_unknown_speakers_go_together(tmp_path, wav):
    for name in ("mine", "more"):
        write(tmp_path / name, {f"{word}/{name}.wav": wav() for word in LABELS})
    corpus = load_corpus(
        TrainConfig(dataset="folder", data_dir=str(tmp_path / "mine"), extra_dir=str(tmp_path / "more"))
    )
    assert set(corpus.speakers) == {UNKNOWN_SPEAKER}
    assert len(corpus) == 20


@pytest.mark.parametrize("seconds", [0.5, 2.0])
@pytest.mark.parametrize("rate", [8000, 44_100])
def test_samples_beyond_all_levels_cost_that_clip_alone(tmp_path, wav, seconds, rate):
    write(tmp_path, {f"{word}/{n}.wav": wav() for word in LABELS for n in range(3)})
    huge = np.float32(3e38) * np.sin(np.arange(int(rate * seconds)) / 3).astype(np.float32)
    soundfile.write(tmp_path / "three" / "huge.wav", huge, rate, subtype="FLOAT")
    corpus = load_folder(tmp_path)
    assert [clip.file for clip in corpus.skipped] == ["three/huge.wav"]
    assert len(corpus) == 30
    assert np.abs(corpus.waveforms).max() < 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_what_is_no_file_is_not_opened(tmp_path, wav):
    write(tmp_path, {f"{word}/a.wav": wav() for word in LABELS})
    os.mkfifo(tmp_path / "one" / "pipe.wav")  # to open it would wait for ever
    assert len(load_folder(tmp_path)) == 10
