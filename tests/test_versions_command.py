"""digits versions, versions that predict, and what an evaluation records with them."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, ModelError
from digit_detector.labels import MEL_CNN, MFCC
from digit_detector.model_file import model_metadata
from digit_detector.versions import Provenance, read_promotions, read_version, version_folder
from ml_training import evaluate, inference, versions
from ml_training.deploy import version_store
from ml_training.deploy.export import export_onnx

FOLDER = Path("models/mfcc_classifier")


def add(models, tiny_models, words, pipeline=MFCC):
    """Versions with the tiny model, distinguished by best_model.pt and their settings."""
    for word in words.split():
        made = models.parent / "made"
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        shutil.copyfile(tiny_models / "mfcc_classifier" / "model.onnx", made / "model.onnx")
        (made / "best_model.pt").write_text(word, encoding="utf-8")
        provenance = Provenance(
            pipeline=pipeline, data="tiny", data_hash="ab" * 32, synthetic=True, split="official", git_commit="c" * 40,
            package_version="0.1.0", settings={"epochs": len(word), "seed": 0}, training={"best_epoch": 2},
            weights_hash=hashlib.sha256(word.encode()).hexdigest(),
        )  # fmt: skip
        metrics = {"official": {"tiny": {"accuracy": 0.9, "clips": 100}}}
        version_store.add(models / f"{pipeline}_classifier", made, provenance, metrics)


@pytest.fixture(autouse=True)
def three_versions(tmp_path, tiny_models, monkeypatch):
    """The current folder has models/ with versions 1, 2 and 3 of mfcc; 3 is promoted."""
    add(tmp_path / "models", tiny_models, "one two three")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def output(capsys):
    """Run digits versions: its output, as JSON with --json, or its one line of error."""

    def run(*words, code=0):
        try:
            returned = versions.main(words)
        except SystemExit as end:
            returned = int(str(end.code))
        shown = capsys.readouterr()
        assert returned == code, shown
        if code == 2 or not shown.out:
            assert len(shown.err.splitlines()) == 1
            return shown.err
        return json.loads(shown.out) if "--json" in words else shown.out

    return run


# --- the command ---------------------------------------------------------------------------------


def test_list_show_and_compare(output):
    lines = output("list").splitlines()
    assert lines[0] == "mfcc, models/mfcc_classifier: version 3 is promoted"
    assert lines[2].split()[:2] == ["*", "3"]
    assert "official 90.00 % of 100" in lines[2]
    assert lines[3].split()[0] == "2"
    (found,) = output("list", "--json")
    assert (found["promoted"], [v["number"] for v in found["versions"]], found["faults"]) == (3, [1, 2, 3], [])
    assert [len(v["files"]) for v in found["versions"]] == [2, 2, 2]
    assert [promotion["version"] for promotion in found["history"]] == [1, 2, 3]
    shown = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in output("show").splitlines()}
    expected = {"number": "3", "promoted": "True", "parent": "2", "data_hash": "ab" * 32, "settings.epochs": "5",
                "metrics.official.tiny.accuracy": "90.00 %"}  # fmt: skip
    assert {name: shown[name] for name in expected} == expected
    assert output("show", "2", "--json")["settings"]["epochs"] == 3
    lines = output("compare", "1", "3").splitlines()
    assert lines[0].split() == ["version", "1", "version", "3"]
    assert ["90.00 %" in line for line in lines if "official.tiny.accuracy" in line] == [True]
    assert output("compare", "1", "2", "3", "--json")["differences"]["settings.epochs"] == [3, 3, 5]


def test_promote_rollback_and_prune(output):
    assert output("promote", "--pipeline", "mfcc", "1") == "mfcc: version 1 is promoted, before it was 3\n"
    assert (FOLDER / "best_model.pt").read_text(encoding="utf-8") == "one"
    assert output("rollback", "--json") == {"pipeline": "mfcc", "promoted": 3, "before": 1}
    assert (FOLDER / "best_model.pt").read_text(encoding="utf-8") == "three"
    output("promote", "1")
    assert output("prune", "--keep", "1").startswith("mfcc: would delete 2; 1, 3 stay\nnothing was deleted")
    assert version_folder(FOLDER, 2).is_dir()
    (found,) = output("prune", "--keep", "1", "--yes", "--json")
    assert (found["to_delete"], found["to_keep"], found["deleted"]) == ([2], [1, 3], True)
    assert (found["goes"], found["stays"]) == ([2], [1, 3])  # their names in 0.1
    assert not version_folder(FOLDER, 2).exists()


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
def test_faults_are_one_line(output, words, code, expected):
    assert expected in output(*words, code=code)
    assert not Path("elsewhere").exists()


def test_several_pipelines_are_distinguished(tiny_models, output):
    add(Path("models"), tiny_models, "one two", MEL_CNN)
    assert [found["pipeline"] for found in output("list", "--json")] == [MFCC, MEL_CNN]
    assert "name one, --pipeline mfcc or mel_cnn" in output("promote", "1", code=2)
    assert output("promote", "1", "--pipeline", MEL_CNN).startswith("mel_cnn: version 1 is promoted")
    assert read_promotions(FOLDER).promoted == 3
    assert len(output("prune", "--keep", "5", "--json")) == 2


def test_a_damaged_version_is_a_row_and_exit_code_1(output):
    file = version_folder(FOLDER, 2) / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert f"! {file} is damaged: its SHA-256 differs" in output("list", code=1)
    assert output("show", "2", "--json", code=1)["faults"]
    assert f"error: {file} is damaged" in output("promote", "2", code=1)
    with pytest.raises(ModelError, match="is damaged: its SHA-256 differs"):
        load_classifier("models", MFCC, version=2)
    assert load_classifier("models", MFCC).model_file == FOLDER / "model.onnx"


def test_a_killed_promotion_is_finished_by_list(capsys):
    path = FOLDER / "versions" / "promoted.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"finished": true', '"finished": false'))
    (FOLDER / "model.onnx").unlink()
    assert load_classifier("models", MFCC).model_file == version_folder(FOLDER, 3) / "model.onnx"
    assert versions.main(["list"]) == 0
    assert "finished the promotion of version 3" in capsys.readouterr().err
    assert load_classifier("models", MFCC).model_file == FOLDER / "model.onnx"


# --- prediction and evaluation -------------------------------------------------------------------


def test_any_version_predicts(tiny_folder, capsys):
    clip = str(tiny_folder / "7_speaker0_0.wav")
    classifier = load_classifier("models", MFCC, version=2)
    assert classifier.model_file == version_folder(FOLDER, 2) / "model.onnx"
    assert classifier.predict(clip)["predicted_digit"] == 7
    assert inference.main([clip, "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == str(version_folder(FOLDER, 1) / "model.onnx")
    assert inference.main([clip, "--version", "1"]) == 0
    assert "your own mfcc in models, version 1" in capsys.readouterr().err
    for flags in (["--pipeline", "mfcc"], []):
        assert inference.main([clip, "--version", "4", *flags]) == 1
        assert "has no version 4, only 1, 2, 3" in capsys.readouterr().err
    assert inference.main([clip, "--version", "2", "--precision", "int8"]) == 1
    assert "version 2 in models/mfcc_classifier has no model_int8.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(("models", "version"), [("models", v) for v in (0, -1, "3", 1.0)] + [("pretrained", 1)])
def test_an_invalid_version_is_refused(models, version):
    with pytest.raises(ConfigError, match=r"version: expected a whole number from 1 on|the models that ship have none"):
        load_classifier(models, MFCC, version=version)


def test_predicting_with_a_version_imports_nothing_heavy():
    code = (
        "import sys; from ml_training.inference import load_classifier\n"
        "load_classifier('models', 'mfcc', version=2); print(*{n.split('.')[0] for n in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert "onnxruntime" in loaded
    assert not {"torch", "rich", "mlflow", "onnx", "filelock"} & loaded


def test_an_evaluation_is_recorded_with_the_version(tiny_network, tiny_corpus, tiny_folder, capsys, output):
    metadata = model_metadata(
        pipeline=MFCC, data="tiny", data_hash="other", synthetic=True, split="official", accuracy=1.0, seed=7
    )
    export_onnx(tiny_network, Path("other/model.onnx"), metadata, tiny_corpus.waveforms[:20])
    before = read_version(FOLDER, 3)
    version_store.add(FOLDER, Path("other"), before.provenance, {}, promote=False)
    words = ["--protocol", "unseen_speakers", "calibration", "--folder", str(tiny_folder), "--pipeline", "mfcc"]
    assert evaluate.main([*words, "--version", "4"]) == 0
    shown = capsys.readouterr()
    assert "unseen_speakers: recorded with version 4 in models/mfcc_classifier" in shown.err
    found = read_version(FOLDER, 4).metrics
    assert list(found) == ["unseen_speakers", "calibration"]
    assert found["unseen_speakers"][tiny_folder.name]["clips"] == 200
    assert 0.9 < found["unseen_speakers"][tiny_folder.name]["accuracy"] <= 1
    assert {"calibration_error_before", "calibration_error_after"} <= found["calibration"][tiny_folder.name].keys()
    assert read_version(FOLDER, 3) == before
    assert f"metrics.unseen_speakers.{tiny_folder.name}.accuracy" in output("compare", "3", "4")
    (written,) = Path("evaluation_results").glob("unseen_speakers_*.json")
    assert json.loads(written.read_text())["models"][0]["file"] == "models/mfcc_classifier/versions/4/model.onnx"
    assert evaluate.main([*words, "--version", "9"]) == 1
    assert "has no version 9, only 1, 2, 3, 4" in capsys.readouterr().err
