"""The versions door, versions that answer, and what an evaluation leaves with them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, ModelError
from digit_detector.labels import MEL_CNN, MFCC
from digit_detector.model_file import model_metadata
from digit_detector.versions import Origin, Promotions, read_promotions, read_version, version_folder
from ml_training import cli, evaluate, inference, versions
from ml_training.deploy import version_store
from ml_training.deploy.export import export_onnx

Folder = Callable[..., Path]


def add(models: Path, tiny_models: Path, words: str, pipeline: str = MFCC) -> None:
    """Versions with the tiny model, told apart by what their best_model.pt and their descriptions say."""
    folder = models / f"{pipeline}_classifier"
    for word in words.split():
        made = models.parent / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        shutil.copyfile(tiny_models / "mfcc_classifier" / "model.onnx", made / "model.onnx")
        (made / "best_model.pt").write_text(word, encoding="utf-8")
        origin = Origin(
            pipeline=pipeline, data="tiny", data_hash="ab" * 32, synthetic=True, split="official", git_commit="c" * 40,
            package_version="0.1.0", settings={"epochs": len(word), "seed": 0}, training={"best_epoch": 2},
            weights_hash=hashlib.sha256(word.encode()).hexdigest(),
        )  # fmt: skip
        version_store.add(folder, made, origin, {"official": {"tiny": {"accuracy": 0.9, "clips": 100}}})


@pytest.fixture
def desk(tmp_path: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with models/ that holds versions 1, 2 and 3 of mfcc; 3 is promoted."""
    add(tmp_path / "models", tiny_models, "one two three")
    monkeypatch.chdir(tmp_path)
    return Path("models/mfcc_classifier")


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    """What the door prints for some words, read as JSON where that was asked for."""
    try:
        left = versions.main(words)
    except SystemExit as leaves:
        left = int(str(leaves.code))
    shown = capsys.readouterr()
    assert left == code, shown
    if code == 2 or not shown.out:
        assert len(shown.err.splitlines()) == 1
        return shown.err
    return json.loads(shown.out) if "--json" in words else shown.out


# --- the door ------------------------------------------------------------------------------------


def test_list_and_show(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "list").splitlines()
    assert lines[0] == "mfcc, models/mfcc_classifier: version 3 is promoted"
    assert [line.split()[:2] for line in lines[2:4]] == [["*", "3"], ["2", lines[3].split()[1]]]
    (found,) = said(capsys, "list", "--json")
    assert (found["promoted"], [v["number"] for v in found["versions"]], found["faults"]) == (3, [1, 2, 3], [])
    assert "3 of mfcc, promoted" in said(capsys, "show")
    assert said(capsys, "show", "2", "--json")["settings"]["epochs"] == 3
    assert [len(v["files"]) for v in found["versions"]] == [2, 2, 2]


def test_compare(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = said(capsys, "compare", "1", "3").splitlines()
    assert lines[0].split() == ["version", "1", "version", "3"]
    assert "official, tiny, accuracy  90.00 %" in "\n".join(lines)
    assert said(capsys, "compare", "1", "2", "3", "--json")["differences"]["setting epochs"] == [3, 3, 5]


def test_promote_and_rollback(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "promote", "--pipeline", "mfcc", "1") == "mfcc: version 1 is promoted, before it was 3\n"
    assert (desk / "best_model.pt").read_text(encoding="utf-8") == "one"
    found = said(capsys, "rollback", "--json")
    assert found == {"pipeline": "mfcc", "promoted": 3, "before": 1}
    assert (desk / "best_model.pt").read_text(encoding="utf-8") == "three"


def test_prune_shows_first(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said(capsys, "promote", "1")
    lines = said(capsys, "prune", "--keep", "1")
    assert lines == "mfcc: would delete 2; 1, 3 stay\nnothing was deleted: --yes does it\n"
    assert version_folder(desk, 2).is_dir()
    assert said(capsys, "prune", "--keep", "1", "--yes", "--json") == [
        {"pipeline": "mfcc", "goes": [2], "stays": [1, 3], "deleted": True}
    ]
    assert not version_folder(desk, 2).exists()


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["promote"], 2, "promote takes 1 version numbers, got 0"),
        (["compare", "1"], 2, "compare takes 2 or more version numbers, got 1"),
        (["list", "1"], 2, "list takes 0 version numbers, got 1"),
        (["prune"], 2, "prune needs --keep N"),
        (["prune", "--keep", "0"], 2, "keep: expected 1 or more, got 0"),
        (["list", "--yes"], 2, "--keep and --yes belong to prune"),
        (["promot", "1"], 2, "invalid choice: 'promot'"),
        (["promote", "9"], 1, "error: models/mfcc_classifier has no version 9, only 1, 2, 3: see digits versions list"),
        (["list", "--pipeline", "raw_cnn"], 1, "error: models holds no versions of raw_cnn"),
        (["list", "--models_dir", "elsewhere"], 1, "error: elsewhere holds no versions (looked in "),
        (["list", "--models_dir", "elsewhere"], 1, "digits predict --model_dir pretrained"),
        (["list", "--models_dir", "pretrained"], 2, "models_dir: pretrained are the models that ship"),
    ],
)
def test_what_cannot_be_is_one_line(
    desk: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, expected: str
) -> None:
    assert expected in said(capsys, *words, code=code)
    assert not Path("elsewhere").exists()


