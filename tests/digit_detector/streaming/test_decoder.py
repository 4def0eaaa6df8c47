"""The beam search and the decoder on posteriors written by hand, and at random."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digit_detector.acoustic_file import BLANK, BLOCK_SECONDS, DOUBLE, FIRST_DIGIT, OH, OTHER, TOKENS, TRIPLE
from digit_detector.streaming.config import ANY, DIGITS, DetectorConfig
from digit_detector.streaming.decoder import BeamSearch, Decoder, Detection

IN_DIGITS = DetectorConfig(digits_threshold=0.3, any_threshold=0.5, other_ratio=0.2)
IN_ANY = replace(IN_DIGITS, context=ANY)
BOTH = pytest.mark.parametrize("config", [IN_DIGITS, IN_ANY], ids=[DIGITS, ANY])
NAMES = {"oh": OH, "double": DOUBLE, "triple": TRIPLE, "other": OTHER}
Frame = tuple[list[float], float]


def frame(token: int = BLANK, posterior: float = 0.97, speech: float = 1.0) -> Frame:
    """Posteriors in which one token has nearly all, and the blank the rest; and the speech activity."""
    row = [0.0] * len(TOKENS)
    row[token], row[BLANK] = posterior, 1.0 - posterior
    if token == BLANK:
        row[BLANK] = 1.0
    return row, speech


def speak(text: str, gap: int = 6, posterior: float = 0.97) -> list[Frame]:
    """Frames of words such as "4 oh double 7", each two frames long and `gap` frames of blanks apart."""
    tokens = [NAMES.get(word, FIRST_DIGIT + int(word) if word.isdigit() else OTHER) for word in text.split()]
    return [
        each for token in tokens for each in (*[frame()] * gap, frame(token, 0.6 * posterior), frame(token, posterior))
    ]


def silence(frames: int = 40) -> list[Frame]:
    return [frame(speech=0.0)] * frames


def decode(config: DetectorConfig, frames: list[Frame]) -> list[Detection]:
    decoder = Decoder(config)
    return [d for row, speech in frames for d in decoder.push(row, speech)] + decoder.end_utterance()


def digits_of(config: DetectorConfig, text: str, gap: int = 6) -> str:
    found = decode(config, [*silence(10), *speak(text, gap), *silence()])
    return "".join(str(d.digit) for d in found)


@BOTH
@pytest.mark.parametrize(
    ("text", "digits"),
    [
        ("4 1 3", "413"),
        ("7 7 7", "777"),
        ("double 7", "77"),
        ("triple 5 2", "5552"),
        ("9 double 7 1", "9771"),
        ("double double", ""),
        ("4 oh 7", "407"),
        ("oh 7", "07"),
        ("double oh 7", "007"),
        ("oh", ""),
        ("1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6", "1234567890123456"),
        ("", ""),
    ],
)
def test_tokens_become_digits(text, digits, config):
    assert digits_of(config, text) == digits


@BOTH
def test_frames_of_one_token_are_one_word_without_a_blank_between(config):
    long = [*silence(10), *[frame(FIRST_DIGIT + 5)] * 4, *silence()]
    assert [d.digit for d in decode(config, long)] == [5]
    assert digits_of(config, "5 5", gap=1) == "55"


def test_other_words_drop_the_utterance_in_context_digits_only():
    assert digits_of(IN_DIGITS, "4 1 other 3") == ""
    assert digits_of(IN_DIGITS, "other") == digits_of(IN_ANY, "other") == ""
    assert digits_of(IN_ANY, "4 1 other 3") == "413"
    assert digits_of(replace(IN_DIGITS, other_ratio=0.5), "4 1 other 3") == "413"
    both = [*speak("other other"), *silence(), *speak("4 1"), *silence()]
    assert [d.digit for d in decode(IN_DIGITS, both)] == [4, 1]


@pytest.mark.parametrize(("frames", "digits"), [(15, []), (30, [4, 1])])
def test_an_utterance_soon_after_a_dropped_one_is_dropped_too(frames, digits):
    config = replace(IN_DIGITS, guard_seconds=0.7)  # 22 frames after the last speech
    both = [*speak("other other"), *silence(frames), *speak("4 1"), *silence()]
    assert [d.digit for d in decode(config, both)] == digits


def test_an_utterance_is_reported_together_at_its_end():
    decoder, reported = Decoder(IN_DIGITS), []
    frames = [*silence(10), *speak("4 1 3"), *silence()]
    for i, (row, speech) in enumerate(frames):
        found = decoder.push(row, speech)
        reported += [(i, d) for d in found]
        if i == 25:
            assert [d.digit for d in decoder.provisional] == [4, 1]
    assert decoder.provisional == []
    end = 10 + 24 + round(IN_DIGITS.endpoint_seconds / BLOCK_SECONDS) - 1
    assert [(i, d.digit) for i, d in reported] == [(end, 4), (end, 1), (end, 3)]
    for _, detection in reported:
        assert detection.reported == pytest.approx((end + 1) * BLOCK_SECONDS)
    assert [d.end for _, d in reported] == sorted(d.end for _, d in reported)
    assert all(0 <= a.end <= b.start < b.end for (_, a), (_, b) in itertools.pairwise(reported))


def test_two_utterances_are_reported_apart():
    found = decode(IN_DIGITS, [*speak("4 1"), *silence(), *speak("3"), *silence()])
    assert [d.digit for d in found] == [4, 1, 3]
    assert found[0].reported == found[1].reported < found[2].start


def test_context_any_reports_at_once():
    decoder, reported = Decoder(IN_ANY), []
    for i, (row, speech) in enumerate([*silence(10), *speak("4 1 other 3"), *silence()]):
        reported += [(i, d.digit) for d in decoder.push(row, speech)]
        assert decoder.provisional == []
    peaks = {4: 17, 1: 25, 3: 41}  # frames of the largest posteriors
    assert reported == [(peak + IN_ANY.any_frames, digit) for digit, peak in peaks.items()]


@BOTH
def test_confidence_is_calibrated_and_thresholds_apply(config):
    for posterior, reported in ((0.97, True), (0.2, False)):
        found = decode(config, [*silence(10), frame(FIRST_DIGIT + 7, posterior), *silence()])
        assert bool(found) == reported
    frames = [*silence(10), *speak("7", posterior=0.9), *silence()]
    (plain,) = decode(config, frames)
    assert plain.confidence == pytest.approx(0.9)
    (lower,) = decode(replace(config, confidence_offset=-1.0), frames)
    assert lower.confidence == pytest.approx(1 / (1 + np.exp(1 - np.log(9))))


def test_speech_without_an_end_is_cut_and_bounded():
    config = replace(IN_DIGITS, max_utterance_seconds=5.0)
    words = speak("4 1 3 7 9 2") * 20
    found = decode(config, words)
    assert "".join(str(d.digit) for d in found) == "413792" * 20
    assert max(d.delay for d in found) < 5.1


@BOTH
@pytest.mark.parametrize("kind", ["words", "noise", "silence"])
def test_memory_does_not_grow(config, kind):
    rng = np.random.default_rng(0)
    noise = [(row.tolist(), 1.0) for row in rng.dirichlet([8.0] + [0.2] * 14, size=100)]
    frames = {"words": speak("4 1 3 double 9 oh"), "noise": noise, "silence": silence(100)}[kind]
    decoder = Decoder(replace(config, max_utterance_seconds=5.0))

    def push_all(times: int) -> None:
        for _ in range(times):
            for row, speech in frames:
                decoder.push(row, speech)
        gc.collect()

    tracemalloc.start()
    push_all(400 // len(frames))  # longer than an utterance may be
    before = tracemalloc.get_traced_memory()[0]
    push_all(1600 // len(frames))
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 30_000


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 5))
def test_a_wide_beam_finds_the_most_probable_sequence(seed, length):
    rng = np.random.default_rng(seed)
    tokens = [BLANK, *rng.choice(np.arange(1, len(TOKENS)), 2, replace=False).tolist()]
    rows = np.zeros((length, len(TOKENS)))
    rows[:, tokens] = rng.dirichlet([1.0] * 3, size=length)
    config = DetectorConfig(beam_width=100, posterior_floor=0.0)
    search = BeamSearch(config)
    for i, row in enumerate(rows):
        search.push(row.tolist(), i)
    weights = {token: config.other_weight if token == OTHER else 1.0 for token in tokens}
    totals: dict[tuple[int, ...], float] = {}
    for alignment in itertools.product(tokens, repeat=length):
        sequence = tuple(token for token, _ in itertools.groupby(alignment) if token != BLANK)
        probability = float(np.prod([rows[i, token] for i, token in enumerate(alignment)]))
        probability *= float(np.prod([weights[token] for token in sequence]))
        totals[sequence] = totals.get(sequence, 0.0) + probability
    found = {tuple(t.token for t in each.tokens): each.probability for each in search.hypotheses if each.probability}
    whole = sum(totals.values())
    assert found == pytest.approx({sequence: total / whole for sequence, total in totals.items()})
    assert tuple(t.token for t in search.best.tokens) == max(totals, key=lambda sequence: totals[sequence])
