"""Export of checkpoints: the same file that training wrote, int8, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
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
from digit_detector.versions import read_status, read_version
from ml_training import __version__
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.deploy import version_store
from ml_training.deploy.checkpoints import find_checkpoints
from ml_training.training.checkpoint import load_checkpoint
from ml_training.training.experiment import run
from ml_training.training.export_job import Exported, ExportOutcome, ExportRequest, export

MODEL = Path("models") / "mfcc_classifier"
BEST = MODEL / "best_model.pt"


@pytest.fixture(scope="module")
def corpus(tiny: ModuleType) -> Corpus:
    """400 clips: ten digits, two speakers, recordings 0 to 19."""
    clips, rows = tiny.bursts(400), range(400)
    speakers = tuple(("ann", "ben")[row // 10 % 2] for row in rows)
    indices = [row // 20 for row in rows]
    return Corpus(
        name="bursts", waveforms=clips.waveforms.numpy(), lengths=clips.lengths.numpy(), labels=clips.labels.numpy(),
        speakers=speakers, indices=np.array(indices),
        files=tuple(f"{row % 10}_{speakers[row]}_{indices[row]}.wav" for row in rows),
        data_hash="bursts of noise", synthetic=False, official_split=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models/ of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    config = TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / "logs"), device="cpu", threads=1, epochs=8,
        ema_decay=0.8, learning_rate=0.03, batch_size=8, negative_ratio=0.0, keep_checkpoints="all",
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
    found = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
    assert is_intact(path.read_bytes(), found)
    return found


def test_fp32_is_the_file_that_training_wrote(trained: Path, exports: Any, corpus: Corpus) -> None:
    shutil.rmtree(trained / MODEL / "versions")  # versions are not written again, see below
    file = trained / MODEL / "model.onnx"
    first, before = load_classifier(trained / "models", "mfcc").predict_proba(corpus.waveforms), metadata(file)
    written = file.stat().st_mtime_ns
    exported = only(exports(trained / BEST, precisions=("fp32",)))
    assert (exported.file, exported.precision, exported.size) == (file, "fp32", file.stat().st_size)
    assert file.stat().st_mtime_ns > written
    after = metadata(file)
    assert {key for key in before if before[key] != after[key]} <= {"created", "sha256"}
    second = load_classifier(trained / "models", "mfcc").predict_proba(corpus.waveforms)
    for old, new in zip(first, second, strict=True):
        np.testing.assert_array_equal(old, new)


def test_exported_files_belong_to_the_version_of_their_checkpoint(trained: Path, exports: Any) -> None:
    folder = trained / MODEL
    before = (folder / "model.onnx").read_bytes()
    for _ in range(2):  # a second export leaves the first
        exported = {file.precision: file for file in exports(trained / BEST).files}
        assert (folder / "model.onnx").read_bytes() == before == (folder / "versions/1/model.onnx").read_bytes()
        small = (folder / "model_int8.onnx").read_bytes()
        assert exported["int8"].file == folder / "model_int8.onnx"
        assert exported["int8"].size == len(small)
        assert small == (folder / "versions/1/model_int8.onnx").read_bytes()
    assert load_classifier(trained / "models", "mfcc", precision="int8", version=1).metadata["precision"] == "int8"
    assert not read_status(folder).damaged


def test_int8_is_promoted_and_rolled_back_with_its_version(trained: Path, exports: Any) -> None:
    folder, work = trained / MODEL, trained / "work"
    work.mkdir()
    for name in ("model.onnx", "best_model.pt"):
        shutil.copyfile(folder / name, work / name)
    version_store.add(folder, work, read_version(folder, 1).provenance, {}, promote=False)
    first = only(exports(folder / "versions/1/best_model.pt", precisions=("int8",)))
    assert first.file == folder / "versions/1/model_int8.onnx"
    version_store.promote(folder, 2)
    assert not (folder / "model_int8.onnx").exists()
    version_store.roll_back(folder)
    assert (folder / "model_int8.onnx").read_bytes() == first.file.read_bytes()


def test_int8_predicts_nearly_the_same(trained: Path, exports: Any, corpus: Corpus) -> None:
    exported = only(exports(trained / BEST, precisions=("int8",)))
    small, large = (load_classifier(trained / "models", "mfcc", precision=p) for p in ("int8", "fp32"))
    found, expected = small.predict_proba(corpus.waveforms)[0], large.predict_proba(corpus.waveforms)[0]
    assert not np.array_equal(found, expected)
    np.testing.assert_allclose(found, expected, atol=0.1)
    assert (found.argmax(1) == expected.argmax(1)).mean() > 0.97
    own = metadata(exported.file)
    different = {key for key in own if own[key] != large.metadata[key]}
    assert different <= {"calibration", "precision", "created", "sha256", "accuracy"}
    assert own["precision"] == "int8"
    assert "of 300 training clips; " in own["calibration"]
    test = corpus.indices < 5
    right = found[test].argmax(1) == corpus.labels[test]
    assert float(own["accuracy"]) == pytest.approx(right.mean())
    assert (exported.errors, exported.clips) == ((~right).sum(), 100)


def test_an_epoch_is_exported_under_its_own_name(trained: Path, exports: Any, tiny: ModuleType, corpus: Corpus) -> None:
    checkpoint = trained / MODEL / "checkpoint_epoch_003.pt"
    best = (trained / MODEL / "model.onnx").read_bytes()
    files = exports(checkpoint).files
    assert [f.file.name for f in files] == ["checkpoint_epoch_003.onnx", "checkpoint_epoch_003_int8.onnx"]
    assert (trained / MODEL / "model.onnx").read_bytes() == best
    own = metadata(files[0].file)
    assert own["epoch"] == "3"
    assert float(own["temperature"]) not in (0, 1)  # fitted by the export
    model = tiny.TinyModel()
    model.load_state_dict(load_checkpoint(checkpoint)["state"]["averaged"])
    model.temperature.fill_(float(own["temperature"]))
    model.eval()
    shutil.copyfile(files[0].file, trained / MODEL / "model.onnx")
    with torch.no_grad():
        expected = model(torch.from_numpy(corpus.waveforms)).digit_logits.softmax(1).numpy()
    probabilities = load_classifier(trained / "models", "mfcc").probabilities(corpus.waveforms)
    np.testing.assert_allclose(probabilities, expected, atol=1e-4)


def test_an_output_folder_is_one_of_models(trained: Path, exports: Any, tmp_path: Path) -> None:
    checkpoint = trained / MODEL / "checkpoint_epoch_008.pt"
    outcome = exports(checkpoint, output=str(tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out/mfcc_classifier").iterdir()) == ["model.onnx", "model_int8.onnx"]
    assert [f.checkpoint for f in outcome.files] == [str(checkpoint)] * 2
    assert load_classifier(tmp_path / "out", "mfcc").metadata["epoch"] == "8"
    with pytest.raises(ConfigError, match=r"several checkpoints would become .*model\.onnx"):
        exports(checkpoint, trained / BEST, output=str(tmp_path / "out"))


def test_other_recordings_settings_and_networks_are_refused(
    trained: Path, exports: Any, corpus: Corpus, tmp_path: Path
) -> None:
    before = (trained / MODEL / "model.onnx").read_bytes()
    outcome = exports(trained / BEST, corpus=replace(corpus, data_hash="others, of the same length"))
    assert outcome.exit_code == 1
    (reason,) = outcome.failures.values()
    assert "hash bursts of no, but bursts has hash others, of t" in reason
    assert "--data_dir" in reason
    request = ExportRequest((str(trained / BEST),), output=str(tmp_path / "out"))
    for message, changes in (("is of pipeline 'mfcc'", {"pipelines": {}}), ("do not fit this network", {})):
        (reason,) = export(request, corpus=corpus, **changes).failures.values()
        assert message in reason
    content = load_checkpoint(trained / BEST)
    content["config"]["wormholes"] = 3
    torch.save(content, trained / BEST)
    (reason,) = exports(trained / BEST).failures.values()
    assert "wormholes" in reason
    assert f"version {__version__}" in reason
    assert (trained / MODEL / "model.onnx").read_bytes() == before
    assert not (tmp_path / "out").exists()
    assert not (trained / MODEL / "model_int8.onnx").exists()


def test_damaged_and_missing_checkpoints_and_impossible_places_are_errors(
    trained: Path, exports: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    for output, message in (
        (str(tmp_path / "file"), "file is a file, expected a folder"),
        ("pretrained", "pretrained"),
    ):
        with pytest.raises(ConfigError, match=f"output: .*{message}"):
            exports(trained / BEST, output=output)
    with pytest.raises(ConfigError, match="models_dir: pretrained"):
        find_checkpoints("pretrained", "all")
    assert find_checkpoints(str(trained / "models"), "all") == (str(trained / BEST),)
    with pytest.raises(CheckpointError, match=r"raw_cnn_classifier.best_model\.pt: train first"):
        find_checkpoints(str(trained / "models"), "raw_cnn")
    (trained / BEST).write_bytes((trained / BEST).read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="is damaged"):
        exports(trained / BEST)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        exports(tmp_path / "nothing.pt")
