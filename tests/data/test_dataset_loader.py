"""Every layout and every way of asking for recordings; bad files are skipped, counted and named."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.audio import load_audio
from digit_detector.errors import DataError, DownloadError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data import fsdd, tts
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.data.tts import synthesize_digits


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# --- layouts -------------------------------------------------------------------------------------


def test_digit_speaker_index(tmp_path, recordings):
    corpus = load_folder(write(tmp_path / "mine", recordings))
    assert corpus.name == "mine"
    assert corpus.files == tuple(sorted(recordings))
    assert corpus.waveforms.shape == (60, 8000)
    assert corpus.waveforms.dtype == np.float32
    for row, file in enumerate(corpus.files):
        digit, speaker, index = file.removesuffix(".wav").split("_")
        assert (corpus.labels[row], corpus.speakers[row], corpus.indices[row]) == (int(digit), speaker, int(index))
        np.testing.assert_array_equal(corpus.waveforms[row], load_audio(recordings[file]))
    assert set(corpus.lengths) == {400}
    assert corpus.hours == pytest.approx(60 * 0.05 / 3600)
    assert corpus.official_split
    assert not corpus.synthetic
    assert corpus.skipped == ()


def test_a_checkout_holds_its_recordings_one_folder_down(tmp_path, recordings):
    write(tmp_path / "recordings", recordings)
    write(tmp_path, {"README.md": b"a data set", "metadata.py": b""})
    assert load_folder(tmp_path).files == tuple(sorted(recordings))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_folder_whose_name_is_no_utf_8_has_a_name_that_is(tmp_path, recordings):
    assert load_folder(write(tmp_path / os.fsdecode(b"caf\xe9"), recordings)).name == "caf\\udce9"


def test_other_suffixes_rates_and_lengths(tmp_path, wav):
    samples = np.sin(np.arange(96_000) / 7).astype(np.float32)
    soundfile.write(tmp_path / "3_eva_1.flac", np.stack([samples, samples], axis=1), 48_000)
    soundfile.write(tmp_path / "4_eva_2.ogg", samples[:16_000], 44_100)
    (tmp_path / "5_Ärmel Köln-x_12.WAV").write_bytes(wav(seconds=0.25, rate=16_000))
    (tmp_path / "notes.txt").write_bytes(b"no audio")
    corpus = load_folder(tmp_path)
    assert list(corpus.labels) == [3, 4, 5]
    assert corpus.speakers == ("eva", "eva", "Ärmel Köln-x")
    assert list(corpus.indices) == [1, 2, 12]
    assert list(corpus.lengths) == [8000, pytest.approx(16_000 * 8000 / 44_100, abs=2), 2000]
    assert not corpus.official_split  # no speaker has a digit on both sides of index 5


def test_speech_commands(tmp_path, wav):
    files = {f"{word}/{speaker}_nohash_{n}.wav": wav(rate=16_000, seconds=1.0) for word in LABELS
             for speaker in ("0a7c2a8d", "ffd2ba2f") for n in (0, 1)}  # fmt: skip
    others = {"bed/0a7c2a8d_nohash_0.wav": wav(), "_background_noise_/running_tap.wav": wav(), "testing_list.txt": b""}
    corpus = load_folder(write(tmp_path, files | others))
    assert corpus.files == tuple(sorted(files))
    assert [LABELS[digit] for digit in corpus.labels] == [file.split("/")[0] for file in corpus.files]
    assert set(corpus.speakers) == {"0a7c2a8d", "ffd2ba2f"}
    assert set(corpus.indices) == {0, 1}
    assert not corpus.official_split
    assert corpus.skipped == ()


@pytest.mark.parametrize("root", ["", "data/"])
def test_audio_mnist(tmp_path, wav, root):
    files = {f"{speaker}/{digit}_{speaker}_{n}.wav": wav(rate=48_000) for speaker in ("01", "60")
             for digit in range(10) for n in (0, 49)}  # fmt: skip
    write(tmp_path, {root + name: content for name, content in files.items()} | {root + "audioMNIST_meta.txt": b"{}"})
    corpus = load_folder(tmp_path)
    assert corpus.files == tuple(sorted(files))
    assert set(corpus.speakers) == {"01", "60"}
    assert set(corpus.lengths) == {3200}
    assert not corpus.official_split


def test_a_file_in_the_folder_of_another_speaker_is_named(tmp_path, wav):
    write(
        tmp_path, {f"01/{digit}_01_{n}.wav": wav() for digit in range(10) for n in range(3)} | {"01/0_02_0.wav": wav()}
    )
    (skipped,) = load_folder(tmp_path).skipped
    assert skipped.file == "01/0_02_0.wav"
    assert skipped.reason == "its name says speaker 02, its folder 01"


@pytest.mark.parametrize("file", ["", "notes.txt", "hello.wav", "a/b/0_c_0.wav", "bed/x_nohash_0.wav"])
def test_a_folder_without_digits_names_the_layouts(tmp_path, file):
    with pytest.raises(DataError, match=r"\{digit\}_\{speaker\}_\{index\}.*Speech Commands.*AudioMNIST"):
        load_folder(write(tmp_path, {file: b"x"} if file else {}))


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(DataError, match="is not a folder"):
            load_folder(path)


# --- bad files -----------------------------------------------------------------------------------


def test_bad_files_are_skipped_and_say_why(tmp_path, wav):
    write(tmp_path, {f"{digit}_anna_{index}.wav": wav() for digit in range(10) for index in range(20)})
    write(
        tmp_path, {"0_bad_0.wav": b"", "0_bad_1.wav": b"no audio at all", "0_bad_4.wav": wav()[:44], "hello.wav": wav()}
    )
    soundfile.write(tmp_path / "0_bad_2.wav", np.full(800, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "0_bad_3.wav", np.zeros(800, np.float32), 8000)
    (tmp_path / "0_bad_5.wav").symlink_to(tmp_path / "missing.wav")  # leads nowhere: no file at all
    corpus = load_folder(tmp_path)
    assert len(corpus) == 200
    assert set(corpus.speakers) == {"anna"}
    assert np.abs(corpus.waveforms).max(axis=1).min() > 0.2
    reasons = {clip.file: clip.reason for clip in corpus.skipped}
    expected = {
        "0_bad_0.wav": "empty", "0_bad_1.wav": "not audio", "0_bad_2.wav": "NaN", "0_bad_3.wav": "silence",
        "0_bad_4.wav": "cut off", "hello.wav": "its name is not",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for file, words in expected.items():
        assert words in reasons[file], (file, reasons[file])


def test_above_five_per_cent_of_bad_files_the_run_stops(tmp_path, wav):
    write(tmp_path, {f"{digit}_anna_{index}.wav": wav(seconds=0.05) for digit in range(10) for index in range(19)})
    write(tmp_path, {f"0_bad_{index}.wav": b"" for index in range(10)})
    assert len(load_folder(tmp_path).skipped) == 10  # exactly 5 %
    write(tmp_path, {"0_bad_10.wav": b""})
    with pytest.raises(DataError, match=r"11 of 201 files .*\(5\.5%.*first 0_bad_0\.wav: .*empty.*, and 10 more: "):
        load_folder(tmp_path)


def test_a_huge_file_is_skipped_without_decoding(tmp_path, wav, monkeypatch):
    monkeypatch.setattr("ml_training.data.clip_files.MAX_CLIP_BYTES", 20_000)
    write(tmp_path, {f"{digit}_anna_{index}.wav": wav() for digit in range(10) for index in range(3)})
    write(tmp_path, {"0_huge_0.wav": wav(seconds=2)})
    (skipped,) = load_folder(tmp_path).skipped
    assert "expected at most 20000" in skipped.reason


# --- hash ----------------------------------------------------------------------------------------


def test_the_hash_is_of_sorted_names_and_bytes(tmp_path, recordings):
    corpus = load_folder(write(tmp_path / "a", recordings))
    lines = "".join(f"{name}\0{hashlib.sha256(recordings[name]).hexdigest()}\n" for name in sorted(recordings))
    assert corpus.data_hash == hashlib.sha256(lines.encode()).hexdigest()
    assert load_folder(write(tmp_path / "b", dict(reversed(recordings.items())))).data_hash == corpus.data_hash
    first, second = sorted(recordings)[:2]
    swapped = recordings | {first: recordings[second], second: recordings[first]}
    assert load_folder(write(tmp_path / "c", swapped)).data_hash != corpus.data_hash


# --- what the settings ask for -------------------------------------------------------------------


@pytest.fixture
def pinned(monkeypatch, recordings) -> dict[str, bytes]:
    """Small recordings that pass for FSDD."""
    monkeypatch.setattr(fsdd, "TREE_HASH", fsdd.content_hash(recordings))
    return recordings


def load(lines: list[str] | None = None, **settings: str) -> Corpus:
    return load_corpus(TrainConfig(**settings), (lines if lines is not None else []).append)


@pytest.mark.parametrize("dataset", ["auto", "fsdd"])
@pytest.mark.parametrize("form", ["recordings", "checkout", "fsdd.tar.gz"])
def test_fsdd_in_any_form(tmp_path, pinned, tar, dataset, form):
    write(tmp_path / "checkout" / "recordings", pinned)
    write(tmp_path / "recordings", pinned)
    (tmp_path / "fsdd.tar.gz").write_bytes(tar(pinned))
    lines: list[str] = []
    corpus = load(lines, dataset=dataset, data_dir=str(tmp_path / form))
    assert corpus.name == "FSDD v1.0.10"
    assert corpus.data_hash == fsdd.TREE_HASH
    assert corpus.official_split
    assert corpus.files == tuple(sorted(pinned))
    np.testing.assert_array_equal(corpus.waveforms, load_folder(tmp_path / "recordings").waveforms)
    assert lines == []


def test_the_variable_is_used_and_the_flag_wins(tmp_path, pinned, monkeypatch):
    monkeypatch.setenv("DIGIT_DATA_DIR", str(write(tmp_path / "fsdd", pinned)))
    assert load().name == "FSDD v1.0.10"
    other = write(tmp_path / "other", {f"7_eva_{n}.wav": pinned["7_anna_0.wav"] for n in range(9)})
    assert load(data_dir=str(other)).speakers == ("eva",) * 9


def test_the_cache_comes_before_a_download(pinned, server, tar, monkeypatch):
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    server.answers["/fsdd.tar.gz"] = tar(pinned)
    assert load().data_hash == fsdd.TREE_HASH
    assert load(dataset="fsdd").data_hash == fsdd.TREE_HASH
    assert server.requests == ["/fsdd.tar.gz"]


def test_the_address_in_the_settings_wins(pinned, server, tar):
    server.answers["/mine.tar.gz"] = tar(pinned)
    assert load(data_url=server.url("/mine.tar.gz")).data_hash == fsdd.TREE_HASH


def test_fsdd_demanded_and_not_to_be_had(server):
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        load(dataset="fsdd")
    assert "\n" not in str(caught.value)


def test_fsdd_demanded_and_something_else_chosen(tmp_path, recordings, tar):
    write(tmp_path / "mine", recordings)
    (tmp_path / "mine.tar.gz").write_bytes(tar(recordings))
    for form in ("mine", "mine.tar.gz"):
        with pytest.raises(DataError, match=rf"is not FSDD v1.0.10: .*tree hash .*{fsdd.TREE_HASH}") as caught:
            load(dataset="fsdd", data_dir=str(tmp_path / form))
        assert "\n" not in str(caught.value)


def test_auto_takes_other_recordings_and_says_so(tmp_path, recordings):
    lines: list[str] = []
    corpus = load(lines, data_dir=str(write(tmp_path / "mine", recordings)))
    assert corpus.name == "mine"
    assert len(corpus.data_hash) == 64
    (line,) = lines
    assert "is not FSDD v1.0.10" in line
    assert fsdd.content_hash(recordings) in line
    assert fsdd.TREE_HASH in line


@pytest.mark.parametrize("dataset", ["auto", "fsdd", "folder"])
def test_a_chosen_place_is_never_replaced_by_something_else(tmp_path, dataset, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_bytes(b"x")
    for name in ("missing", "empty", "file.txt"):
        with pytest.raises(DataError):
            load(dataset=dataset, data_dir=str(tmp_path / name))
        monkeypatch.setenv("DIGIT_DATA_DIR", str(tmp_path / name))
        with pytest.raises(DataError):
            load(dataset=dataset)


def test_an_archive_of_other_recordings_is_an_error(tmp_path, recordings, tar):
    (tmp_path / "mine.tar.gz").write_bytes(tar(recordings))
    with pytest.raises(DataError, match=r"is not FSDD.*unpack it"):
        load(data_dir=str(tmp_path / "mine.tar.gz"))


def test_folder_needs_a_folder(tmp_path, recordings):
    with pytest.raises(DataError, match="--data_dir"):
        load(dataset="folder")
    lines: list[str] = []
    assert len(load(lines, dataset="folder", data_dir=str(write(tmp_path, recordings)))) == 60
    assert lines == []


@pytest.fixture
def few_voices(monkeypatch) -> None:
    """Real synthetic speech, but little of it."""
    monkeypatch.setattr(tts, "synthesize_digits", lambda seed, voices, takes: synthesize_digits(seed, 3, 1))


@pytest.mark.usefixtures("few_voices")
def test_auto_falls_back_to_synthetic_speech_and_says_so(home):
    lines: list[str] = []
    corpus = load(lines)
    assert corpus.synthetic
    assert "cannot be reached" in lines[1]
    assert any("!!!" in line and "synthetic speech" in line for line in lines)
    assert not list(home.rglob("*.wav"))


@pytest.mark.usefixtures("few_voices")
def test_synthetic_asks_nobody(server, monkeypatch):
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    monkeypatch.setenv("DIGIT_DATA_DIR", "nowhere")
    assert load(dataset="synthetic").synthetic
    assert server.requests == []


# --- further recordings --------------------------------------------------------------------------


@pytest.fixture
def extra(tmp_path, wav) -> Path:
    """Recordings 0 and 7 of one more speaker, and a file that is none."""
    files = {f"{digit}_eva_{index}.wav": wav(200 + 50 * digit + index) for digit in range(10) for index in (0, 7)}
    return write(tmp_path / "further", files | {"5_eva_9.wav": b""})


def test_further_recordings_come_after_the_others_with_all_that_is_known_of_them(tmp_path, recordings, extra):
    first, second = load_folder(write(tmp_path / "mine", recordings)), load_folder(extra)
    corpus = load(dataset="folder", data_dir=str(tmp_path / "mine"), extra_dir=str(extra))
    assert corpus.name == "mine and further"
    assert len(corpus) == len(first) + len(second) == 80
    assert corpus.files == first.files + tuple(f"further/{file}" for file in second.files)
    assert corpus.speakers == first.speakers + second.speakers
    for column in ("waveforms", "lengths", "labels"):
        expected = np.concatenate([getattr(first, column), getattr(second, column)])
        np.testing.assert_array_equal(getattr(corpus, column), expected)
    assert [clip.file for clip in corpus.skipped] == ["5_eva_9.wav"]
    assert not corpus.synthetic


def test_none_of_them_is_in_the_official_test_part(tmp_path, recordings, extra):
    first = load_folder(write(tmp_path / "mine", recordings))
    corpus = load(dataset="folder", data_dir=str(tmp_path / "mine"), extra_dir=str(extra))
    assert corpus.official_split
    before, after = (split_corpus(c, TrainConfig()) for c in (first, corpus))
    assert [corpus.files[i] for i in after.test] == [first.files[i] for i in before.test]
    assert "eva" in {corpus.speakers[i] for i in after.train}
    assert corpus.indices[corpus.files.index("further/3_eva_0.wav")] >= 5


def test_the_hash_is_of_both_and_each_is_told(tmp_path, recordings, extra):
    mine = write(tmp_path / "mine", recordings)
    first, second = load_folder(mine), load_folder(extra)
    corpus = load(dataset="folder", data_dir=str(mine), extra_dir=str(extra))
    assert first.recordings == (first.data_hash,)
    assert corpus.recordings == (first.data_hash, second.data_hash)
    turned = load(dataset="folder", data_dir=str(extra), extra_dir=str(mine))
    assert len({corpus.data_hash, turned.data_hash, first.data_hash, second.data_hash}) == 4


def test_they_come_with_any_dataset(tmp_path, pinned, extra):
    for dataset in ("auto", "fsdd"):
        corpus = load(dataset=dataset, data_dir=str(write(tmp_path / "fsdd", pinned)), extra_dir=str(extra))
        assert corpus.name == "FSDD v1.0.10 and further"
        assert fsdd.TREE_HASH in corpus.recordings


def test_speakers_of_the_same_name_are_refused(tmp_path, recordings, wav):
    further = {f"{digit}_{speaker}_9.wav": wav() for digit in range(10) for speaker in ("theo", "zoe")}
    write(tmp_path / "mine", recordings)
    write(tmp_path / "further", further)
    with pytest.raises(DataError, match=r"mine and further share speakers \(theo\): rename them.*leave extra_dir out"):
        load(dataset="folder", data_dir=str(tmp_path / "mine"), extra_dir=str(tmp_path / "further"))


def test_a_folder_of_further_recordings_that_is_none_is_an_error(tmp_path, recordings):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(dataset="folder", data_dir=str(write(tmp_path / "mine", recordings)), extra_dir=str(tmp_path / "nowhere"))


# --- real recordings -----------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_fsdd(fsdd_dir):
    corpus = load(dataset="fsdd", data_dir=str(fsdd_dir))
    assert len(corpus) == 3000
    assert sorted(set(corpus.speakers)) == ["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]
    assert np.bincount(corpus.labels).tolist() == [300] * 10
    assert (corpus.lengths == 8000).sum() == 20  # the only ones that last a second or more
    assert corpus.lengths.min() == 1148
    assert corpus.skipped == ()


@pytest.mark.real_data
def test_real_recordings_of_others(corpora_dir):
    corpus = load_folder(corpora_dir / "iitg_digits", name="iitg")
    assert (corpus.name, len(corpus), sorted(set(corpus.speakers))) == ("iitg", 700, ["iitg01", "iitg02"])
    assert corpus.skipped == ()


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="file names there are Unicode")
def test_a_name_that_is_no_utf8_is_read_like_any_other(tmp_path, wav):
    for digit in range(10):
        (tmp_path / os.fsdecode(b"%d_j\xfcrgen_0.wav" % digit)).write_bytes(wav())
    assert len(load_folder(tmp_path)) == 10


def test_a_folder_called_like_a_recording_is_passed_over(tmp_path, wav):
    write(tmp_path, {f"{digit}_anna_{index}.wav": wav() for digit in range(10) for index in range(6)})
    (tmp_path / "7_anna_9.wav").mkdir()
    assert len(load_corpus(TrainConfig(data_dir=str(tmp_path)), report=lambda line: None)) == 60


def test_an_unknown_home_is_a_clear_error():
    with pytest.raises(DataError, match="where nothing is"):
        load_corpus(TrainConfig(data_dir="~no-such-user-here/recordings"))


def test_what_is_no_archive_is_said_in_one_line(tmp_path):
    (tmp_path / "letter.txt").write_text("no archive")
    with pytest.raises(DataError, match="no tar or zip archive") as caught:
        load_corpus(TrainConfig(data_dir=str(tmp_path / "letter.txt")))
    assert len(str(caught.value).splitlines()) == 1
