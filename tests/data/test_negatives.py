"""Clips without a digit: what is said in them, where it comes from, and which part of a training hears whom."""

from __future__ import annotations

import dataclasses
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from digit_detector.labels import LABELS
from ml_training.config import TrainConfig
from ml_training.data import negatives
from ml_training.data.corpus import NOT_A_DIGIT, Corpus, make_corpus
from ml_training.data.negatives import PIECES_EACH, WORDS, WORDS_EACH, hash_of_words, mix_negatives, recorded_negatives
from ml_training.data.splits import Split, split_corpus
from ml_training.data.tts import VOICES

VOICES_HEARD = 12
EACH = WORDS_EACH + PIECES_EACH


@pytest.fixture(scope="module")
def mixed(tiny_corpus: Corpus) -> tuple[Corpus, Split, Split, str]:
    """The tiny corpus with what twelve voices say; its split before and after."""
    return beside(tiny_corpus)


def beside(corpus: Corpus, **settings: object) -> tuple[Corpus, Split, Split, str]:
    values = {"split": "random", "synthetic_voices": VOICES_HEARD, **settings}
    config = TrainConfig(**values)  # type: ignore[arg-type]
    split = split_corpus(corpus, config, report=print)
    together, new, name = mix_negatives(corpus, split, config)
    return together, split, new, name


Mixed = tuple[Corpus, Split, Split, str]

# --- mix_negatives ------------------------------------------------------------------------------


def test_they_come_last_and_are_labelled_as_no_digit(tiny_corpus: Corpus, mixed: Mixed) -> None:
    corpus, _, _, name = mixed
    first, count = len(tiny_corpus), VOICES_HEARD * EACH
    assert len(corpus) == first + count
    assert (corpus.labels[first:] == NOT_A_DIGIT).all()
    assert NOT_A_DIGIT not in range(10)
    for column in ("waveforms", "lengths", "labels", "indices"):
        np.testing.assert_array_equal(getattr(corpus, column)[:first], getattr(tiny_corpus, column))
    assert corpus.files[:first] == tiny_corpus.files
    assert set(corpus.speakers[first:]) == {f"espeak-{voice}" for voice in VOICES[:VOICES_HEARD]}
    assert corpus.waveforms.dtype == np.float32
    assert name == f"{count} synthetic words, digits cut off, doubled, spliced, turned round, noise"
    assert (corpus.name, corpus.synthetic) == (tiny_corpus.name, tiny_corpus.synthetic)


def test_training_and_validation_get_some_and_the_test_part_none(tiny_corpus: Corpus, mixed: Mixed) -> None:
    _, before, after, _ = mixed
    for part in ("train", "validation"):
        old, new = getattr(before, part), getattr(after, part)
        np.testing.assert_array_equal(new[: len(old)], old)
        assert (new[len(old) :] >= len(tiny_corpus)).all()
        assert len(new) > len(old)
        assert (np.diff(new) > 0).all()
    np.testing.assert_array_equal(after.test, before.test)
    assert not set(after.train) & set(after.validation)
    added = len(after.validation) - len(before.validation)
    assert added == len(before.validation) == 20, "as many as digits, where there are so many"


def test_nobody_is_heard_in_both_parts(tiny_corpus: Corpus, mixed: Mixed) -> None:
    corpus, _, after, _ = mixed
    learnt, judged = (
        {corpus.speakers[i] for i in part if corpus.labels[i] == NOT_A_DIGIT}
        for part in (after.train, after.validation)
    )
    assert not learnt & judged
    assert len(judged) == 1
    assert len(learnt) == VOICES_HEARD - 1
    assert sum(corpus.labels[after.train] == NOT_A_DIGIT) == len(learnt) * EACH


