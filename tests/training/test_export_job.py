"""From a checkpoint to files: what training itself would have written, and int8."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from digit_detector.classifier import load_classifier
from digit_detector.errors import CheckpointError, ConfigError
from digit_detector.model_file import is_intact
from digit_detector.versions import read_version, state_of
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.deploy import quantise, version_store
from ml_training.deploy.checkpoints import checkpoints_in
from ml_training.training.checkpoint import load_checkpoint
from ml_training.training.experiment import run
from ml_training.training.export_job import Exported, ExportOutcome, ExportRequest, export

BEST = "models/mfcc_classifier/best_model.pt"


@pytest.fixture(scope="module")
def corpus(tiny: ModuleType) -> Corpus:
    """400 clips: ten digits, two speakers, recordings 0 to 19."""
    clips = tiny.bursts(400)
    speakers = tuple(("ann", "ben")[row // 10 % 2] for row in range(400))
    indices = [row // 20 for row in range(400)]
    return Corpus(
        name="bursts", waveforms=clips.waveforms.numpy(), lengths=clips.lengths.numpy(), labels=clips.labels.numpy(),
        speakers=speakers, indices=np.array(indices),
        files=tuple(f"{row % 10}_{speakers[row]}_{indices[row]}.wav" for row in range(400)),
        data_hash="bursts of noise", synthetic=False, official_split=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models/ that a whole run left."""
    folder = tmp_path_factory.mktemp("finished")
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / "logs"), device="cpu", threads=1, epochs=8,
        ema_decay=0.8, learning_rate=0.03, batch_size=8, negative_share=0.0, keep_checkpoints="all",
    )  # fmt: skip
    assert run(config, corpus=corpus, pipelines=[tiny.TINY]).exit_code == 0
    return folder


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(finished / "models", tmp_path / "models")).parent


@pytest.fixture
def exports(tiny: ModuleType, corpus: Corpus) -> Any:
    def exporting(*checkpoints: Path, **changes: Any) -> ExportOutcome:
        given = changes.pop("corpus", corpus)
        request = ExportRequest(tuple(map(str, checkpoints)), **changes)
        return export(request, corpus=given, pipelines={"mfcc": tiny.TINY})

    return exporting


def only(outcome: ExportOutcome) -> Exported:
    assert not outcome.failures
    (file,) = outcome.files
    return file


def metadata(path: Path) -> dict[str, str]:
    proto = onnx.load(path)
    found = {prop.key: prop.value for prop in proto.metadata_props}
    assert is_intact(path.read_bytes(), found)
    return found


