"""Digit strings: tables of them, their alignment, false alarms in speech, intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.errors import DataError
from digit_detector.evaluation.metrics import measure_reliability, poisson_interval
from digit_detector.evaluation.perturbations import CLEAN, Perturbation
from digit_detector.evaluation.scoring import align_strings, count_pairs
from digit_detector.evaluation.speech import count_strings, evaluate_speech, find_digit_words, load_speech
from digit_detector.evaluation.strings import Detect, StringClip, evaluate_strings, load_strings, score_clip
from digit_detector.streaming.engine import Detection


@cache
def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The edit distance by its definition."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        distance(one[1:], other) + 1, distance(one, other[1:]) + 1,
        distance(one[1:], other[1:]) + (one[0] != other[0]),
    )  # fmt: skip


def test_every_short_string_is_aligned_with_the_least_errors():
    strings = [s for size in range(5) for s in itertools.product((0, 1, 2), repeat=size)]
    for one, other in itertools.product(strings, strings[:60]):
        pairs = align_strings(one, other)
        assert [i for i, _ in pairs if i is not None] == [*range(len(one))]
        assert [j for _, j in pairs if j is not None] == [*range(len(other))]
        counts = count_pairs(pairs, one, other)
        assert counts.errors == distance(one, other)
        assert counts.correct + counts.substituted + counts.deleted == counts.reference == len(one)
        assert counts.whole == (one == other)


def detections(digits: str, first: float = 0.5, delay: float = 0.1) -> list[Detection]:
    """Digits a quarter of a second long, one after the other."""
    ends = [first + 0.25 * (place + 1) for place in range(len(digits))]
    return [Detection(int(d), 0.9, end - 0.25, end, delay) for d, end in zip(digits, ends, strict=True)]


@pytest.mark.parametrize(
    ("hypothesis", "counts", "latency"),
    [
        ("429", (3, 0, 0, 0), 0.35),
        ("49", (2, 0, 1, 0), 0.1),
        ("4429", (3, 0, 0, 1), 0.6),
        ("428", (2, 1, 0, 0), None),
        ("42", (2, 0, 1, 0), None),
        ("", (0, 0, 3, 0), None),
    ],
)
def test_a_recording_is_counted_and_its_last_digit_timed(hypothesis, counts, latency):
    clip = StringClip(Path("a.wav"), "a.wav", "429")
    result = score_clip(clip, detections(hypothesis), speech_seconds=1.5, speech_end=1.0)
    score = result.score
    assert (score.correct, score.substituted, score.deleted, score.inserted) == counts
    assert result.latency == (None if latency is None else pytest.approx(latency))
    assert (len(result.confidences), sum(result.correct)) == (len(hypothesis), counts[0])
    assert result.rate == "2-3"
    assert score.confusion.sum() == score.errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Recordings of half a second of sound in two seconds, and a table of them."""
    samples = np.zeros(16_000)
    samples[4000:8000] = 0.3 * np.sin(np.arange(4000))
    rows = ["file\tspeaker\tdigits\tfold"]
    for name, speaker, digits, fold in (("a", "ann", "42", 0), ("b", "ann", "4 2-9", 1), ("c", "ben", "", 1)):
        soundfile.write(tmp_path / f"{name}.wav", samples, 8000)
        rows.append(f"{name}.wav\t{speaker}\t{digits}\t{fold}")
    (tmp_path / "clips.tsv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def always(digits: str) -> Detect:
    def detect(samples: np.ndarray) -> Sequence[Detection]:
        return detections(digits, len(samples) / 8000 / 4)

    return detect


def test_a_folder_and_a_table_are_evaluated(folder):
    strings = load_strings(folder)
    assert ([clip.digits for clip in strings.clips], strings.without_digits) == (["42", "429"], 1)
    result = evaluate_strings(strings, always("42"))
    assert (result.total.reference, result.total.errors, result.total.whole) == (5, 1, 1)
    assert {name: counts.reference for name, counts in result.by_length().items()} == {"2": 2, "3": 3}
    assert list(result.by_speaker()) == ["ann"]
    assert result.by_rate().keys() == {">4"}
    assert result.latency(50) == pytest.approx(0.5 + 0.5 + 0.1 - 1.0)  # speech ends at 1 s
    assert result.calibration()[0] == pytest.approx(0.1)
    confusion = result.confusion()
    assert (confusion[4, 4], confusion[2, 2], confusion[9, 10], confusion.sum()) == (2, 2, 1, 5)
    faster = evaluate_strings(strings, always("42"), Perturbation("tempo", 2.0))
    assert faster.clips[0].speech_seconds == pytest.approx(0.25)
    assert faster.latency(50) == pytest.approx(0.25 + 0.5 + 0.1 - 0.5)
    table = folder / "mine.csv"
    table.write_text("name,digits\na,7\n", encoding="utf-8")  # without suffix and speaker
    assert load_strings(table).clips[0].path == folder / "a.wav"
    assert load_strings(folder, {"fold": "1"}).name == f"{folder.name} (fold=1)"


@pytest.mark.parametrize(
    ("table", "where", "message"),
    [
        ("file\ttext\na.wav\tfour", {}, "no column digits"),
        ("sound\tdigits\na.wav\t4", {}, "no column file"),
        ("file\tdigits\na.wav\t4", {"fold": "1"}, "no column fold"),
        ("file\tdigits\nx.wav\t4", {}, "line 2 names 'x.wav'"),
        ("file\tdigits\na.wav\t4\nb.wav\t4x", {}, "line 3 has the digits '4x'"),
        ("file\tdigits\na.wav\t", {}, "no digits"),
        ("file\tdigits\tfold\na.wav\t4\t0", {"fold": "1"}, "no row with fold=1"),
        ("", {}, "no column file"),
    ],
)
def test_a_bad_table_is_one_clear_error(folder, table, where, message):
    (folder / "clips.tsv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_strings(folder, where)


def test_places_without_a_table_and_files_without_sound_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="no folder and no table"):
        load_strings(tmp_path / "none")
    (folder / "a.wav").write_bytes(b"RIFF")
    with pytest.raises(DataError, match=r"a\.wav cannot be evaluated"):
        evaluate_strings(load_strings(folder), always(""))
    (folder / "clips.tsv").unlink()
    with pytest.raises(DataError, match="no tables"):
        load_strings(folder)


def test_false_alarms_are_attributed_to_transcripts(folder):
    (folder / "clips.tsv").write_text(
        "file\ttext\na.wav\tWe ate at seven.\nb.wav\ta sick fox\nc.wav\tsick of it", encoding="utf-8"
    )
    result = evaluate_speech(load_speech("lines", folder), always("638"))
    assert (result.total, result.in_homophones, result.strings, result.homophone_clips) == (9, 3, 3, 1)
    assert result.per_hour(result.total) == pytest.approx(9 / (6 / 3600))
    assert result.unexplained_per_hour == pytest.approx(6 / (4 / 3600))
    assert [alarm.sounds_like for alarm in result.alarms] == [("ate", "seven"), (), ()]
    assert (result.words[0].word, result.words[0].alarms, result.words[0].clips) == ("sick", 2, 2)
    silent = evaluate_speech(load_speech("lines", folder), always(""))
    assert (silent.total, silent.alarms, silent.words) == (0, (), ())
    (folder / "clips.tsv").write_text("a\tone too many\nb\tfine", encoding="utf-8")  # no header, no suffix
    assert [clip.text for clip in load_speech("lines", folder).clips] == ["one too many", "fine"]
    (folder / "clips.tsv").unlink()
    speech = load_speech("lines", folder, select=lambda file: file != "b.wav")
    assert [(clip.file, clip.text) for clip in speech.clips] == [("a.wav", None), ("c.wav", None)]
    with pytest.raises(DataError, match="no recordings"):
        load_speech("lines", folder, select=lambda file: False)


def test_digit_words_homophones_and_numerals_are_marked():
    assert find_digit_words("I won two, too; 45 tons.") == ("won", "two", "too", "4", "5")
    assert find_digit_words("Someone wondered often") == ()


def test_strings_end_at_a_pause():
    assert count_strings(detections("123") + detections("45", first=3.0) + detections("678", first=6.0)) == 2


def test_intervals_of_counts_and_reliability_of_confidences():
    # Exact 95 % limits of a Poisson mean: 0 to 3.69, 2.20 to 13.06 for 6, 81.4 to 121.6 for 100.
    for count, low, high in ((0, 0.0, 3.69), (6, 2.20, 13.06), (100, 81.4, 121.6)):
        assert poisson_interval(count) == pytest.approx((low, high), rel=0.02, abs=0.05)
    ece, bins = measure_reliability(np.array([0.9, 0.9, 0.9, 0.9, 0.3]), np.array([True, True, True, False, False]))
    assert ece == pytest.approx(0.8 * 0.15 + 0.2 * 0.3)
    assert sum(each.count for each in bins) == 5
    assert measure_reliability(np.zeros(0), np.zeros(0, dtype=bool)) == (0.0, ())
    assert CLEAN.map_time(1.5) == 1.5
