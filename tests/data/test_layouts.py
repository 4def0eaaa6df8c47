"""Layouts of folders and tables of recordings: labels, speakers and parts; bad files and rows are skipped and named."""

import os
import sys

import numpy as np
import pytest
import soundfile

from digit_detector.audio import load_audio
from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data.corpus import UNKNOWN_SPEAKER
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.evaluation.protocols import official_part


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def flat_files(wav, speaker="anna", indices=6):
    return {f"{digit}_{speaker}_{index}.wav": wav() for digit in range(10) for index in range(indices)}


def found(folder):
    """File -> label, speaker, index of a folder without bad files."""
    corpus = load_folder(folder)
    assert corpus.skipped == ()
    columns = zip(corpus.labels.tolist(), corpus.speakers, corpus.indices.tolist(), strict=True)
    return dict(zip(corpus.files, columns, strict=True))


# --- folders -------------------------------------------------------------------------------------


def test_digit_speaker_index(tmp_path, recordings):
    corpus = load_folder(write(tmp_path / "mine", recordings))
    assert corpus.name == "mine"
    assert corpus.files == tuple(sorted(recordings))
    assert (corpus.waveforms.shape, corpus.waveforms.dtype) == ((60, 8000), np.float32)
    for row, file in enumerate(corpus.files):
        digit, speaker, index = file.removesuffix(".wav").split("_")
        assert (corpus.labels[row], corpus.speakers[row], corpus.indices[row]) == (int(digit), speaker, int(index))
        np.testing.assert_array_equal(corpus.waveforms[row], load_audio(recordings[file]))
    assert set(corpus.lengths) == {400}
    assert corpus.hours == pytest.approx(60 * 0.05 / 3600)
    assert corpus.official_split
    assert not corpus.synthetic
    checkout = write(tmp_path / "checkout", {f"recordings/{name}": content for name, content in recordings.items()})
    assert load_folder(write(checkout, {"README.md": b"", "metadata.py": b""})).files == corpus.files


def test_suffixes_rates_lengths_and_names(tmp_path, wav):
    samples = np.sin(np.arange(96_000) / 7).astype(np.float32)
    soundfile.write(tmp_path / "3_eva_1.flac", np.stack([samples, samples], axis=1), 48_000)
    soundfile.write(tmp_path / "4_eva_2.ogg", samples[:16_000], 44_100)
    (tmp_path / "5_Ärmel Köln-x_12.WAV").write_bytes(wav(seconds=0.25, rate=16_000))
    (tmp_path / "notes.txt").write_bytes(b"no audio")
    (tmp_path / "7_anna_9.wav").mkdir()
    corpus = load_folder(tmp_path)
    assert (list(corpus.labels), list(corpus.indices)) == ([3, 4, 5], [1, 2, 12])
    assert corpus.speakers == ("eva", "eva", "Ärmel Köln-x")
    assert list(corpus.lengths) == [8000, pytest.approx(16_000 * 8000 / 44_100, abs=2), 2000]
    assert not corpus.official_split, "no speaker has a digit on both sides of index 5"