def test_fp32_is_the_file_that_training_wrote(trained: Path, exports: Any, corpus: Corpus) -> None:
    shutil.rmtree(trained / "models/mfcc_classifier/versions")  # versions are not written again, see below
    file = trained / "models/mfcc_classifier/model.onnx"
    before, said = load_classifier(trained / "models", "mfcc").predict_proba(corpus.waveforms), metadata(file)
    written = file.stat().st_mtime_ns
    exported = only(exports(trained / BEST, precisions=("fp32",)))
    assert (exported.file, exported.precision, exported.size) == (file, "fp32", file.stat().st_size)
    assert exported.compared.startswith("largest difference ")
    assert file.stat().st_mtime_ns > written
    again = metadata(file)
    assert {key for key in said if said[key] != again[key]} <= {"created", "sha256"}
    assert (again["tested_on"], again["epoch"]) == ("100 clips, the official split of bursts", said["epoch"])
    for old, new in zip(
        before, load_classifier(trained / "models", "mfcc").predict_proba(corpus.waveforms), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_what_is_exported_from_a_version_belongs_to_it(trained: Path, exports: Any) -> None:
    folder = trained / "models/mfcc_classifier"
    before = (folder / "model.onnx").read_bytes()
    exported = {file.precision: file for file in exports(trained / BEST).files}
    assert (folder / "model.onnx").read_bytes() == before == (folder / "versions/1/model.onnx").read_bytes()
    assert exported["int8"].file == folder / "model_int8.onnx"
    assert exported["int8"].size == (folder / "versions/1/model_int8.onnx").stat().st_size
    small = (folder / "model_int8.onnx").read_bytes()
    assert small == (folder / "versions/1/model_int8.onnx").read_bytes()
    assert load_classifier(trained / "models", "mfcc", precision="int8", version=1).metadata["precision"] == "int8"
    assert not state_of(folder).damaged


def test_int8_comes_and_goes_with_its_version(trained: Path, exports: Any) -> None:
    folder = trained / "models/mfcc_classifier"
    made = trained / "made"
    made.mkdir()
    shutil.copyfile(folder / "model.onnx", made / "model.onnx")
    shutil.copyfile(folder / "best_model.pt", made / "best_model.pt")
    origin = read_version(folder, 1).origin
    version_store.add(folder, made, origin, {}, promote=False)
    first = only(exports(folder / "versions/1/best_model.pt", precisions=("int8",)))
    assert first.file == folder / "versions/1/model_int8.onnx"
    assert (folder / "model_int8.onnx").read_bytes() == first.file.read_bytes()
    version_store.promote(folder, 2)
    assert not (folder / "model_int8.onnx").exists()
    version_store.roll_back(folder)
    assert (folder / "model_int8.onnx").read_bytes() == first.file.read_bytes()


def test_a_second_export_leaves_the_first(trained: Path, exports: Any) -> None:
    exported = only(exports(trained / BEST, precisions=("int8",)))
    content = exported.file.read_bytes()
    again = only(exports(trained / BEST, precisions=("int8",)))
    assert (again.file, again.file.read_bytes()) == (exported.file, content)
    assert not state_of(exported.file.parent).damaged


def test_nothing_joins_a_damaged_version(trained: Path, exports: Any) -> None:
    folder = trained / "models/mfcc_classifier"
    with (folder / "versions/1/model.onnx").open("ab") as file:
        file.write(b"more")
    outcome = exports(trained / BEST, precisions=("int8",))
    (reason,) = outcome.failures.values()
    assert "model.onnx is damaged" in reason
    assert not (folder / "model_int8.onnx").exists()


def test_int8_answers_beside_it(trained: Path, exports: Any, corpus: Corpus) -> None:
    exported = only(exports(trained / BEST, precisions=("int8",)))
    assert exported.file == trained / "models/mfcc_classifier/model_int8.onnx"
    small, large = (load_classifier(trained / "models", "mfcc", precision=p) for p in ("int8", "fp32"))
    found, expected = small.predict_proba(corpus.waveforms), large.predict_proba(corpus.waveforms)
    assert not np.array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[0], expected[0], atol=0.1)
    assert (found[0].argmax(1) == expected[0].argmax(1)).mean() > 0.97
    said = metadata(exported.file)
    told = {"calibration", "precision", "created", "sha256", "accuracy"}
    assert {key for key in said if said[key] != large.metadata[key]} <= told
    assert said["precision"] == "int8"
    assert said["calibration"].startswith("1 layer, ")
    assert "of 300 training clips; " in said["calibration"]
    assert said["calibration"].endswith(exported.compared)
    test = corpus.indices < 5
    right = found[0][test].argmax(1) == corpus.labels[test]
    assert float(said["accuracy"]) == pytest.approx(right.mean())
    assert exported.errors == (~right).sum()
    assert exported.clips == 100


def test_an_epoch_is_exported_under_its_own_name(trained: Path, exports: Any, tiny: ModuleType, corpus: Corpus) -> None:
    checkpoint = trained / "models/mfcc_classifier/checkpoint_epoch_003.pt"
    best = (trained / "models/mfcc_classifier/model.onnx").read_bytes()
    files = exports(checkpoint).files
    assert [f.file.name for f in files] == ["checkpoint_epoch_003.onnx", "checkpoint_epoch_003_int8.onnx"]
    assert (trained / "models/mfcc_classifier/model.onnx").read_bytes() == best
    said = metadata(files[0].file)
    assert said["epoch"] == "3"
    assert float(said["temperature"]) not in (0, 1)  # fitted, though training had not come to that
    model = tiny.TinyModel()
    model.load_state_dict(load_checkpoint(checkpoint)["state"]["averaged"])
    model.temperature.fill_(float(said["temperature"]))
    model.eval()
    moved = Path(shutil.copytree(trained / "models", trained / "moved"))
    shutil.copyfile(files[0].file, moved / "mfcc_classifier/model.onnx")
    with torch.no_grad():
        expected = model(torch.from_numpy(corpus.waveforms)).scores.softmax(1).numpy()
    np.testing.assert_allclose(load_classifier(moved, "mfcc").probabilities(corpus.waveforms), expected, atol=1e-4)


