"""Results on disk: their names, the page made of them, files of 0.1, and comparisons fold by fold."""

import dataclasses
import json

import pytest

from digit_detector.errors import DataError
from digit_detector.labels import PIPELINES
from ml_training.evaluation import records
from ml_training.evaluation.significance import compare_folds
from ml_training.metrics import mcnemar
from ml_training.report.tables import comparison
from ml_training.results import Count, Misclassified, ModelScore, ProtocolResult


def result(protocol="official", data="FSDD v1", pipelines=PIPELINES, **details):
    scores = tuple(ModelScore(p, "0", Count(9, 10), {"ann": Count(9, 10)}, {"1": Count(9, 10)}) for p in pipelines)
    return ProtocolResult(
        protocol=protocol, definition="d", data=data, data_hash="h", synthetic=False, clips=10, speakers=1,
        seeds=("0",), version="1", git_commit="c", created="2030", scores=scores, details=details,
    )  # fmt: skip


def test_different_questions_have_different_names_that_file_systems_take(tmp_path):
    crowd = [f"speaker {i}" for i in range(90)]
    results = [
        result(), result("unseen_speakers"), result(data="mine"), result(pipelines=("mfcc",)),
        result(pipelines=("mfcc", "raw_cnn")), result("noise"), result("noise", noise_folder="noise/train"),
        result("noise", noise_folder="noise/eval"), result("loso", left_out=[]), result("loso", left_out=["theo"]),
        result("loso", left_out=crowd), result("loso", left_out=crowd[:-1]), result(data="数字" * 60),
    ]  # fmt: skip
    assert len({records.save_result(r, tmp_path) for r in results}) == len(list(tmp_path.iterdir())) == len(results)
    assert records.file_name(results[0]) == "official_fsdd_v1"
    assert records.file_name(results[9]) == "loso_fsdd_v1_theo"


def test_a_result_that_replaces_one_of_other_settings_is_reported(tmp_path):
    lines: list[str] = []
    short, long = (result("loso", trainings={"mfcc": {"epochs": n}}) for n in (1, 50))
    for each in (short, short, long, dataclasses.replace(long, data_hash="other")):
        records.save_result(each, tmp_path, lines.append)
    for words in ("10 clips in a", "10 clips in a", "12 clips in b"):
        records.save_result(result("rejection", others={"words": words}), tmp_path, lines.append)
    replaced = [line.partition("replaces a result of other ")[2].partition(";")[0] for line in lines]
    assert replaced == ["settings", "recordings", "clips without a digit"]


def test_results_are_sorted_by_protocol_and_foreign_files_are_named(tmp_path):
    for protocol in ("calibration", "official", "unseen_speakers"):
        records.save_result(result(protocol), tmp_path)
    assert [r.protocol for r in records.load_results(tmp_path)] == ["official", "unseen_speakers", "calibration"]
    assert records.load_results(tmp_path / "nowhere") == []
    for content in ("", "[]", "{}", '{"scores": 3}', '{"scores": [], "curves": [], "reliability": []}'):
        (tmp_path / "mine.json").write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=r"mine\.json is no result of evaluate\.py"):
            records.load_results(tmp_path)
    lines: list[str] = []
    assert len(records.load_results(tmp_path, lines.append)) == 3
    assert "mine.json" in lines[0]


def test_files_of_0_1_are_read_and_replaced(tmp_path):
    clip = Misclassified("1.wav", 3, 8, 0.5)
    made = result("unseen_speakers", data="people", pipelines=("mfcc",))
    made = dataclasses.replace(made, scores=(dataclasses.replace(made.scores[0], misclassified=(clip,)),))
    values = made.to_dict() | {"protocol": "strangers"}
    del values["rejections"]
    mistake = {"file": "1.wav", "digit": 3, "heard": 8, "confidence": 0.5}
    values["scores"] = [
        {k: v for k, v in values["scores"][0].items() if k != "misclassified"} | {"mistakes": [mistake]}
    ]
    old = tmp_path / "strangers_people_mfcc.json"
    old.write_text(json.dumps(values), encoding="utf-8")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "strangers_people_mfcc_accuracy.png").touch()
    assert records.load_result(old) == made
    records.update_docs(tmp_path, tmp_path / "page.md")
    assert "people: accuracy](plots/strangers_people_mfcc_accuracy.png)" in (tmp_path / "page.md").read_text()
    new = records.save_result(made, tmp_path)
    assert list(tmp_path.glob("*.json")) == [new]