def test_several_pipelines_are_told_apart(desk: Path, tiny_models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(Path("models"), tiny_models, "one two", MEL_CNN)
    assert [found["pipeline"] for found in said(capsys, "list", "--json")] == [MFCC, MEL_CNN]
    assert "name one, --pipeline mfcc or mel_cnn" in said(capsys, "promote", "1", code=2)
    assert said(capsys, "promote", "1", "--pipeline", MEL_CNN).startswith("mel_cnn: version 1 is promoted")
    assert read_promotions(desk).promoted == 3
    assert len(said(capsys, "prune", "--keep", "5", "--json")) == 2


def test_a_damaged_version_is_a_row_and_exit_code_1(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = version_folder(desk, 2) / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert f"! {file} is damaged: it has not the SHA-256" in said(capsys, "list", code=1)
    assert said(capsys, "show", "2", "--json", code=1)["faults"]
    assert f"error: {file} is damaged" in said(capsys, "promote", "2", code=1)
    with pytest.raises(ModelError, match="is damaged: it has not the SHA-256"):
        load_classifier("models", MFCC, version=2)
    assert load_classifier("models", MFCC).model_file == desk / "model.onnx"


def test_a_killed_promotion_is_finished_by_the_next_list(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    version_store._write_promotions(desk, Promotions(read_promotions(desk).history, finished=False))
    (desk / "model.onnx").unlink()
    assert load_classifier("models", MFCC).model_file == version_folder(desk, 3) / "model.onnx"
    assert versions.main(["list"]) == 0
    assert "finished the promotion of version 3" in capsys.readouterr().err
    assert load_classifier("models", MFCC).model_file == desk / "model.onnx"


def test_the_door_is_a_script_and_a_sub_command(desk: Path, run_door: Any, capsys: pytest.CaptureFixture[str]) -> None:
    done = run_door("versions.py", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mfcc, models")
    assert cli.main(["versions", "list"]) == 0
    assert capsys.readouterr().out == done.stdout


# --- answering and evaluating --------------------------------------------------------------------


def test_any_version_answers(desk: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip = str(tiny_folder / "7_speaker0_0.wav")
    classifier = load_classifier("models", MFCC, version=2)
    assert classifier.model_file == version_folder(desk, 2) / "model.onnx"
    assert classifier.predict(clip)["predicted_digit"] == 7
    assert inference.main([clip, "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(version_folder(desk, 1) / "model.onnx")
    assert inference.main([clip, "--version", "1"]) == 0
    assert "answered by your own mfcc in models, version 1" in capsys.readouterr().err
    for flags in (["--pipeline", "mfcc"], []):
        assert inference.main([clip, "--version", "4", *flags]) == 1
        assert "has no version 4, only 1, 2, 3" in capsys.readouterr().err
    assert inference.main([clip, "--version", "2", "--precision", "int8"]) == 1
    assert "version 2 in models/mfcc_classifier has no model_int8.onnx" in capsys.readouterr().err


@pytest.mark.parametrize("version", [0, -1, "3", 1.0])
def test_a_version_is_a_number_from_1_on(desk: Path, version: Any) -> None:
    with pytest.raises(ConfigError, match="version: expected a whole number from 1 on"):
        load_classifier("models", MFCC, version=version)


def test_what_ships_has_no_versions(desk: Path) -> None:
    with pytest.raises(ConfigError, match="version: the models that ship have none, got 1"):
        load_classifier("pretrained", MFCC, version=1)


def test_answering_by_version_loads_nothing_heavy(desk: Path, run_code: Callable[..., str]) -> None:
    loaded = run_code(
        "import sys; from ml_training.inference import load_classifier\n"
        "load_classifier('models', 'mfcc', version=2); print(sorted({n.split('.')[0] for n in sys.modules}))"
    )
    assert "onnxruntime" in loaded
    assert not {"'torch'", "'rich'", "'mlflow'", "'onnx'"} & set(loaded.strip("[]\n").split(", "))


@pytest.fixture
def run_code(tmp_path: Path) -> Callable[..., str]:
    def run(code: str) -> str:
        command = [sys.executable, "-c", code]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout

    return run


def test_an_evaluation_is_kept_with_the_version_it_scored(
    desk: Path, tiny_network: Any, tiny_corpus: Any, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = model_metadata(
        pipeline=MFCC, data="tiny", data_hash="other", synthetic=True, split="official", accuracy=1.0, seed=7
    )
    made = Path("other")
    export_onnx(tiny_network, made / "model.onnx", metadata, tiny_corpus.waveforms[:20])
    before = read_version(desk, 3)
    version_store.add(desk, made, before.origin, {}, promote=False)
    words = ["--protocol", "unseen_speakers", "calibration", "--folder", str(tiny_folder), "--pipeline", "mfcc"]
    assert evaluate.main([*words, "--version", "4"]) == 0
    shown = capsys.readouterr()
    assert "unseen_speakers: recorded with version 4 in models/mfcc_classifier" in shown.err
    found = read_version(desk, 4).metrics
    assert list(found) == ["unseen_speakers", "calibration"]
    assert found["unseen_speakers"][tiny_folder.name]["clips"] == 200
    assert 0.9 < found["unseen_speakers"][tiny_folder.name]["accuracy"] <= 1
    assert {"calibration_error_before", "calibration_error_after"} <= found["calibration"][tiny_folder.name].keys()
    assert read_version(desk, 3) == before
    assert f"unseen_speakers, {tiny_folder.name}, accuracy" in said(capsys, "compare", "3", "4")
    (written,) = Path("evaluation_results").glob("unseen_speakers_*.json")
    assert json.loads(written.read_text())["models"][0]["file"] == "models/mfcc_classifier/versions/4/model.onnx"
    assert evaluate.main([*words, "--version", "9"]) == 1
    assert "has no version 9, only 1, 2, 3, 4" in capsys.readouterr().err