@pytest.mark.parametrize(("voices", "judges"), [(1, 0), (2, 1), (5, 1), (14, 1), (15, 2)])
def test_one_of_two_judges_at_least(
    tiny_corpus: Corpus, voices: int, judges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_up(seed: int, count: int) -> Corpus:
        names = [f"voice{i}" for i in range(count)] * 3
        clips = [np.ones(8000, dtype=np.float32)] * len(names)
        return make_corpus("words", clips, [NOT_A_DIGIT] * len(names), names, range(len(names)), names, True)

    monkeypatch.setattr(negatives, "synthetic_negatives", made_up)
    corpus, before, after, _ = beside(tiny_corpus, synthetic_voices=voices)
    judging = {corpus.speakers[i] for i in after.validation[len(before.validation) :]}
    assert len(judging) == judges
    assert len({corpus.speakers[i] for i in after.train[len(before.train) :]}) == voices - judges


def test_the_hash_tells_of_them(tiny_corpus: Corpus, mixed: Mixed) -> None:
    corpus, _, after, _ = mixed
    again, _, same, _ = beside(tiny_corpus)
    assert corpus.data_hash == again.data_hash != tiny_corpus.data_hash
    np.testing.assert_array_equal(after.validation, same.validation)
    changes = ({"seed": 1}, {"synthetic_voices": 3})
    others = {beside(tiny_corpus, **change)[0].data_hash for change in changes}
    assert len(others | {corpus.data_hash}) == 3
    other = dataclasses.replace(tiny_corpus, data_hash="other")
    assert beside(other)[0].data_hash != corpus.data_hash


def test_the_sources_stay_those_of_the_recordings(tiny_corpus: Corpus) -> None:
    put_together = dataclasses.replace(tiny_corpus, sources=("one", "two"))
    assert beside(put_together, synthetic_voices=2)[0].recordings == ("one", "two")


def test_without_a_share_everything_is_left_alone(tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    corpus, before, after, name = beside(tiny_corpus, negative_share=0.0, words_dir="nowhere")
    assert corpus is tiny_corpus
    assert after is before
    assert name == ""


def test_without_speech_synthesis_the_way_out_is_named(tiny_corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    negatives.synthetic_negatives.cache_clear()
    with pytest.raises(DataError, match=r"\[train\] extra.*--negative_share 0"):
        beside(tiny_corpus)


# --- synthetic words -----------------------------------------------------------------------------


def test_no_word_is_a_digit_or_sounds_like_one() -> None:
    sounding = {"oh", "o", "won", "to", "too", "for", "fore", "ate", "nought", "naught", "nil", "tree's", "sicks"}
    assert len(set(WORDS)) == len(WORDS) > 200
    assert not set(WORDS) & {*LABELS, *sounding}
    assert all(word.isalpha() and word.islower() for word in WORDS)


def test_each_voice_says_words_and_pieces_of_sentences(tiny_corpus: Corpus, mixed: Mixed) -> None:
    corpus, *_ = mixed
    first = len(tiny_corpus)
    said = [file.split("_")[0].split("-") for file in corpus.files[first:]]
    assert {word for words in said for word in words} <= set(WORDS)
    voice = said[:EACH]
    assert [len(words) > 1 for words in voice] == [False] * WORDS_EACH + [True] * PIECES_EACH
    assert {len(words) for words in said} == {1, 3, 4, 5}
    lengths = corpus.lengths[first:].reshape(VOICES_HEARD, EACH)
    assert lengths.min() > 800
    assert lengths.max() == 8000
    assert (lengths[:, WORDS_EACH:] == 8000).mean() > 0.6, "a piece is a second out of the middle"
    assert (lengths[:, :WORDS_EACH] == 8000).mean() < 0.2
    assert (np.abs(corpus.waveforms[first:]).max(axis=1) > 0.01).all()
    assert len({waveform.tobytes() for waveform in corpus.waveforms[first:]}) == VOICES_HEARD * EACH


# --- recorded words ------------------------------------------------------------------------------


@pytest.fixture
def words(tmp_path: Path, wav: Callable[..., bytes]) -> Path:
    """Two words of five speakers each, and digits among them."""
    folder = tmp_path / "my words"
    files = [
        f"{word}_{name}_0.wav" for word in ("yes", "7", "Seven", "no") for name in ("ann", "ben", "cy", "di", "eve")
    ]
    files += ["zero/0a7c2a8d_nohash_0.wav", "bed/0a7c2a8d_nohash_0.wav", "happy/ffd2ba2f_nohash_1.wav"]
    files += ["two.wav", "cough.wav", "9.wav"]
    for position, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(wav(300 + 10 * position))
    (folder / "notes.txt").write_text("no audio")
    (folder / "._cough.wav").write_bytes(b"as macOS leaves")
    return folder


def test_recorded_words_are_taken_and_digits_among_them_left_out(words: Path) -> None:
    found = recorded_negatives(str(words))
    assert found.name == "recorded words"
    expected = {f"{word}_{name}_0.wav" for word in ("yes", "no") for name in ("ann", "ben", "cy", "di", "eve")}
    expected |= {"bed/0a7c2a8d_nohash_0.wav", "happy/ffd2ba2f_nohash_1.wav", "cough.wav"}
    assert set(found.files) == expected
    assert set(found.speakers) == {"ann", "ben", "cy", "di", "eve", "0a7c2a8d", "ffd2ba2f", "cough"}
    assert found.speakers[found.files.index("yes_cy_0.wav")] == "cy"
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
def test_names_and_folders_say_who_speaks(tmp_path: Path, wav: Callable[..., bytes], file: str, speaker: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(wav(300))
    assert recorded_negatives(str(tmp_path)).speakers == (speaker,)


def test_other_words_have_another_hash(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, with_own = hash_of_words(TrainConfig()), hash_of_words(TrainConfig(words_dir=str(words)))
    assert plain != with_own
    assert hash_of_words(TrainConfig(negative_share=0.0)) == ""
    monkeypatch.setattr(negatives, "WORDS", (*WORDS, "umbrella"))
    assert hash_of_words(TrainConfig()) not in (plain, with_own)


def test_room_around_a_recorded_word_is_cut_off(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    room = 1e-3 * rng.standard_normal(16000)
    room[6000:9200] += 0.3 * np.sin(np.arange(3200))
    soundfile.write(tmp_path / "yes_ann_0.wav", room, 8000)
    (length,) = recorded_negatives(str(tmp_path)).lengths
    assert 3200 <= length <= 3200 + 4 * 80


def test_a_few_recorded_words_come_up_as_often_as_many_synthetic_ones(tiny_corpus: Corpus, words: Path) -> None:
    mixed, _, divided, _ = beside(tiny_corpus, synthetic_voices=8, words_dir=str(words))
    chosen = divided.train[divided.train >= len(tiny_corpus)]
    synthetic = np.array([mixed.speakers[i].startswith("espeak-") for i in chosen])
    assert len(set(chosen[~synthetic])) < len(set(chosen[synthetic])) / 5
    assert (~synthetic).sum() == pytest.approx(synthetic.sum(), rel=0.35), "speakers of validation are left out"
    assert len(set(divided.validation)) == len(divided.validation)


def test_recorded_words_join_the_synthetic_ones(tiny_corpus: Corpus, words: Path) -> None:
    corpus, before, after, name = beside(tiny_corpus, synthetic_voices=2, words_dir=str(words))
    assert name.startswith(f"{2 * EACH} synthetic words, 13 recorded words, digits cut off")
    assert len(corpus) == len(tiny_corpus) + 2 * EACH + 13
    assert (corpus.labels[len(tiny_corpus) :] == NOT_A_DIGIT).all()
    assert corpus.data_hash != beside(tiny_corpus, synthetic_voices=2)[0].data_hash
    learnt, judged = (
        {corpus.speakers[i] for i in new[len(old) :]}
        for old, new in ((before.train, after.train), (before.validation, after.validation))
    )
    assert not learnt & judged
    assert len(judged) == 1
    assert len(learnt | judged) == 2 + 8


def damaged(folder: Path) -> None:
    (folder / "yes_ann_0.wav").write_bytes(b"no sound")


def silent(folder: Path) -> None:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(800), 8000, format="WAV")
    (folder / "yes_ann_0.wav").write_bytes(stream.getvalue())


def digits_alone(folder: Path) -> None:
    soundfile.write(folder / "seven_ann_0.wav", np.sin(np.arange(800)), 8000)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.rmdir, r"words_dir .*words is not a folder: expected one with recordings of words"),
        (Path.exists, r"words_dir .*words holds no audio.*yes_anna_0\.wav"),
        (digits_alone, r"words_dir .*words holds no audio"),
        (damaged, r"words_dir .*words: yes_ann_0\.wav: .*not audio.*fix or remove it"),
        (silent, r"words_dir .*words: yes_ann_0\.wav: .*silen.*fix or remove it"),
    ],
)
def test_a_folder_of_words_that_cannot_be_used_says_why(
    tiny_corpus: Corpus, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    spoil(folder)
    with pytest.raises(DataError, match=message):
        beside(tiny_corpus, synthetic_voices=2, words_dir=str(folder))


@pytest.mark.parametrize("samples", [[0.5] * 30 + [0.1], [0.0] * 80 + [0.5] * 20])
def test_a_click_is_a_word_too(tmp_path: Path, samples: list[float]) -> None:
    soundfile.write(tmp_path / "click_ann_0.wav", np.array(samples), 8000)
    assert recorded_negatives(str(tmp_path)).lengths.tolist() == [len(samples)]