LAYOUTS = {
    "Speech Commands": (
        {"seven/0a7c_nohash_0.wav": (7, "0a7c", 0), "seven/ffd2_nohash_1.wav": (7, "ffd2", 1),
         "zero/0a7c_nohash_0.wav": (0, "0a7c", 0)},
        ["bed/0a7c_nohash_0.wav", "_background_noise_/tap.wav", "testing_list.txt"],
    ),
    "AudioMNIST": ({"01/7_01_49.wav": (7, "01", 49), "60/0_60_0.wav": (0, "60", 0)}, ["audioMNIST_meta.txt"]),
    "AudioMNIST below data": ({"01/7_01_49.wav": (7, "01", 49), "60/0_60_0.wav": (0, "60", 0)}, ["../meta.txt"]),
    "speakers called by numbers": ({f"{s}/{d}_{s}_0.wav": (d, s, 0) for s in "123" for d in range(10)}, []),
    "digits below speakers": ({f"{s}/{d}/take.wav": (d, s, 0) for s in ("anna", "bob") for d in (3, 7)}, []),
    "files of any name": (
        {"0/Aufnahme 12.wav": (0, UNKNOWN_SPEAKER, 0), "Zero/anna/x.wav": (0, "anna", 0),
         "SEVEN/7.wav": (7, UNKNOWN_SPEAKER, 0), "7/3_rec_1.wav": (7, UNKNOWN_SPEAKER, 0),
         "7/7_ida_4.wav": (7, "ida", 4), "7/bob/monday/take 1.flac": (7, "bob", 2), "7/eva_nohash_3.wav": (7, "eva", 3),
         "nine/anna/y.WAV": (9, "anna", 0)},
        ["noise/hum.wav", "7/.hidden.wav", "7/a.txt", "7/.git/1.wav"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders(tmp_path, wav, name):
    expected, others = LAYOUTS[name]
    root = tmp_path / "data" if "below data" in name else tmp_path
    write(root, {file: wav() for file in expected} | dict.fromkeys(others, b""))
    assert found(tmp_path) == expected
    assert load_folder(tmp_path).files == tuple(sorted(expected))
    assert not load_folder(tmp_path).official_split


def test_digits_beside_files_of_the_flat_layout_count_too(tmp_path, wav):
    corpus = load_folder(write(tmp_path, flat_files(wav, indices=8) | {"4/more.wav": wav()}))
    assert (len(corpus), corpus.labels[corpus.files.index("4/more.wav")]) == (81, 4)
    assert not corpus.official_split, "its numbers are not those of FSDD"


def test_links_are_followed_once(tmp_path, wav):
    write(tmp_path, {"3/anna/x.wav": wav(), "other/y.wav": wav()})
    (tmp_path / "3" / "anna" / "round").symlink_to(tmp_path / "3")
    (tmp_path / "3" / "bob").symlink_to(tmp_path / "other")
    assert found(tmp_path) == {"3/anna/x.wav": (3, "anna", 0), "3/bob/y.wav": (3, "bob", 1)}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_utf_8(tmp_path, wav):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    write(folder, {os.fsdecode(b"%d_j\xfcrgen_0.wav" % digit): wav() for digit in range(10)})
    corpus = load_folder(folder)
    assert (len(corpus), corpus.name) == (10, "caf\\udce9")


@pytest.mark.parametrize("file", ["", "notes.txt", "hello.wav", "a/b/0_c_0.wav", "bed/x_nohash_0.wav"])
def test_a_folder_without_digits_names_the_layouts(tmp_path, file):
    with pytest.raises(DataError, match=r"\{digit\}_\{speaker\}_\{index\}.*Speech Commands.*AudioMNIST"):
        load_folder(write(tmp_path, {file: b"x"} if file else {}))
    for path in (tmp_path / "missing", write(tmp_path, {"file": b""}) / "file"):
        with pytest.raises(DataError, match="is not a folder"):
            load_folder(path)


def test_without_names_of_speakers_none_can_be_left_out(tmp_path, wav):
    write(tmp_path, {f"{word}/{who}/{n}.wav": wav() for word in LABELS for who in ("anna", "bob") for n in range(5)})
    held_out = TrainConfig(split="speaker", held_out_speaker="anna")
    assert split_corpus(load_folder(tmp_path), held_out).parts["test"] == 50
    corpus = load_folder(write(tmp_path, {"3/who.wav": wav()}))
    with pytest.raises(DataError, match=r"1 of its 101 clips: leaving a speaker out needs"):
        split_corpus(corpus, held_out)
    assert sum(split_corpus(corpus, TrainConfig(split="random")).parts.values()) == 101


# --- bad files -----------------------------------------------------------------------------------


def test_bad_files_are_skipped_and_say_why(tmp_path, wav, monkeypatch):
    monkeypatch.setattr("ml_training.data.clip_files.MAX_CLIP_BYTES", 50_000)
    write(tmp_path, flat_files(wav, indices=20) | {"0_bad_0.wav": b"", "0_bad_1.wav": b"no audio at all"})
    write(tmp_path, {"0_bad_4.wav": wav()[:44], "0_bad_6.wav": wav(seconds=4), "hello.wav": wav()})
    soundfile.write(tmp_path / "0_bad_2.wav", np.full(800, np.nan, np.float32), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "0_bad_3.wav", np.zeros(800, np.float32), 8000)
    loud = np.float32(3e38) * np.sin(np.arange(4000) / 3).astype(np.float32)
    soundfile.write(tmp_path / "0_bad_7.wav", loud, 44_100, subtype="FLOAT")
    (tmp_path / "0_bad_5.wav").symlink_to(tmp_path / "missing.wav")  # leads nowhere: no file at all
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "0_bad_8.wav")  # opening it would block
    corpus = load_folder(tmp_path)
    assert (len(corpus), set(corpus.speakers)) == (200, {"anna"})
    assert 0.2 < np.abs(corpus.waveforms).max(axis=1).min() < 1
    reasons = {clip.file: clip.reason for clip in corpus.skipped}
    expected = {
        "0_bad_0.wav": "empty", "0_bad_1.wav": "not audio", "0_bad_2.wav": "NaN", "0_bad_3.wav": "silence",
        "0_bad_4.wav": "cut off", "0_bad_6.wav": "expected at most 50000", "0_bad_7.wav": "loud",
        "hello.wav": "its name is not",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    for file, words in expected.items():
        assert words in reasons[file], (file, reasons[file])


def test_a_file_in_the_folder_of_another_speaker_is_named(tmp_path, wav):
    files = {f"01/{digit}_01_{n}.wav": wav() for digit in range(10) for n in range(3)}
    (skipped,) = load_folder(write(tmp_path, files | {"01/0_02_0.wav": wav()})).skipped
    assert (skipped.file, skipped.reason) == ("01/0_02_0.wav", "its name says speaker 02, its folder 01")


def test_above_five_per_cent_of_bad_files_the_run_stops(tmp_path, wav):
    write(tmp_path, flat_files(wav, indices=19) | {f"0_bad_{index}.wav": b"" for index in range(10)})
    assert len(load_folder(tmp_path).skipped) == 10  # exactly 5 %
    write(tmp_path, {"0_bad_10.wav": b""})
    with pytest.raises(DataError, match=r"11 of 201 files .*\(5\.5%.*first 0_bad_0\.wav: .*empty.*, and 10 more: "):
        load_folder(tmp_path)
    with pytest.raises(DataError, match=r"\(2 audio files, first a\.wav: its name is not .*, and 1 more\): expected"):
        load_folder(write(tmp_path / "flat", {"a.wav": wav(), "b.wav": wav()}))


# --- tables --------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path, wav):
    """Files of names without a label: a0.wav ... a9.wav and b0.wav ... b9.wav in audio/."""
    return write(tmp_path, {f"audio/{who}{digit}.wav": wav(200 + 50 * digit) for digit in range(10) for who in "ab"})


def table(folder, lines, name="table.csv"):
    path = folder / name
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def rows(more=""):
    return [f"audio/{w}{digit}.wav,{LABELS[digit] if w == 'a' else digit}{more}" for digit in range(10) for w in "ab"]


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("t.csv", "path,label", ","), ("t.csv", None, ","), ("t.CSV", "Filename;Digit", ";"),
        ("t.tsv", "file\tword", "\t"), ("t.tsv", None, "\t"), ("t.csv", "\ufefffile,label", ","),
    ],
)  # fmt: skip
def test_paths_and_labels(clips, name, header, separator):
    lines, head = [line.replace(",", separator) for line in rows()], [header] if header else []
    corpus = load_folder(table(clips, [*head, *lines], name))
    assert corpus.name == "t"
    assert corpus.files == tuple(sorted(f"audio/{who}{digit}.wav" for who in "ab" for digit in range(10)))
    assert corpus.labels.tolist() == [*range(10), *range(10)]
    assert set(corpus.speakers) == {UNKNOWN_SPEAKER}
    assert corpus.skipped == ()
    assert load_folder(table(clips, [*head, *lines[::-1]], name)).data_hash == corpus.data_hash


@pytest.mark.parametrize("dataset", ["auto", "folder"])
def test_a_table_is_a_data_set_as_a_folder_is(clips, dataset):
    path = table(clips, ["path,label", *rows()])
    assert len(load_corpus(TrainConfig(dataset=dataset, data_dir=str(path)), report=lambda line: None)) == 20
    with pytest.raises(DataError, match=r"table\.csv is a table: train on what it names with --dataset folder"):
        load_corpus(TrainConfig(dataset="fsdd", data_dir=str(path)))


def test_speakers_and_parts(clips):
    lines = [f"{line},{line[6]}na,{'test' if line[6] == 'b' else 'Train'}" for line in rows()]
    lines[2] = lines[2].replace("Train", "val")
    corpus = load_folder(table(clips, ["path,label,speaker,split", *lines]))
    assert set(corpus.speakers) == {"ana", "bna"}
    split = split_corpus(corpus, TrainConfig())
    assert (split.name, {corpus.speakers[i] for i in split.test}) == ("official", {"bna"})
    assert [corpus.files[i] for i in split.validation] == ["audio/a1.wav"]
    assert split.parts == {"train": 9, "validation": 1, "test": 10}
    assert split_corpus(corpus, TrainConfig(split="random", validation_ratio=0.2)).parts["test"] == 4
    part = official_part(corpus)
    assert (len(part.corpus), part.description) == (10, "the test part of table: 10 clips, 1 speakers")


def test_labels_speakers_and_parts_decide_the_hash_too(clips):
    plain = rows(more=",anna,train")
    variants = (
        plain,
        rows(more=",bob,train"),
        rows(more=",anna,test"),
        [line.replace("nine", "one") for line in plain],
    )
    hashes = {load_folder(table(clips, ["path,label,speaker,split", *lines])).data_hash for lines in variants}
    assert len(hashes) == 4


def test_bad_rows_are_left_out_and_listed(clips, wav):
    write(clips, {f"{number}.wav": wav() for number in range(100)} | {"a\x1b[2J.wav": wav()})
    (clips / "pipe.wav").mkdir()
    bad = ["0.wav,eleven", "audio/nowhere.wav,3", "0.wav,0", "pipe.wav,3", ",3", "a\x1b[2J.wav,3"]
    corpus = load_folder(table(clips, ["path,label", *[f"{n}.wav,{n % 10}" for n in range(100)], *bad]))
    assert len(corpus) == 101
    assert corpus.files[-1] == "a\\x1b[2J.wav", "names reach no terminal raw"
    assert {clip.file: clip.reason for clip in corpus.skipped} == {
        "0.wav (line 102)": "line 102 labels it 'eleven', expected 0 to 9 or zero to nine",
        "audio/nowhere.wav": "cannot be read: No such file or directory",
        "0.wav (line 104)": "line 2 of the table names it already",
        "pipe.wav": "cannot be read: it is no regular file",
        "line 106": "it names no file",
    }


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty: expected a header with columns path/file/filename and label/digit/word"),
        (["name,age", "x,3"], "begins with 'name,age': expected a header"),
        (["audio/a1.wav,one,anna"], "expected a header"),
        (["path,file,label", "a,b,1"], "several columns of path"),
        (["path,label", "audio/a1.wav,1", "audio/../audio/a1.wav,2"], "line 3 labels .* two, line 2 one"),
        (["path,label,split", "audio/a1.wav,1,train", "audio/a2.wav,2,"], "line 3 has the split ''"),
        (["path,label", 'audio/a1.wav,"1'], "is not a table of CSV"),
        (["path,label"], r"holds no recordings of digits \(0 audio files\)"),
        (["path,label", *rows(), "x.wav,bed", "y.wav,bird"], r"first x\.wav \(line 22\): .*, and 1 more"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_used_says_why(clips, lines, words):
    with pytest.raises(DataError, match=words) as caught:
        load_folder(table(clips, lines))
    assert "\n" not in str(caught.value)


def test_what_is_no_text_is_no_table(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_folder(tmp_path / "t.csv")
    with pytest.raises(DataError, match="is not a folder"):
        load_folder(tmp_path / "missing.csv")