def test_the_page_is_made_of_results_and_plots_of_the_folder_and_its_sub_folders(tmp_path):
    folder, page = tmp_path / "json", tmp_path / "results.md"
    records.save_result(result(), folder)
    for inner in ("shipped_models", "earlier"):
        for each in (result("unseen_speakers", data="people"), result("noise")):
            records.save_result(each, folder / inner)
        (folder / inner / "plots").mkdir()
        (folder / inner / "plots" / "unseen_speakers_people_accuracy.png").touch()
    (folder / "plots").mkdir()
    (folder / "plots" / "official_fsdd_v1_accuracy.png").touch()
    records.save_result(result("noise"), folder / ".copies")
    (folder / "train_logs").mkdir()
    for content in ("{}", "[", "3", '{"test": {"protocol": "official"}}'):
        (folder / "train_logs" / "metrics_summary_mfcc.json").write_text(content, encoding="utf-8")
        page.write_text("typed", encoding="utf-8")
        assert records.update_docs(folder, page) == 5
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith(("# ", "## ", "!["))] == [
        "# Results", "## Official test part: FSDD v1",
        "![Official test part: FSDD v1: accuracy](json/plots/official_fsdd_v1_accuracy.png)",
        "# Earlier", "## Unseen speakers: people",
        "![Unseen speakers: people: accuracy](json/earlier/plots/unseen_speakers_people_accuracy.png)",
        "## Noise and other changes: FSDD v1",
        "# Shipped models", "## Unseen speakers: people",
        "![Unseen speakers: people: accuracy](json/shipped_models/plots/unseen_speakers_people_accuracy.png)",
        "## Noise and other changes: FSDD v1",
    ]  # fmt: skip
    assert "| mfcc | 0 | 1 of 10 | 90.0 % |" in text
    assert "protocol official; seeds 0; data FSDD v1, hash h; version 1; commit c" in text
    assert "Every time" not in text
    (folder / "earlier" / "mine.json").write_text('{"protocol": "official"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"earlier.mine\.json is no result of evaluate\.py"):
        records.update_docs(folder, page)


def test_no_results_make_no_page_and_sub_folders_alone_do(tmp_path):
    page = tmp_path / "results.md"
    (tmp_path / "json" / "plots").mkdir(parents=True)
    for folder in (tmp_path / "json", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no results to write"):
            records.update_docs(folder, page)
    assert not page.exists()
    records.save_result(result(), tmp_path / "json" / "shipped")
    assert records.update_docs(tmp_path / "json", page) == 1


def folds(wrong, pipeline="mfcc", **changes):
    """Two folds of ten clips; `wrong` names clips 0 to 9 of folds 1/2 and 2/2."""
    details = [
        {"pipeline": pipeline, "seed": 0, "left_out": name, "clips": 10, "right": 10 - len(clips), "trained_on": 10}
        for name, clips in wrong.items()
    ]
    clips = tuple(Misclassified(f"{name}_{clip}", 0, 1, 0.5) for name, clips in wrong.items() for clip in clips)
    right = Count(20 - len(clips), 20)
    made = dataclasses.replace(
        result("cv", folds=details), scores=(ModelScore(pipeline, "0", right, {"ann": right}, {}, clips),)
    )
    return dataclasses.replace(made, **changes)


FIRST, SECOND = {"1/2": {0}, "2/2": {0, 1}}, {"1/2": {0, 1, 2}, "2/2": {2, 3, 4}}


def test_clips_and_folds_are_paired():
    (pair,) = compare_folds(folds(FIRST), folds(SECOND))
    assert (pair.clips, pair.folds, pair.only_this, pair.only_other) == (20, 2, 5, 2)
    assert pair.mcnemar == pytest.approx(mcnemar(5, 2))
    assert pair.difference == pytest.approx((0.2 + 0.1) / 2)
    assert pair.low < pair.difference < pair.high
    (pair,) = compare_folds(folds(FIRST), folds(SECOND, "raw_cnn"))
    assert (pair.pipeline, pair.other) == ("mfcc", "raw_cnn"), "the only ones of both"


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (folds(SECOND, data_hash="cd" * 32), "the same protocol on the same recordings"),
        (folds(SECOND, protocol="loso"), "the same protocol on the same recordings"),
        (folds({"1/2": {0}}), "expected the same folds and seeds"),
        (folds(SECOND, details={}), "has no folds"),
        (folds(SECOND, details={"folds": [{"pipeline": "mfcc"}]}), "of an older version"),
    ],
)
def test_other_folds_cannot_be_compared(other, expected):
    with pytest.raises(DataError, match=expected):
        compare_folds(folds(FIRST), other)


@pytest.mark.parametrize(
    ("this", "other", "expected"),
    [
        ({"1/2": {0}}, {"1/2": {1, 2}}, "+10.00 points (one fold has no interval)|-"),
        ({"1/2": {0}, "2/2": {1}}, {"1/2": {1, 2}, "2/2": {3, 4}}, "+10.00 points (+10.00 to +10.00)|p = 0.0e+00"),
    ],
)
def test_a_comparison_without_spread_survives_json(tmp_path, this, other, expected):
    """JSON has neither NaN nor infinity."""
    made = folds(this)
    pairs = [dataclasses.asdict(pair) for pair in compare_folds(made, folds(other))]
    against = {"with": "cv.json", "created": "then", "pairs": pairs}
    made = dataclasses.replace(made, details={**(made.details or {}), "compared": against})
    for each in (made, records.load_result(records.save_result(made, tmp_path))):
        (table,) = comparison(each)
        assert "|".join(table.rows[0][1:3]) == expected
