"""Clips without a digit: which words, whose recordings, and in which part of a training."""

import dataclasses
import io
import sys

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data import negatives
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.data.negatives import PIECES_EACH, WORDS, WORDS_EACH, mix_negatives, recorded_negatives
from ml_training.data.splits import split_corpus
from ml_training.data.tts import VOICES

VOICES_MIXED = 12
EACH = WORDS_EACH + PIECES_EACH


def mix(corpus, **settings):
    values = {"split": "random", "synthetic_voices": VOICES_MIXED, **settings}
    config = TrainConfig(**values)  # type: ignore[arg-type]
    split = split_corpus(corpus, config, report=print)
    together, new, name = mix_negatives(corpus, split, config)
    return together, split, new, name


def added_speakers(mixed):
    """The speakers of the negatives of training and of validation."""
    corpus, before, after, _ = mixed
    pairs = ((before.train, after.train), (before.validation, after.validation))
    train, validation = ({corpus.speakers[i] for i in new[len(old) :]} for old, new in pairs)
    return train, validation


@pytest.fixture(scope="module")
def mixed(tiny_corpus):
    """The tiny corpus with the words of twelve voices; its split before and after."""
    return mix(tiny_corpus)


def test_they_come_last_and_are_labelled_as_no_digit(tiny_corpus, mixed):
    corpus, _, _, name = mixed
    first, count = len(tiny_corpus), VOICES_MIXED * EACH
    assert len(corpus) == first + count
    assert (corpus.labels[first:] == NOT_A_DIGIT).all()
    for column in ("waveforms", "lengths", "labels", "indices"):
        np.testing.assert_array_equal(getattr(corpus, column)[:first], getattr(tiny_corpus, column))
    assert corpus.files[:first] == tiny_corpus.files
    assert set(corpus.speakers[first:]) == {f"espeak-{voice}" for voice in VOICES[:VOICES_MIXED]}
    assert corpus.waveforms.dtype == np.float32
    assert name == f"{count} synthetic words, digits cut off, doubled, spliced, turned round, noise"
    assert (corpus.name, corpus.synthetic) == (tiny_corpus.name, tiny_corpus.synthetic)


def test_training_and_validation_get_those_of_other_speakers_and_the_test_part_none(tiny_corpus, mixed):
    corpus, before, after, _ = mixed
    for part in ("train", "validation"):
        old, new = getattr(before, part), getattr(after, part)
        np.testing.assert_array_equal(new[: len(old)], old)
        assert (new[len(old) :] >= len(tiny_corpus)).all()
        assert (np.diff(new) > 0).all()
    np.testing.assert_array_equal(after.test, before.test)
    train, validation = added_speakers(mixed)
    assert not train & validation
    assert (len(train), len(validation)) == (VOICES_MIXED - 1, 1)
    assert sum(corpus.labels[after.train] == NOT_A_DIGIT) == len(train) * EACH
    added = len(after.validation) - len(before.validation)
    assert added == len(before.validation) == 20, "as many as digits, if there are so many"


def test_the_hash_includes_them(tiny_corpus, mixed):
    corpus, _, after, _ = mixed
    again, _, same, _ = mix(tiny_corpus)
    assert corpus.data_hash == again.data_hash != tiny_corpus.data_hash
    np.testing.assert_array_equal(after.validation, same.validation)
    other = dataclasses.replace(tiny_corpus, data_hash="other", sources=("one", "two"))
    changed = [mix(tiny_corpus, seed=1)[0], mix(tiny_corpus, synthetic_voices=3)[0], mix(other)[0]]
    assert len({each.data_hash for each in (corpus, *changed)}) == 4
    assert changed[-1].recordings == ("one", "two"), "its sources stay those of the recordings"


