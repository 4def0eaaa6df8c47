"""Results as tables of text."""

import pytest

from ml_training.report import tables
from ml_training.report.table import Table
from ml_training.results import Count, ModelCard, ModelScore, Rejection


def score(pipeline, seed, right):
    half = right // 2
    by_speaker = {"ann": Count(half, 50), "ben": Count(right - half, 50)}
    return ModelScore(pipeline, seed, Count(right, 100), by_speaker, {"7": Count(right, 100)})


def test_each_seed_and_their_mean_have_a_row(make_protocol_result):
    scores = (score("mel_cnn", "0", 90), score("mel_cnn", "1", 96))
    shown, digits, speakers = tables.tables_of(make_protocol_result("strangers", scores))
    assert shown.rows == (
        ("mel_cnn", "0", "10 of 100", "90.0 %", "82.6 to 94.5 %"),
        ("mel_cnn", "1", "4 of 100", "96.0 %", "90.2 to 98.4 %"),
        ("mel_cnn", "mean of 2", "7.00 of 100", "93.0 % ± 4.2", ""),
    )
    assert digits.rows == (("7 seven", "93.0 % of 100"),)
    assert speakers.rows == (("ann", "93.0 % of 50"), ("ben", "93.0 % of 50"))


def test_of_many_speakers_those_with_most_errors_are_shown(make_protocol_result):
    crowd = {f"p{i:02d}": Count(10 - i % 10, 10) for i in range(30)}
    scores = (ModelScore("mfcc", "0", Count(165, 300), crowd, {}),)
    (_, _, speakers) = tables.tables_of(make_protocol_result("strangers", scores))
    assert len(speakers.rows) == tables.MAX_SPEAKERS
    assert [row[0] for row in speakers.rows[:4]] == ["p09", "p19", "p29", "p08"]
    assert "the 15 of 30 with most errors" in speakers.title


def test_a_name_of_several_lines_takes_one():
    table = Table("By speaker", ("speaker", "right"), (("ann\nbea\x1b[2J", "1"), ("مى\u200cروم|", "2")))
    head, first, second = table.text().splitlines()[1:]
    assert first == "  ann\\nbea\\x1b[2J  1"
    assert second.startswith("  مى\u200cروم| ")
    assert head.rindex("right") == first.rindex("1") == second.rindex("2")
    assert table.markdown().splitlines()[4:] == ["| ann\\nbea\\x1b[2J | 1 |", "| مى\u200cروم\\| | 2 |"]


def test_provenance_names_protocol_seeds_data_and_code(make_protocol_result):
    card = ModelCard("mfcc", "0", "m", "f" * 64, "FSDD", "h", "official", "1", "c" * 40, 1.0)
    line = tables.provenance(make_protocol_result("strangers", models=(card,), details={"noise_seed": 5}))
    for part in ("protocol strangers", "seeds 0, 1, 2", "noise seed 5", "hash 0123456789ab;", "version 1.2.3",
                 "commit aaaaaaaaaaaa-dirty", "mfcc ffffffff (commit cccccccccccc)"):  # fmt: skip
        assert part in line
    assert "synthetic" not in line
    assert "(synthetic speech)" in tables.provenance(make_protocol_result("strangers", synthetic=True))


def test_a_mean_model_has_no_more_clips_than_there_are():
    mean = tables.mean_count([Count(90, 100), Count(95, 100), Count(96, 100)])
    assert (100 * mean.accuracy, mean.clips) == (pytest.approx(93.667, abs=1e-3), 100), "not rounded to whole clips"
    assert Count(93, 100).interval < mean.interval < Count(94, 100).interval


def test_rejection_has_a_row_for_each_kind_and_threshold(make_protocol_result):
    def found(pipeline, seed, kind, passed, area):
        accepted = {"95%": Count(passed, 1000), "score 0.5": Count(passed // 2, 1000)}
        return Rejection(pipeline, seed, kind, 1000, area, accepted, ((0.0, 0.5), (1.0, 1.0)))

    rejections = (
        found("raw_cnn", "0", "digits", 950, 0.5), found("raw_cnn", "0", "words", 100, 0.9),
        found("mfcc", "0", "digits", 950, 0.5), found("mfcc", "0", "words", 200, 0.8),
        found("mfcc", "1", "digits", 950, 0.5), found("mfcc", "1", "words", 300, 0.7),
    )  # fmt: skip
    (table,) = tables.tables_of(make_protocol_result("rejection", rejections=rejections))
    assert table.header == ("clips", "threshold", "mfcc", "raw_cnn")
    assert table.rows == (
        ("digits (1,000)", "95%", "95.0 %", "95.0 %"),
        ("digits (1,000)", "score 0.5", "47.5 %", "47.5 %"),
        ("words (1,000)", "95%", "25.0 %", "10.0 %"),
        ("words (1,000)", "score 0.5", "12.5 %", "5.0 %"),
        ("words (1,000)", "area under ROC", "0.750", "0.900"),
    )
    assert tables.title_of(make_protocol_result("rejection")) == "Not a digit: people"
