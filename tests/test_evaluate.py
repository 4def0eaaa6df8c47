"""The evaluation door: what it leaves behind, the log, the page, and errors in one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from digit_detector.labels import PIPELINES
from ml_training import evaluate, inference
from ml_training.evaluation import protocols

PNG = b"\x89PNG"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIGIT_DATA_DIR", raising=False)
    return tmp_path


def words(models: Path, folder: Path, *more: str) -> list[str]:
    return ["--models-dir", str(models), "--folder", str(folder), "--pipeline", "mfcc", *more]


def test_the_door_knows_the_protocols() -> None:
    assert evaluate.PROTOCOLS == protocols.PROTOCOLS


def test_strangers_leave_json_a_table_a_plot_and_a_report(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(words(tiny_models, tiny_folder, "--protocol", "strangers", "calibration")) == 0
    said = capsys.readouterr()
    assert re.search(r"mfcc +unknown +\d of 200 +\d+\.\d % +\d+\.\d to \d+\.\d %", said.out)
    assert "speaker0" in said.out
    assert "error before" in said.out
    assert said.out.splitlines()[-1] == "report: evaluation_results/evaluation_report.html"
    (strangers,) = (desk / "evaluation_results").glob("strangers_*_mfcc.json")
    values = json.loads(strangers.read_text(encoding="utf-8"))
    assert values["protocol"] == "strangers"
    assert {"seeds", "data_hash", "version", "git_commit", "created", "definition"} <= values.keys()
    plots = sorted((desk / "evaluation_results" / "plots").iterdir())
    assert len(plots) == 2
    assert all(path.read_bytes().startswith(PNG) for path in plots)
    report = (desk / "evaluation_results" / "evaluation_report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == 2
    assert "Errors and accuracy" in report
    assert "--paper:" in report, "the style of the training report"
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", report), "it loads nothing"


def test_an_earlier_result_stays_in_the_report_and_its_own_is_replaced(
    desk: Path, tiny_models: Path, tiny_folder: Path
) -> None:
    for protocol in ("strangers", "calibration", "strangers"):
        assert evaluate.main(words(tiny_models, tiny_folder, "--protocol", protocol, "--output", "out")) == 0
    assert len(list(Path("out").glob("*.json"))) == 2
    report = Path("out/evaluation_report.html").read_text(encoding="utf-8")
    assert report.count('<section id="result') == 2


def test_folders_of_one_name_are_told_apart_and_none_counts_twice(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for person in ("ann", "ben"):
        (desk / person).mkdir()
        (desk / person / "clips").symlink_to(tiny_folder)
    Path("clips").mkdir()
    for path in list(tiny_folder.iterdir())[:30]:
        shutil.copy(path, "clips")
    shutil.copytree("clips", "other/clips")
    flags = ["--protocol", "strangers", "--pipeline", "mfcc", "--models_dir", str(tiny_models), str(tiny_models)]
    flags += ["--folder", "clips", "ann/clips", "clips", "other/clips", "ben/clips", "--log_scoring", "scored.md"]
    assert evaluate.main(flags) == 0
    names = [path.name for path in Path("evaluation_results").glob("*.json")]
    assert len(names) == 3
    assert "strangers_other_clips_mfcc.json" in names
    assert Path("scored.md").read_text(encoding="utf-8").count("| strangers |") == 3
    assert "mean of" not in capsys.readouterr().out, "one model"


def test_models_that_ship_and_a_folder_of_their_name_are_both_heard(
    desk: Path, tiny_models: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "package" / "pretrained").mkdir(parents=True)
    shutil.copy(tiny_models / "mfcc_classifier" / "model.onnx", desk / "package" / "pretrained" / "mfcc.onnx")
    monkeypatch.setattr(inference, "__file__", str(desk / "package" / "inference.py"))
    shutil.copytree(tiny_models, "pretrained")
    flags = ["--protocol", "strangers", "--pipeline", "mfcc", "--folder", str(tiny_folder), "--models_dir"]
    assert evaluate.main([*flags, "./pretrained", "pretrained", "pretrained", str(desk / "pretrained")]) == 0
    (found,) = Path("evaluation_results").glob("*.json")
    assert [model["file"].split("/")[-2] for model in json.loads(found.read_text(encoding="utf-8"))["models"]] == [
        "mfcc_classifier", "pretrained",
    ]  # fmt: skip


def test_a_result_of_an_older_version_costs_no_figures(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/older.json").write_text('{"protocol": "official"}', encoding="utf-8")
    assert evaluate.main(words(tiny_models, tiny_folder, "--protocol", "strangers", "--output", "out")) == 0
    said = capsys.readouterr()
    assert "Errors and accuracy" in said.out
    assert re.search(r"left out of the report: .*older\.json is no result of evaluate\.py", said.err)
    assert Path("out/evaluation_report.html").exists()


def test_noise_that_cannot_be_read_is_told(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("noises").mkdir()
    shutil.copy(next(tiny_folder.iterdir()), "noises")
    Path("noises/broken.wav").write_bytes(b"RIFF")
    assert evaluate.main(words(tiny_models, tiny_folder, "--protocol", "noise", "--noise_dir", "noises")) == 0
    assert "noises (noise): 1 file left out, first broken.wav: " in capsys.readouterr().err


def test_clips_that_cannot_be_read_are_told(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_folder, "clips")
    Path("clips/3_speaker1_2.wav").write_bytes(b"RIFF")
    assert evaluate.main(words(tiny_models, Path("clips"), "--protocol", "strangers")) == 0
    assert "clips: 1 file left out, first 3_speaker1_2.wav: " in capsys.readouterr().err
    values = json.loads(Path("evaluation_results/strangers_clips_mfcc.json").read_text(encoding="utf-8"))
    assert (values["clips"], values["details"]["clips_left_out"][0]["file"]) == (199, "3_speaker1_2.wav")


def test_noise_draws_one_plot_for_each_kind(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = words(tiny_models, tiny_folder, "--protocol", "noise", "--noise_dir", str(tiny_folder), "--noise-seed", "3")
    assert evaluate.main(flags) == 0
    kinds = {path.stem.rpartition("_")[2] for path in Path("evaluation_results/plots").iterdir()}
    assert kinds == {
        "white", "pink", "brown", "recorded", "band", "clipping", "reverberation", "speed", "level", "place",
    }  # fmt: skip
    out = capsys.readouterr().out
    assert "noise seed 3" in out
    assert re.search(r"^ +-5 dB +\d+\.\d % \(\d+\.\d to \d+\.\d\)$", out, re.MULTILINE)


def test_each_look_at_a_folder_is_logged_and_ends_up_in_the_page(
    desk: Path, tiny_models: Path, tiny_folder: Path
) -> None:
    flags = words(tiny_models, tiny_folder, "--protocol", "strangers", "--log_scoring", "scored.md")
    for _ in range(2):
        assert evaluate.main([*flags, "--update_docs", "results.md"]) == 0
    log = Path("scored.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in log if re.match(r"\| \d{4}-\d\d-\d\d \d\d:\d\d \|", line)]
    assert len(rows) == 2
    cells = [cell.strip() for cell in rows[0].strip("|").split("|")]
    assert len(cells) == 6 + len(PIPELINES)
    assert cells[2] == "strangers"
    assert re.fullmatch("[0-9a-f]{8}", cells[5])
    assert 90 <= float(cells[6]) <= 100
    page = Path("results.md").read_text(encoding="utf-8")
    assert all(row in page for row in rows)
    assert "## Strangers: " in page
    (shown,) = re.findall(r"^!\[.+: accuracy\]\((.+)\)$", page, re.MULTILINE)
    assert Path(shown).read_bytes().startswith(b"\x89PNG")
    assert re.search(r"^\| mfcc \| unknown \| \d of 200 \|", page, re.MULTILINE)
    Path("results.md").unlink()
    assert (
        evaluate.main(["--update_docs", "results.md", "--log_scoring", "scored.md"]) == 2
    )  # no folder: nothing to log
    Path("scored.md").rename("strangers_scored.md")
    assert evaluate.main(["--update_docs", "results.md"]) == 0, "the page again, nothing evaluated"
    assert Path("results.md").read_text(encoding="utf-8") == page


def test_a_log_of_another_shape_keeps_its_lines(desk: Path, tiny_models: Path, tiny_folder: Path) -> None:
    Path("scored.md").write_text("# Mine\n\n| when | what |\n|---|---|\n| once | this |\n", encoding="utf-8")
    assert evaluate.main(words(tiny_models, tiny_folder, "--protocol", "strangers", "--log_scoring", "scored.md")) == 0
    text = Path("scored.md").read_text(encoding="utf-8")
    assert text.startswith("# Mine\n\n| when | what |\n|---|---|\n| once | this |\n\n| when (UTC) |")


def test_rejection_leaves_a_table_and_a_curve_for_each_pipeline(
    desk: Path, tiny_models: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in ("words", "noise"):
        Path(kind).mkdir()
        for number in range(3):
            noise = np.random.default_rng(number).normal(0, 0.1, 6000)
            soundfile.write(f"{kind}/{number}.wav", noise, 8000)
    flags = words(tiny_models, tiny_folder, "--protocol", "rejection", "--others", "words=words", "noise=noise")
    assert evaluate.main(flags) == 0
    said = capsys.readouterr()
    assert re.search(r"digits \(200\) +95% +95\.0 %$", said.out, re.MULTILINE)
    assert re.search(r"words \(3\) +score 0\.5 +0\.0 %$", said.out, re.MULTILINE)
    assert re.search(r"noise \(3\) +area under ROC +1\.000$", said.out, re.MULTILINE)
    (path,) = Path("evaluation_results").glob("rejection_*_mfcc.json")
    values = json.loads(path.read_text(encoding="utf-8"))
    kinds = [found["kind"] for found in values["rejections"]]
    assert kinds == ["digits", "words", "noise", "cut off", "doubled", "silence"]
    assert values["details"]["others"]["words"] == "3 clips of 3 recordings in words"
    (plot,) = Path("evaluation_results/plots").iterdir()
    assert plot.name.endswith("_roc.png")
    assert plot.read_bytes().startswith(PNG)
    report = Path("evaluation_results/evaluation_report.html").read_text(encoding="utf-8")
    assert "Not a digit" in report


def test_loso_trains_and_goes_on_by_itself(desk: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--protocol", "loso", "--dataset", "folder", "--data_dir", str(tiny_folder), "--pipeline", "mfcc",
        "--epochs", "1", "--seeds", "0", "--speakers", "speaker0", "--device", "cpu", "--config", "few.json",
    ]  # fmt: skip
    Path("few.json").write_text('{"synthetic_voices": 2}', encoding="utf-8")
    assert evaluate.main(flags) == 0
    said = capsys.readouterr()
    assert "mfcc, seed 0, without speaker0: " in said.err
    assert "mean ± over seeds" in said.out
    assert len(list(Path("train_logs/loso").glob("mfcc_speaker0_seed0_*/fold.json"))) == 1
    assert evaluate.main(flags) == 0
    assert "1 trainings, 1 already there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        ([], 2, "protocol: name one of official, cv, loso, strangers, noise, calibration, rejection at least"),
        (["--protocol", "oficial"], 2, "invalid choice: 'oficial'"),
        (["--protocol", "strangers"], 2, "needs a folder of labelled clips"),
        (["--protocol", "loso", "--log_scoring", "x.md"], 2, "it logs looks at a folder, and none is named"),
        (["--protocol", "loso", "--seeds", "-1"], 2, "seeds: expected whole numbers from 0 on, got -1"),
        (["--protocol", "loso", "--noise_seed", "-1"], 2, "noise_seed: expected a whole number from 0 to 2147483647"),
        (["--protocol", "official", "--folder", "CLIPS"], 2, "strangers, noise, calibration, rejection score folders"),
        (["--protocol", "official", "--noise_dir", "CLIPS"], 2, "noise_dir: only protocol 'noise' mixes noise in"),
        (["--protocol", "official", "--speakers", "theo"], 2, "only protocol 'loso' leaves speakers out"),
        (["--protocol", "rejection", "--folder", "CLIPS"], 2, "'rejection' needs a folder of clips without a digit"),
        (["--protocol", "official", "--others", "words=CLIPS"], 2, "others: only protocol 'rejection' hears them"),
        (["--protocol", "rejection", "--others", "CLIPS"], 2, "expected KIND=DIR, e.g. words=recordings/words, got"),
        (["--protocol", "rejection", "--others", "words="], 2, "expected KIND=DIR"),
        (["--protocol", "rejection", "--others", "a=x", "a=y"], 2, "others: each kind needs a name of its own"),
        (["--protocol", "rejection", "--others", "silence=x"], 2, "none of digits, cut off, doubled, silence"),
        (["--protocol", "rejection", "--folder", "CLIPS", "--others", "words=nowhere", "--models_dir", "MODELS"], 1,
         "nowhere is not a folder: expected one with recordings of words"),
        (["--protocol", "official", "--output", "fold.json/x"], 2, "fold.json is a file, expected a folder"),
        (["--protocol", "official", "--update_docs", "foreign"], 2, "foreign is a folder, expected a file"),
        (["--protocol", "loso", "--config", "missing.json"], 2, "missing.json"),
        (["--protocol", "loso", "--config", "fold.json"], 2, "split: the protocol decides it"),
        (["--protocol", "loso", "--epochs", "0"], 2, "epochs: expected a number from 1"),
        (["--protocol", "strangers", "--folder", "nowhere"], 1, "no folder models"),
        (["--protocol", "strangers", "--folder", "nowhere", "--models_dir", "MODELS"], 1, "nowhere is not a folder"),
        (["--protocol", "noise", "--noise_dir", "nowhere", "--models_dir", "MODELS"], 1, "nowhere is not a folder"),
        (["--protocol", "official", "--models_dir", "MODELS", "--dataset", "folder", "--data_dir", "CLIPS"], 1,
         "has no official test part"),
        (["--update_docs", "page.md"], 1, "evaluation_results holds no results to write page.md from"),
        (["--update_docs", "page.md", "--output", "foreign"], 1, "foreign.json is no result of evaluate.py"),
    ],
)  # fmt: skip
def test_faults_are_one_line(
    flags: list[str], code: int, expected: str, desk: Path, tiny_models: Path, tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Path("fold.json").write_text('{"split": "speaker", "held_out_speaker": "theo"}', encoding="utf-8")
    Path("foreign").mkdir()
    Path("foreign/foreign.json").write_text('{"protocol": "official"}', encoding="utf-8")
    there = {"MODELS": str(tiny_models), "CLIPS": str(tiny_folder), "words=CLIPS": f"words={tiny_folder}"}
    try:
        found = evaluate.main([there.get(word, word) for word in flags])
    except SystemExit as left:  # argparse leaves by itself
        found = int(str(left.code))
    said = capsys.readouterr()
    assert (found, said.out) == (code, "")
    last = said.err.splitlines()[-1]
    assert expected in last
    assert not Path("evaluation_results").exists(), "nothing is left behind"
    assert "Traceback" not in said.err


def test_without_the_train_extra_the_door_says_which_to_install(tmp_path: Path) -> None:
    command = [sys.executable, "-S", str(Path(evaluate.__file__)), "--protocol", "official"]  # -S: no packages
    bare = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert bare.returncode == 1
    assert re.match(r"error: evaluation \(matplotlib, jinja2\) needs the \[train\] extra", bare.stderr)


def test_run_as_a_script(
    run_door: Callable[..., subprocess.CompletedProcess[str]], tiny_models: Path, tiny_folder: Path
) -> None:
    done = run_door("evaluate.py", *words(tiny_models, tiny_folder, "--protocol", "strangers"))
    assert done.returncode == 0, done.stderr
    assert "Errors and accuracy" in done.stdout


def test_models_that_are_there_are_evaluated_without_torch(tiny_models, tiny_folder, tmp_path):
    """Every protocol that trains nothing, where torch cannot be imported."""
    recordings, few = tmp_path / "fsdd", tmp_path / "few"
    for folder in (recordings, few):
        folder.mkdir()
    for digit in range(10):
        for index in (0, 1):
            content = (tiny_folder / f"{digit}_speaker0_{index}.wav").read_bytes()
            (recordings / f"{digit}_ann_{7 * index}.wav").write_bytes(content)
            (few / f"{digit}_ben_{index}.wav").write_bytes((tiny_folder / f"{digit}_speaker1_{index}.wav").read_bytes())
    code = """
import sys
sys.modules["torch"] = None
from ml_training import evaluate
code = evaluate.main(sys.argv[1:])
assert not any(name.startswith("torch.") for name in sys.modules)
sys.exit(code)
"""
    words = [
        "--protocol", "official", "strangers", "noise", "calibration", "rejection", "--models_dir", tiny_models,
        "--pipeline", "mfcc", "--data_dir", recordings, "--folder", few, "--noise_dir", few, "--others", f"words={few}",
        "--output", tmp_path / "results",
    ]  # fmt: skip
    command = [sys.executable, "-W", "error", "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    protocols = {path.name.split("_")[0] for path in (tmp_path / "results").glob("*.json")}
    assert protocols == {"official", "strangers", "noise", "calibration", "rejection"}
    training = [sys.executable, "-c", code, "--protocol", "cv", "--data_dir", str(recordings)]
    refused = subprocess.run(training, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert refused.returncode == 1
    assert "evaluation (torch) needs the [train] extra" in refused.stderr
