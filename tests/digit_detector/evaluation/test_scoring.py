"""Scores of detections against reference digits, and the streams made for them."""

from dataclasses import dataclass

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from digit_detector.evaluation.scoring import Score, score
from digit_detector.evaluation.streams import (
    LabelledDigit,
    Word,
    join_connected,
    join_with_pauses,
    load_words,
    make_noise_track,
    mix_noise,
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    digit: int
    end: float

    @property
    def reported(self) -> float:
        return self.end + 0.1


def reference(*digits: int) -> list[LabelledDigit]:
    return [LabelledDigit(digit, i + 0.5, i + 1.0) for i, digit in enumerate(digits)]  # half a second each


def hypothesis(*pairs: tuple[int, float]) -> list[Found]:
    return [Found(digit, end) for digit, end in pairs]


@pytest.mark.parametrize(
    ("detections", "counts"),
    [
        ([(4, 1.0), (4, 2.1), (3, 3.0)], (3, 0, 0, 0)),
        ([(4, 1.0), (3, 3.2)], (2, 0, 1, 0)),
        ([(4, 1.0), (5, 2.0), (3, 3.0)], (2, 1, 0, 0)),
        ([(4, 1.0), (4, 1.9), (4, 2.2), (3, 3.0)], (3, 0, 0, 1)),
        ([(4, 1.31), (4, 2.0), (3, 3.0)], (2, 0, 1, 1)),  # too late to be that digit
        ([(4, 0.49), (4, 2.0), (3, 3.0)], (2, 0, 1, 1)),  # before it began
        ([(4, 0.6), (4, 2.0), (3, 3.0)], (3, 0, 0, 0)),  # its end may be hard to tell
        ([], (0, 0, 3, 0)),
        ([(3, 3.0), (4, 1.0), (4, 2.0)], (3, 0, 0, 0)),  # told in another order
    ],
)
def test_faults_are_counted(detections, counts):
    result = score(reference(4, 4, 3), hypothesis(*detections))
    assert (result.correct, result.substituted, result.deleted, result.inserted) == counts
    assert result.accuracy == pytest.approx(1 - sum(counts[1:]) / 3)


def test_scores_add_up_and_delays_are_of_right_ones():
    one, two = score(reference(1), hypothesis((1, 1.05))), score(reference(2), hypothesis((3, 1.0)))
    both = one + two + Score()
    assert (both.reference, both.correct, both.substituted) == (2, 1, 1)
    assert both.delays == pytest.approx((0.15,))
    assert both.delay(50) == pytest.approx(0.15)
    assert set(both.confusions) == {(2, 3)}


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(np.arange(int(seconds * 8000)))).astype(np.float32)


def test_a_stream_says_where_its_words_lie():
    words = [Word(tone(0.3 + 0.05 * i), i, "anna") for i in range(6)]
    rng = np.random.default_rng(0)
    stream = join_with_pauses(words, np.zeros(8000, dtype=np.float32), 20.0, rng)
    assert [d.digit for d in stream.digits] == list(range(6))
    for word, after in zip(stream.digits, stream.digits[1:], strict=False):
        assert 0.15 <= after.start - word.end <= 2.01
    for word in stream.digits:
        inside = stream.samples[int(word.start * 8000) : int(word.end * 8000)]
        assert np.sqrt(np.mean(inside**2)) == pytest.approx(10 ** (-26 / 20), rel=0.02)
    between = stream.samples[int(stream.digits[0].end * 8000) + 10 : int(stream.digits[1].start * 8000) - 10]
    assert not between.any()


def test_the_noise_level_is_relative_to_the_words():
    rng = np.random.default_rng(0)
    words, noise = [Word(tone(0.4), 1, "anna")], rng.standard_normal(80_000).astype(np.float32)
    quiet = join_with_pauses(words, np.zeros(8000, dtype=np.float32), 10.0, np.random.default_rng(1))
    noisy = join_with_pauses(words, noise, 10.0, np.random.default_rng(1))
    added = noisy.samples - quiet.samples
    assert 20 * np.log10(added.std()) == pytest.approx(-36, abs=0.2)


def test_connected_words_follow_without_a_pause():
    strings = [[Word(tone(0.3), i, "anna") for i in (1, 2, 3)] for _ in range(2)]
    stream = join_connected(strings, np.zeros(8000, dtype=np.float32), 20.0, np.random.default_rng(0))
    for first, second in ((0, 1), (1, 2), (3, 4), (4, 5)):
        assert abs(stream.digits[second].start - stream.digits[first].end) <= 0.03
    assert stream.digits[3].start - stream.digits[2].end >= 0.79


def test_noise_tracks_have_their_level():
    rng = np.random.default_rng(0)
    sounds = [rng.standard_normal(8000 * 5).astype(np.float32) * scale for scale in (0.01, 1.0)]
    track = make_noise_track(sounds, 20.0, rng)
    assert len(track) == 160_000
    assert track.std() == pytest.approx(1.0, abs=0.05)
    mixed = mix_noise(sounds, 60.0, rng)
    levels = 20 * np.log10(mixed[: 8000 * 60].reshape(60, -1).std(axis=1))
    assert -46 <= levels.min() < levels.max() <= -9
    assert levels.max() - levels.min() > 10


def test_file_names_must_begin_with_a_digit(tiny_folder, tmp_path):
    assert {word.digit for word in load_words(tiny_folder)} == set(range(10))
    (tmp_path / "seven_anna_0.wav").write_bytes((tiny_folder / "7_speaker0_0.wav").read_bytes())
    with pytest.raises(DataError, match="expected a name like"):
        load_words(tmp_path)
    (tmp_path / "seven_anna_0.wav").unlink()
    soundfile.write(tmp_path / "7_anna_0.wav", tone(0.00625), 8000)
    with pytest.raises(DataError, match=r"7_anna_0\.wav lasts 0\.006 s"):
        load_words(tmp_path)
    with pytest.raises(DataError, match="holds no recordings"):
        load_words(tmp_path / "none")