def test_an_output_folder_is_one_of_models(trained: Path, exports: Any, tmp_path: Path) -> None:
    checkpoint = trained / "models/mfcc_classifier/checkpoint_epoch_008.pt"
    outcome = exports(checkpoint, output=str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out/mfcc_classifier").iterdir()) == ["model.onnx", "model_int8.onnx"]
    assert [f.checkpoint for f in outcome.files] == [str(checkpoint)] * 2
    assert load_classifier(tmp_path / "out", "mfcc").metadata["epoch"] == "8"
    with pytest.raises(ConfigError, match=r"several checkpoints would become .*model\.onnx"):
        exports(checkpoint, trained / BEST, output=str(tmp_path / "out"))


def test_recordings_that_it_did_not_learn_from_are_refused(trained: Path, exports: Any, corpus: Corpus) -> None:
    before = (trained / "models/mfcc_classifier/model.onnx").read_bytes()
    outcome = exports(trained / BEST, corpus=dataclasses.replace(corpus, data_hash="others, of the same length"))
    assert outcome.exit_code == 1
    assert not outcome.files
    (reason,) = outcome.failures.values()
    assert "was trained on recordings of hash bursts of no, but bursts has hash others, of t" in reason
    assert "--data_dir" in reason
    assert (trained / "models/mfcc_classifier/model.onnx").read_bytes() == before
    assert not (trained / "models/mfcc_classifier/model_int8.onnx").exists()


def test_int8_that_answers_otherwise_leaves_no_file(
    trained: Path, exports: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise, "LEAST_AGREED", 1.01)
    outcome = exports(trained / BEST)
    assert [f.precision for f in outcome.files] == ["fp32"]
    assert list(outcome.failures) == [f"{trained / BEST} as int8"]
    assert "of its answers are the network's, expected 101 %" in next(iter(outcome.failures.values()))
    assert not list(trained.rglob("*int8*"))


def test_weights_of_another_network_are_told(finished: Path, corpus: Corpus, tmp_path: Path) -> None:
    outcome = export(ExportRequest((str(finished / BEST),), output=str(tmp_path)), corpus=corpus)  # the registry's mfcc
    assert "do not fit this network" in outcome.failures[str(finished / BEST)]
    assert not list(tmp_path.iterdir())
    other = export(ExportRequest((str(finished / BEST),), output=str(tmp_path)), corpus=corpus, pipelines={})
    assert "is of pipeline 'mfcc': expected one of" in other.failures[str(finished / BEST)]


def test_settings_that_are_none_any_more_are_told(trained: Path, exports: Any) -> None:
    content = load_checkpoint(trained / BEST)
    content["config"]["wormholes"] = 3
    torch.save(content, trained / BEST)
    (reason,) = exports(trained / BEST).failures.values()
    assert "was written by version 0.1.0, whose settings version 0.1.0 does not accept (" in reason
    assert "wormholes" in reason


def test_damaged_and_missing_checkpoints_are_told_at_once(trained: Path, exports: Any, tmp_path: Path) -> None:
    content = (trained / BEST).read_bytes()
    (trained / BEST).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="is damaged or no checkpoint"):
        exports(trained / BEST)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        exports(tmp_path / "nothing.pt")


def test_a_place_that_cannot_be_written_is_told(trained: Path, exports: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"output: .*file is a file, expected a folder"):
        exports(trained / BEST, output=str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="output: pretrained are the models that ship"):
        exports(trained / BEST, output="pretrained")
    with pytest.raises(ConfigError, match="models_dir: pretrained are the models that ship"):
        checkpoints_in("pretrained", "all")


def test_the_best_of_a_folder(finished: Path, tmp_path: Path) -> None:
    models = str(finished / "models")
    assert checkpoints_in(models, "all") == checkpoints_in(models, "mfcc") == (str(finished / BEST),)
    with pytest.raises(CheckpointError, match=r"holds no raw_cnn_classifier.best_model\.pt: train first"):
        checkpoints_in(models, "raw_cnn")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"precisions": ("int4",)}, "expected some of fp32, int8, got int4"),
        ({"precisions": ()}, "a checkpoint and a precision"),
        ({"where": {"epochs": "3"}}, "epochs: expected one of dataset"),
    ],
)
def test_requests_that_cannot_be_meant(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        ExportRequest(**{"checkpoints": ("a.pt",), **changes})
