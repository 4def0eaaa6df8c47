"""Every way of naming recordings: FSDD in any form, other recordings, a download, synthetic speech, further folders."""

import hashlib

import numpy as np
import pytest

from digit_detector.errors import DataError, DownloadError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data import fsdd, tts
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.data.tts import synthesize_digits


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def load(lines=None, **settings):
    return load_corpus(TrainConfig(**settings), (lines if lines is not None else []).append)


@pytest.fixture
def pinned(monkeypatch, recordings):
    """Small recordings that pass for FSDD."""
    monkeypatch.setattr(fsdd, "TREE_HASH", fsdd.content_hash(recordings))
    return recordings


def test_the_hash_is_of_sorted_names_and_bytes(tmp_path, recordings):
    corpus = load_folder(write(tmp_path / "a", recordings))
    lines = "".join(f"{name}\0{hashlib.sha256(recordings[name]).hexdigest()}\n" for name in sorted(recordings))
    assert corpus.data_hash == hashlib.sha256(lines.encode()).hexdigest()
    assert load_folder(write(tmp_path / "b", dict(reversed(recordings.items())))).data_hash == corpus.data_hash
    first, second = sorted(recordings)[:2]
    swapped = recordings | {first: recordings[second], second: recordings[first]}
    assert load_folder(write(tmp_path / "c", swapped)).data_hash != corpus.data_hash


@pytest.mark.parametrize("dataset", ["auto", "fsdd"])
@pytest.mark.parametrize("form", ["recordings", "checkout", "fsdd.tar.gz"])
def test_fsdd_in_any_form(tmp_path, pinned, tar, dataset, form):
    write(tmp_path / "checkout" / "recordings", pinned)
    write(tmp_path / "recordings", pinned)
    (tmp_path / "fsdd.tar.gz").write_bytes(tar(pinned))
    lines: list[str] = []
    corpus = load(lines, dataset=dataset, data_dir=str(tmp_path / form))
    assert (corpus.name, corpus.data_hash) == ("FSDD v1.0.10", fsdd.TREE_HASH)
    assert corpus.official_split
    assert corpus.files == tuple(sorted(pinned))
    np.testing.assert_array_equal(corpus.waveforms, load_folder(tmp_path / "recordings").waveforms)
    assert lines == []


def test_the_variable_is_used_and_the_flag_wins(tmp_path, pinned, monkeypatch):
    monkeypatch.setenv("DIGIT_DATA_DIR", str(write(tmp_path / "fsdd", pinned)))
    assert load().name == "FSDD v1.0.10"
    other = write(tmp_path / "other", {f"7_eva_{n}.wav": pinned["7_anna_0.wav"] for n in range(9)})
    assert load(data_dir=str(other)).speakers == ("eva",) * 9


def test_downloads(pinned, server, tar, monkeypatch):
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    server.answers |= {"/fsdd.tar.gz": tar(pinned), "/mine.tar.gz": tar(pinned)}
    assert load().data_hash == load(dataset="fsdd").data_hash == fsdd.TREE_HASH
    assert server.requests == ["/fsdd.tar.gz"], "the second comes from the cache"
    monkeypatch.setattr(fsdd, "_FOLDER", "another")
    assert load(data_url=server.url("/mine.tar.gz")).data_hash == fsdd.TREE_HASH
    assert server.requests[-1] == "/mine.tar.gz", "the setting wins"


def test_fsdd_demanded_and_not_available(tmp_path, recordings, tar):
    write(tmp_path / "mine", recordings)
    (tmp_path / "mine.tar.gz").write_bytes(tar(recordings))
    for form in ("mine", "mine.tar.gz"):
        with pytest.raises(DataError, match=rf"is not FSDD v1.0.10: .*tree hash .*{fsdd.TREE_HASH}") as caught:
            load(dataset="fsdd", data_dir=str(tmp_path / form))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"is not FSDD.*unpack it"):
        load(data_dir=str(tmp_path / "mine.tar.gz"))
    with pytest.raises(DownloadError, match="cannot be reached") as caught:
        load(dataset="fsdd")
    assert "\n" not in str(caught.value)


def test_auto_takes_other_recordings_and_reports_it(tmp_path, recordings):
    lines: list[str] = []
    corpus = load(lines, data_dir=str(write(tmp_path / "mine", recordings)))
    assert (corpus.name, len(corpus.data_hash)) == ("mine", 64)
    (line,) = lines
    assert all(words in line for words in ("is not FSDD v1.0.10", fsdd.content_hash(recordings), fsdd.TREE_HASH))
    assert len(load(lines, dataset="folder", data_dir=str(tmp_path / "mine"))) == 60
    assert len(lines) == 1


