"""Tables of path and label as recordings: columns, labels, parts, and what is wrong with a row or the whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data.corpus import UNKNOWN_SPEAKER
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.evaluation.protocols import official_part


@pytest.fixture
def clips(tmp_path, wav) -> Path:
    """Files of names that say nothing: a0.wav ... a9.wav and b0.wav ... b9.wav in audio/, labelled by their number."""
    (tmp_path / "audio").mkdir()
    for digit in range(10):
        for who in "ab":
            (tmp_path / "audio" / f"{who}{digit}.wav").write_bytes(wav(200 + 50 * digit))
    return tmp_path


def table(folder: Path, lines: list[str], name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return path


def rows(who: str = "ab", more: str = "") -> list[str]:
    return [f"audio/{w}{digit}.wav,{LABELS[digit] if w == 'a' else digit}{more}" for digit in range(10) for w in who]


@pytest.mark.parametrize(
    ("name", "header", "separator"),
    [
        ("t.csv", "path,label", ","), ("t.csv", None, ","), ("t.CSV", "Filename;Digit", ";"),
        ("t.tsv", "file\tword", "\t"), ("t.tsv", None, "\t"), ("t.csv", "\ufefffile,label", ","),
    ],
)  # fmt: skip
def test_paths_and_labels(clips, name, header, separator):
    lines = [line.replace(",", separator) for line in rows()]
    corpus = load_folder(table(clips, [header, *lines] if header else lines, name))
    assert corpus.name == "t"
    assert corpus.files == tuple(sorted(f"audio/{who}{digit}.wav" for who in "ab" for digit in range(10)))
    assert corpus.labels.tolist() == [*range(10), *range(10)]
    assert set(corpus.speakers) == {UNKNOWN_SPEAKER}
    assert corpus.skipped == ()
    assert (
        load_folder(table(clips, [header, *lines[::-1]] if header else lines[::-1], name)).data_hash == corpus.data_hash
    )


@pytest.mark.parametrize("dataset", ["auto", "folder"])
def test_a_table_is_a_data_set_as_a_folder_is(clips, dataset):
    path = table(clips, ["path,label", *rows()])
    corpus = load_corpus(TrainConfig(dataset=dataset, data_dir=str(path)), report=lambda line: None)
    assert len(corpus) == 20
    with pytest.raises(DataError, match=r"table\.csv is a table: train on what it names with --dataset folder"):
        load_corpus(TrainConfig(dataset="fsdd", data_dir=str(path)))


def test_speakers_and_parts(clips):
    lines = [f"{line},{line[6]}na,{'test' if line[6] == 'b' else 'Train'}" for line in rows()]
    lines[2] = lines[2].replace("Train", "val")
    corpus = load_folder(table(clips, ["path,label,speaker,split", *lines]))
    assert set(corpus.speakers) == {"ana", "bna"}
    split = split_corpus(corpus, TrainConfig())
    assert split.name == "official"
    assert {corpus.speakers[i] for i in split.test} == {"bna"}
    assert [corpus.files[i] for i in split.validation] == ["audio/a1.wav"]
    assert split.parts == {"train": 9, "validation": 1, "test": 10}
    assert split_corpus(corpus, TrainConfig(split="random", validation_share=0.2)).parts["test"] == 4
    part = official_part(corpus)
    assert (len(part.corpus), part.description) == (10, "the test part of table: 10 clips, 1 speakers")


def test_labels_decide_the_hash_too(clips):
    hashes = {
        load_folder(table(clips, ["path,label,speaker,split", *lines])).data_hash
        for lines in (rows(more=",anna,train"), rows(more=",bob,train"), rows(more=",anna,test"),
                      [line.replace("nine", "one") for line in rows(more=",anna,train")])
    }  # fmt: skip
    assert len(hashes) == 4


def test_rows_of_no_use_are_left_out_and_listed(clips, wav):
    for number in range(100):
        (clips / f"{number}.wav").write_bytes(wav())
    os.mkfifo(clips / "pipe.wav") if hasattr(os, "mkfifo") else (clips / "pipe.wav").mkdir()
    bad = ["0.wav,eleven", "audio/nowhere.wav,3", "0.wav,0", "pipe.wav,3", ",3"]
    corpus = load_folder(table(clips, ["path,label", *[f"{n}.wav,{n % 10}" for n in range(100)], *bad]))
    assert len(corpus) == 100
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
def test_a_table_that_will_not_do_says_why(clips, lines, words):
    with pytest.raises(DataError, match=words) as caught:
        load_folder(table(clips, lines))
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_text_is_no_table(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00,1\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        load_folder(tmp_path / "t.csv")
    with pytest.raises(DataError, match="is not a folder"):
        load_folder(tmp_path / "missing.csv")


def test_names_reach_no_terminal_raw(clips):
    (clips / "a\x1b[2J.wav").write_bytes((clips / "audio" / "a3.wav").read_bytes())
    corpus = load_folder(table(clips, ["path,label", "a\x1b[2J.wav,3"]))
    assert corpus.files == ("a\\x1b[2J.wav",)