def test_without_a_share_or_speech_synthesis(tiny_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    negatives.synthetic_negatives.cache_clear()
    with pytest.raises(DataError, match=r"\[train\] extra.*--negative_ratio 0"):
        mix(tiny_corpus)
    corpus, before, after, name = mix(tiny_corpus, negative_ratio=0.0, non_digit_dir="nowhere")
    assert (corpus, after, name) == (tiny_corpus, before, "")


def test_each_voice_has_words_and_pieces_of_sentences(tiny_corpus, mixed):
    homophones = {"oh", "o", "won", "to", "too", "for", "fore", "ate", "nought", "naught", "nil", "tree's", "sicks"}
    assert len(set(WORDS)) == len(WORDS) > 200
    assert not set(WORDS) & {*LABELS, *homophones}
    corpus, first = mixed[0], len(tiny_corpus)
    texts = [file.split("_")[0].split("-") for file in corpus.files[first:]]
    assert {word for words in texts for word in words} <= set(WORDS)
    assert [len(words) > 1 for words in texts[:EACH]] == [False] * WORDS_EACH + [True] * PIECES_EACH
    assert {len(words) for words in texts} == {1, 3, 4, 5}
    lengths = corpus.lengths[first:].reshape(VOICES_MIXED, EACH)
    assert (lengths.min() > 800, lengths.max()) == (True, 8000)
    assert (lengths[:, WORDS_EACH:] == 8000).mean() > 0.6, "a piece is a second out of the middle"
    assert (lengths[:, :WORDS_EACH] == 8000).mean() < 0.2
    assert (np.abs(corpus.waveforms[first:]).max(axis=1) > 0.01).all()
    assert len({waveform.tobytes() for waveform in corpus.waveforms[first:]}) == VOICES_MIXED * EACH


# --- recorded words ------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path, wav):
    """Two words of five speakers each, and digits among them."""
    folder = tmp_path / "my words"
    names = ("ann", "ben", "cy", "di", "eve")
    files = [f"{word}_{name}_0.wav" for word in ("yes", "7", "Seven", "no") for name in names]
    files += ["zero/0a7c2a8d_nohash_0.wav", "bed/0a7c2a8d_nohash_0.wav", "happy/ffd2ba2f_nohash_1.wav"]
    files += ["two.wav", "cough.wav", "9.wav"]
    for position, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(wav(300 + 10 * position))
    (folder / "notes.txt").write_text("no audio")
    (folder / "._cough.wav").write_bytes(b"as macOS leaves")
    return folder


def test_recorded_words_without_the_digits_among_them(words):
    found = recorded_negatives(str(words))
    expected = {f"{word}_{name}_0.wav" for word in ("yes", "no") for name in ("ann", "ben", "cy", "di", "eve")}
    expected |= {"bed/0a7c2a8d_nohash_0.wav", "happy/ffd2ba2f_nohash_1.wav", "cough.wav"}
    assert (found.name, set(found.files)) == ("recorded words", expected)
    assert set(found.speakers) == {"ann", "ben", "cy", "di", "eve", "0a7c2a8d", "ffd2ba2f", "cough"}
    assert found.waveforms.shape == (13, 8000)
    assert (found.lengths == 3200).all()


@pytest.mark.parametrize(
    ("file", "speaker"),
    [
        ("yes_anna_0.wav", "anna"), ("yes_anna.wav", "anna"), ("cough.wav", "cough"), ("yes_0.wav", "0"),
        ("on/anna_0.wav", "anna"), ("on/anna.wav", "anna"), ("on/on_anna_0.wav", "anna"), ("deep/on/ben_12.wav", "ben"),
        ("on/0a7c2a8d_nohash_0.wav", "0a7c2a8d"), ("0a7c2a8d_nohash_3.wav", "0a7c2a8d"),
    ],
)  # fmt: skip
def test_speakers_of_names_and_folders(tmp_path, wav, file, speaker):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(wav(300))
    assert recorded_negatives(str(tmp_path)).speakers == (speaker,)


def test_silence_around_a_recorded_word_is_cut_off(tmp_path):
    room = 1e-3 * np.random.default_rng(0).standard_normal(16000)
    room[6000:9200] += 0.3 * np.sin(np.arange(3200))
    soundfile.write(tmp_path / "yes_ann_0.wav", room, 8000)
    (length,) = recorded_negatives(str(tmp_path)).lengths
    assert 3200 <= length <= 3200 + 4 * 80


def test_a_few_recorded_words_are_as_frequent_as_many_synthetic_ones(tiny_corpus, words):
    together = mix(tiny_corpus, synthetic_voices=8, non_digit_dir=str(words))
    corpus, before, after, name = together
    assert name.startswith(f"{8 * EACH} synthetic words, 13 recorded words, digits cut off")
    assert len(corpus) == len(tiny_corpus) + 8 * EACH + 13
    chosen = after.train[len(before.train) :]
    synthetic = np.array([corpus.speakers[i].startswith("espeak-") for i in chosen])
    assert len(set(chosen[~synthetic])) < len(set(chosen[synthetic])) / 5
    assert (~synthetic).sum() == pytest.approx(synthetic.sum(), rel=0.35), "speakers of validation are left out"
    assert len(set(after.validation)) == len(after.validation)
    train, validation = added_speakers(together)
    assert not train & validation
    assert len(train | validation) == 8 + 8


def silent_wav():
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(800), 8000, format="WAV")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, r"non_digit_dir .*words is not a folder: expected one with recordings of words"),
        ({}, r"non_digit_dir .*words holds no recordings of words that are no digits.*yes_anna_0\.wav"),
        ({"seven_ann_0.wav": silent_wav()}, r"non_digit_dir .*words holds no recordings"),
        ({"yes_ann_0.wav": b"no sound"}, r"non_digit_dir .*words: yes_ann_0\.wav: .*not audio.*fix or remove it"),
        ({"yes_ann_0.wav": silent_wav()}, r"non_digit_dir .*words: yes_ann_0\.wav: .*silen.*fix or remove it"),
    ],
)
def test_a_folder_of_words_that_cannot_be_used_says_why(tiny_corpus, tmp_path, files, message):
    folder = tmp_path / "words"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        mix(tiny_corpus, synthetic_voices=2, non_digit_dir=str(folder))