@pytest.mark.parametrize("dataset", ["auto", "fsdd", "folder"])
def test_a_chosen_place_is_never_replaced_by_something_else(tmp_path, dataset, monkeypatch):
    write(tmp_path, {"empty/note": b"", "file.txt": b"x"})
    for name in ("missing", "empty", "file.txt", "~no-such-user-here/recordings"):
        with pytest.raises(DataError) as caught:
            load(dataset=dataset, data_dir=str(tmp_path / name) if name[0] != "~" else name)
        assert "\n" not in str(caught.value)
        monkeypatch.setenv("DIGIT_DATA_DIR", str(tmp_path / name))
        with pytest.raises(DataError):
            load(dataset=dataset)
    monkeypatch.delenv("DIGIT_DATA_DIR")
    with pytest.raises(DataError, match="--data_dir"):
        load(dataset="folder")


def test_synthetic_speech_where_chosen_or_where_there_are_no_recordings(home, server, monkeypatch):
    monkeypatch.setattr(tts, "synthesize_digits", lambda seed, voices, takes: synthesize_digits(seed, 3, 1))
    lines: list[str] = []
    assert load(lines).synthetic
    assert "cannot be reached" in lines[1]
    assert any("!!!" in line and "synthetic speech" in line for line in lines)
    assert not list(home.rglob("*.wav"))
    monkeypatch.setenv("DIGIT_DATA_URL", server.url("/fsdd.tar.gz"))
    monkeypatch.setenv("DIGIT_DATA_DIR", "nowhere")
    assert load(dataset="synthetic").synthetic
    assert server.requests == []


# --- further recordings --------------------------------------------------------------------------


@pytest.fixture
def extra(tmp_path, wav):
    """Recordings 0 and 7 of one more speaker, and a bad file."""
    files = {f"{digit}_eva_{index}.wav": wav(200 + 50 * digit + index) for digit in range(10) for index in (0, 7)}
    return write(tmp_path / "further", files | {"5_eva_9.wav": b""})


def test_further_recordings_come_after_the_others_and_never_into_the_official_test(tmp_path, recordings, extra):
    first, second = load_folder(write(tmp_path / "mine", recordings)), load_folder(extra)
    corpus = load(dataset="folder", data_dir=str(tmp_path / "mine"), extra_digits_dir=str(extra))
    assert corpus.name == "mine and further"
    assert corpus.files == first.files + tuple(f"further/{file}" for file in second.files)
    assert corpus.speakers == first.speakers + second.speakers
    for column in ("waveforms", "lengths", "labels"):
        expected = np.concatenate([getattr(first, column), getattr(second, column)])
        np.testing.assert_array_equal(getattr(corpus, column), expected)
    assert [clip.file for clip in corpus.skipped] == ["5_eva_9.wav"]
    assert corpus.recordings == (first.data_hash, second.data_hash)
    assert corpus.data_hash == hashlib.sha256("\n".join(corpus.recordings).encode()).hexdigest()
    assert corpus.official_split
    np.testing.assert_array_equal(split_corpus(corpus, TrainConfig()).test, split_corpus(first, TrainConfig()).test)


def test_further_recordings_come_with_any_dataset(tmp_path, pinned, extra, wav):
    corpus = load(dataset="fsdd", data_dir=str(write(tmp_path / "fsdd", pinned)), extra_digits_dir=str(extra))
    assert (corpus.name, len(corpus)) == ("FSDD v1.0.10 and further", 80)
    unknown = [write(tmp_path / name, {f"{word}/{name}.wav": wav() for word in LABELS}) for name in ("one", "two")]
    assert len(load(dataset="folder", data_dir=str(unknown[0]), extra_digits_dir=str(unknown[1]))) == 20
    shared = write(tmp_path / "shared", {f"{digit}_theo_9.wav": wav() for digit in range(10)})
    with pytest.raises(DataError, match=r"share speakers \(theo\): rename them.*leave extra_digits_dir out"):
        load(dataset="fsdd", data_dir=str(tmp_path / "fsdd"), extra_digits_dir=str(shared))
    with pytest.raises(DataError, match="nowhere is not a folder"):
        load(dataset="fsdd", data_dir=str(tmp_path / "fsdd"), extra_digits_dir=str(tmp_path / "nowhere"))


# --- real recordings -----------------------------------------------------------------------------


@pytest.mark.real_data
def test_real_fsdd(fsdd_dir):
    corpus = load(dataset="fsdd", data_dir=str(fsdd_dir))
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
