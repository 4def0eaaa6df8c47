"""Results on disk: names that keep different questions apart, and pages made of files alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from digit_detector.errors import DataError
from digit_detector.labels import PIPELINES
from ml_training.evaluation import records
from ml_training.results import Count, ModelScore, ProtocolResult


def result(
    protocol: str = "official", data: str = "FSDD v1", pipelines: tuple[str, ...] = PIPELINES, **details: object
):
    scores = tuple(ModelScore(p, "0", Count(9, 10), {"ann": Count(9, 10)}, {"1": Count(9, 10)}) for p in pipelines)
    return ProtocolResult(
        protocol=protocol, definition="d", data=data, data_hash="h", synthetic=False, clips=10, speakers=1,
        seeds=("0",), version="1", git_commit="c", created="2030", scores=scores, details=details,
    )  # fmt: skip


def test_the_same_question_has_the_same_name_and_others_have_others() -> None:
    asked = [
        result(), result("strangers"), result(data="mine"), result(pipelines=("mfcc",)),
        result(pipelines=("mfcc", "raw_cnn")), result("noise"), result("noise", noise_folder="noise/train"),
        result("noise", noise_folder="noise/eval"), result("loso", left_out=[]), result("loso", left_out=["theo"]),
    ]  # fmt: skip
    assert len({records.file_name(r) for r in asked}) == len(asked)
    assert records.file_name(result()) == "official_fsdd_v1"
    assert records.file_name(asked[-1]) == "loso_fsdd_v1_theo"


def test_a_name_is_never_longer_than_file_systems_take(tmp_path: Path) -> None:
    crowd = [f"speaker {i}" for i in range(90)]
    long = [result("loso", left_out=crowd), result("loso", left_out=crowd[:-1]), result(data="数字" * 60)]
    assert len({records.save_result(r, tmp_path) for r in long}) == len(list(tmp_path.iterdir())) == len(long)


def test_a_result_that_replaces_an_answer_to_something_else_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    short, long = result("loso", trainings={"mfcc": {"epochs": 1}}), result("loso", trainings={"mfcc": {"epochs": 50}})
    for found in (result(), result(), dataclasses.replace(result(), data_hash="other"), long, long, short):
        records.save_result(found, tmp_path, said.append)
    assert said == [
        f"{tmp_path / 'official_fsdd_v1.json'}: replaces a result of other recordings; "
        "--output or --log_dir elsewhere keeps both",
        f"{tmp_path / 'loso_fsdd_v1.json'}: replaces a result of other settings; "
        "--output or --log_dir elsewhere keeps both",
    ]


def test_other_clips_without_a_digit_are_another_question(tmp_path: Path) -> None:
    said: list[str] = []
    for words in ("10 clips in a", "10 clips in a", "12 clips in b"):
        records.save_result(result("rejection", others={"words": words}), tmp_path, said.append)
    assert len(said) == 1
    assert "replaces a result of other clips without a digit" in said[0]


def test_results_come_back_in_the_order_of_protocols(tmp_path: Path) -> None:
    for protocol in ("calibration", "official", "strangers"):
        records.save_result(result(protocol), tmp_path)
    assert [r.protocol for r in records.load_results(tmp_path)] == ["official", "strangers", "calibration"]
    assert records.load_results(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"scores": 3}', '{"scores": [], "curves": [], "reliability": []}']
)
def test_a_foreign_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.json is no result of evaluate\.py"):
        records.load_results(tmp_path)


def test_the_page_is_made_of_files_and_of_nothing_else(tmp_path: Path) -> None:
    records.save_result(result(), tmp_path / "json")
    page = tmp_path / "results.md"
    assert records.update_docs(tmp_path / "json", page) == 1
    first = page.read_text(encoding="utf-8")
    page.write_text("typed by somebody", encoding="utf-8")
    records.update_docs(tmp_path / "json", page)
    assert page.read_text(encoding="utf-8") == first
    assert "| mfcc | 0 | 1 of 10 | 90.0 % |" in first
    assert "protocol official; seeds 0; data FSDD v1, hash h; version 1; commit c" in first
    assert "Every time" not in first


def test_results_of_a_sub_folder_are_a_part_of_their_own(tmp_path: Path) -> None:
    folder, page = tmp_path / "json", tmp_path / "results.md"
    records.save_result(result(), folder)
    for inner in ("shipped_models", "earlier"):
        for found in (result("strangers", data="people"), result("noise")):
            records.save_result(found, folder / inner)
        plots = folder / inner / "plots"
        plots.mkdir()
        (plots / "strangers_people_accuracy.png").write_bytes(b"")
    (folder / "plots").mkdir()
    (folder / "plots" / "official_fsdd_v1_accuracy.png").write_bytes(b"")
    (folder / "empty").mkdir()
    records.save_result(result("noise"), folder / ".copies")
    assert records.update_docs(folder, page) == 5
    text = page.read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith(("# ", "## ", "!["))] == [
        "# Results", "## Official test part: FSDD v1",
        "![Official test part: FSDD v1: accuracy](json/plots/official_fsdd_v1_accuracy.png)",
        "# Earlier", "## Strangers: people",
        "![Strangers: people: accuracy](json/earlier/plots/strangers_people_accuracy.png)",
        "## Noise and other changes: FSDD v1",
        "# Shipped models", "## Strangers: people",
        "![Strangers: people: accuracy](json/shipped_models/plots/strangers_people_accuracy.png)",
        "## Noise and other changes: FSDD v1",
    ]  # fmt: skip


def test_sub_folders_alone_make_a_page_and_nothing_makes_none(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    for folder in (tmp_path / "json", tmp_path / "nowhere"):
        with pytest.raises(DataError, match="holds no results to write"):
            records.update_docs(folder, page)
    (tmp_path / "json" / "plots").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no results to write"):
        records.update_docs(tmp_path / "json", page)
    assert not page.exists()
    records.save_result(result(), tmp_path / "json" / "shipped")
    assert records.update_docs(tmp_path / "json", page) == 1
    assert page.read_text(encoding="utf-8").index("# Shipped") < page.read_text(encoding="utf-8").index("## Official")


@pytest.mark.parametrize("content", ["{}", "[", '{"protocol": "official"}'])
def test_a_foreign_file_beside_the_results_of_a_sub_folder_is_named_too(content: str, tmp_path: Path) -> None:
    records.save_result(result(), tmp_path)
    records.save_result(result(), tmp_path / "shipped")
    (tmp_path / "shipped" / "mine.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"shipped.mine\.json is no result of evaluate\.py"):
        records.update_docs(tmp_path, tmp_path / "results.md")


@pytest.mark.parametrize("content", ["{}", "[", "3", '{"test": {"protocol": "official"}}'])
def test_a_sub_folder_of_other_things_is_no_part(content: str, tmp_path: Path) -> None:
    records.save_result(result(), tmp_path)
    (tmp_path / "train_logs").mkdir()
    (tmp_path / "train_logs" / "metrics_summary_mfcc.json").write_text(content, encoding="utf-8")
    assert records.update_docs(tmp_path, tmp_path / "results.md") == 1
    assert "# Train logs" not in (tmp_path / "results.md").read_text(encoding="utf-8")


def test_a_log_that_cannot_be_written_is_one_of_our_errors(tmp_path: Path) -> None:
    (tmp_path / "log.md").mkdir()
    with pytest.raises(DataError, match="cannot log the scoring"):
        records.log_scoring(tmp_path / "log.md", result("strangers"))
