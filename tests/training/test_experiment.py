"""A whole run on a small corpus: the files it writes, what a failing pipeline costs, temperature, resume."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, DataError, Interrupted
from ml_training.config import TrainConfig, load_config
from ml_training.data.splits import split_corpus
from ml_training.metrics import fit_logit_temperature
from ml_training.training.checkpoint import BEST, load_checkpoint, weights_hash
from ml_training.training.classification import predict
from ml_training.training.experiment import RunOutcome, run

MODEL = Path("models") / "mfcc_classifier"


def settings(folder: Path, **changes: Any) -> TrainConfig:
    usual = {"threads": 1, "epochs": 6, "ema_decay": 0.8, "learning_rate": 0.03, "batch_size": 8, "negative_ratio": 0.0}
    places = {"models_dir": str(folder / "models"), "log_dir": str(folder / "logs")}
    return TrainConfig(device="cpu", **{**places, **usual, **changes})


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """A run of two pipelines of which the first fails, on synthetic speech."""

    class Broken(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def forward_waveform(self, waveforms: Tensor) -> Tensor:
            raise ValueError("a bug")

    class Scaled(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def scaler(self) -> dict[str, list[float] | list[str]] | None:
            return {"features": ["energy"], "mean": [0.5], "scale": [2.0]}

    folder = tmp_path_factory.mktemp("run")
    pipelines = [replace(tiny.TINY, name="raw_cnn", build=Broken), replace(tiny.TINY, build=Scaled)]
    return folder, run(settings(folder), corpus=tiny.corpus(synthetic=True), pipelines=pipelines)


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def log_of(outcome: RunOutcome) -> str:
    return outcome.log_file.read_text(encoding="utf-8")


def summary_of(folder: Path) -> dict[str, Any]:
    text = max((folder / "logs").glob("metrics_summary_mfcc_*.json")).read_text(encoding="utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def test_every_promised_file_is_written(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    logs = folder / "logs"
    assert sorted(path.name for path in (folder / MODEL).iterdir()) == [
        "best_model.pt", "checkpoint_epoch_004.pt", "checkpoint_epoch_005.pt", "checkpoint_epoch_006.pt",
        "model.onnx", "scaler.pkl", "versions",
    ]  # fmt: skip
    for name in ("training_history_mfcc", "confusion_matrix_mfcc", "model_comparison"):
        assert (logs / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert outcome.report == logs / "plots" / "training_report.html"
    assert outcome.log_file == only(logs, "experiment_all_*.log")
    assert only(logs, "experiment_all_*.jsonl").stem == outcome.log_file.stem
    assert only(logs, "tensorboard/mfcc_*/events.out.tfevents.*").stat().st_size > 0
    scaler = pickle.loads((folder / MODEL / "scaler.pkl").read_bytes())
    assert scaler == {"features": ["energy"], "mean": [0.5], "scale": [2.0]}
    assert not list(folder.rglob("*.tmp"))


def test_the_figures_are_those_of_the_best_weights(tiny: ModuleType, finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    (result,) = outcome.results
    assert result.test.clips == 100
    assert result.test.accuracy > 0.7  # chance is 0.1
    assert set(result.test.speakers) == {"ann", "ben"}
    assert len(result.history) == 6
    assert result.latency_ms > 0
    assert result.peak_memory_mb > 50
    assert len(result.mistake_waveforms) == result.test.errors
    best = load_checkpoint(folder / MODEL / BEST)
    assert (best["epoch"], best["synthetic"]) == (result.best_epoch, True)
    assert best["validation"]["loss"] == min(record.validation_loss for record in result.history)
    classifier, corpus = load_classifier(folder / "models", "mfcc"), tiny.corpus()
    assert classifier.metadata["accuracy"] == f"{result.test.accuracy:.6f}"
    exported = classifier.probabilities(corpus.waveforms[corpus.indices < 5])
    assert exported == pytest.approx(result.test.probabilities, abs=1e-4)


def test_a_failing_pipeline_is_reported_and_costs_nothing_else(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    assert outcome.exit_code == 1
    assert outcome.failures == {"raw_cnn": "ValueError: a bug"}
    assert "raw_cnn failed unexpectedly: ValueError: a bug" in log_of(outcome)
    assert "Traceback (most recent call last)" in log_of(outcome)
    assert "ValueError: a bug" in outcome.report.read_text(encoding="utf-8")
    assert not (folder / "models" / "raw_cnn_classifier" / "model.onnx").exists()


def test_the_summary_holds_figures_and_data(finished: tuple[Path, RunOutcome]) -> None:
    (folder, outcome), summary = finished, summary_of(finished[0])
    (result,) = outcome.results
    assert (summary["test"]["errors"], summary["best_epoch"]) == (result.test.errors, result.best_epoch)
    assert len(summary["history"]) == 6
    assert summary["data"]["data_hash"] == outcome.data.data_hash
    assert summary["data"]["parts"]["test"] == 100
    assert summary["data"]["skipped"] == [{"file": "5_ann_9.wav", "reason": "digital silence"}]
    assert torch.__version__.startswith(summary["versions"]["torch"].partition("+")[0])
    assert "without a digit: none; hash" in log_of(outcome)
    metadata = load_classifier(folder / "models", "mfcc").metadata
    assert (metadata["negatives"], metadata["speech"]) == ("", "synthetic speech")
    assert "synthetic speech" in log_of(outcome)


def test_the_written_settings_give_the_same_weights_and_resuming_the_finished_run_too(
    tiny: ModuleType, finished: tuple[Path, RunOutcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = finished
    config = TrainConfig(**load_config(only(folder / "logs", "config_mfcc_*.json")))
    assert (config.pipeline, config.epochs, config.batch_size, config.resume) == ("mfcc", 6, 8, None)
    again = replace(config, models_dir=str(tmp_path / "models"), log_dir=str(tmp_path / "logs"))
    run(again, corpus=tiny.corpus(), pipelines=[tiny.TINY])
    (tmp_path / MODEL / "model.onnx").unlink()
    outcome = run(replace(again, resume="latest"), corpus=tiny.corpus(), pipelines=[tiny.TINY])
    assert "already finished after epoch 6" in capsys.readouterr().out
    assert outcome.results[0].test.errors == before.results[0].test.errors
    assert (tmp_path / MODEL / "model.onnx").exists()
    first, second = (load_checkpoint(where / MODEL / BEST) for where in (folder, tmp_path))
    assert weights_hash(first["weights"]) == weights_hash(second["weights"])
    assert first["validation"] == second["validation"]


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_a_signal_stops_the_run_and_prints_how_to_resume(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(tiny.TinyModel):  # type: ignore[name-defined, misc]
        calls = 0

        def forward_waveform(self, waveforms: Tensor) -> Tensor:
            Impatient.calls += self.training
            if self.training and Impatient.calls == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            scores: Tensor = super().forward_waveform(waveforms)
            return scores

    before = signal.getsignal(signal.SIGTERM)
    pipelines = [replace(tiny.TINY, build=Impatient), replace(tiny.TINY, name="mel_cnn")]
    with pytest.raises(Interrupted) as raised:
        run(settings(tmp_path), corpus=tiny.corpus(), pipelines=pipelines, resume_command="train --resume")
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped; to go on: train --resume" in capsys.readouterr().out
    assert (tmp_path / MODEL / "checkpoint_interrupted.pt").exists()
    assert not (tmp_path / "models" / "mel_cnn_classifier").exists()
    outcome = run(settings(tmp_path, resume="latest"), corpus=tiny.corpus(), pipelines=pipelines)
    assert [result.pipeline for result in outcome.results] == ["mfcc", "mel_cnn"]
    printed = capsys.readouterr().out
    assert "mfcc: resuming at epoch" in printed
    assert "mel_cnn: nothing to resume" in printed


def test_impossible_settings_and_missing_recordings_stop_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        run(settings(tmp_path, precision="fp16"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError):
        run(settings(tmp_path, dataset="folder", data_dir=str(tmp_path / "missing")))
    assert "ERROR" in only(tmp_path / "logs", "experiment_all_*.log").read_text(encoding="utf-8")


def test_a_run_that_trains_nothing_leaves_an_earlier_report(tiny: ModuleType, tmp_path: Path) -> None:
    corpus = replace(tiny.corpus(), labels=tiny.corpus().labels % 8)
    first = run(settings(tmp_path, epochs=1), corpus=corpus, pipelines=[tiny.TINY])
    assert "no clip says eight, nine" in log_of(first)
    before = (report := first.report).read_bytes()
    outcome = run(settings(tmp_path, epochs=1, resume="latest", seed=9), corpus=corpus, pipelines=[tiny.TINY])
    assert "seed was 0, is 9" in outcome.failures["mfcc"]
    assert outcome.exit_code == 1
    assert report.read_bytes() == before


def test_negatives_and_synthetic_voices_are_named_everywhere(tiny: ModuleType, tmp_path: Path) -> None:
    """The figures are of recorded digits alone, whatever was trained with beside them."""
    changes = {"negative_ratio": 0.25, "synthetic_ratio": 0.25, "synthetic_voices": 12, "epochs": 2}
    corpus = tiny.corpus()
    outcome = run(settings(tmp_path, **changes), corpus=corpus, pipelines=[tiny.TINY])
    (result,), data = outcome.results, outcome.data
    assert "synthetic words" in data.negatives
    assert data.name == f"bursts with {data.parts['train'] // 4} clips of synthetic speech"
    assert result.test.protocol == "the official split of bursts"
    assert result.test.clips == data.parts["test"] == 100
    assert set(result.test.speakers) == {"ann", "ben"}
    metadata = load_classifier(tmp_path / "models", "mfcc").metadata
    assert metadata["negatives"] == summary_of(tmp_path)["data"]["negatives"] == data.negatives
    assert (metadata["data"], metadata["recordings_hash"]) == (data.name, corpus.data_hash)
    assert metadata["data_hash"] == data.data_hash != corpus.data_hash
    for text in (data.name, f"without a digit: {data.negatives}; hash", f"{data.parts['validation']} validation clips"):
        assert text in log_of(outcome)
    assert data.name in outcome.report.read_text(encoding="utf-8")


def test_teachers_are_checked_before_anything_is_trained(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_training.training.distillation.get_pipeline", lambda name: tiny.TINY)
    folder = tmp_path / "teacher"
    taught = {"teacher_dir": str(folder), "epochs": 1}
    with pytest.raises(DataError, match="has no best_model"):
        run(settings(tmp_path, **taught), pipelines=[tiny.TINY])
    with pytest.raises(ConfigError, match="would teach itself"):
        run(settings(folder, **taught), pipelines=[tiny.TINY])
    run(settings(folder, epochs=1), corpus=tiny.corpus(), pipelines=[tiny.TINY])
    assert not run(settings(tmp_path, **taught), corpus=tiny.corpus(), pipelines=[tiny.TINY]).failures
    with pytest.raises(ConfigError, match=rf"teacher .*{BEST} was trained on digits alone"):
        run(settings(tmp_path, negative_ratio=0.25, **taught), corpus=tiny.corpus(), pipelines=[tiny.TINY])


def test_the_temperature_is_fitted_on_validation_and_divides_the_exported_scores(
    tiny: ModuleType, finished: tuple[Path, RunOutcome]
) -> None:
    folder, outcome = finished
    (result,), corpus = outcome.results, tiny.corpus()
    weights = load_checkpoint(folder / MODEL / BEST)["weights"]
    model = tiny.TinyModel()
    model.load_state_dict({**weights, "temperature": torch.ones(())})
    validation = split_corpus(corpus, result.config).validation
    scores = predict(model, torch.from_numpy(corpus.waveforms[validation])).digit_logits
    expected = fit_logit_temperature(scores.numpy(), corpus.labels[validation], power=0.7)
    assert result.temperature == pytest.approx(expected, rel=1e-6)
    assert abs(expected - 1) > 0.02, "a temperature of 1 would show nothing"
    assert float(weights["temperature"]) == result.temperature == summary_of(folder)["temperature"]
    classifier = load_classifier(folder / "models", "mfcc")
    assert (classifier.metadata["temperature"], classifier.metadata["seed"]) == (f"{expected:.6g}", "0")
    undivided = predict(model, torch.from_numpy(corpus.waveforms[:30])).digit_logits
    exported = classifier.probabilities(corpus.waveforms[:30])
    assert exported == pytest.approx((undivided / result.temperature).softmax(dim=1).numpy(), abs=1e-4)
    assert abs(undivided.softmax(dim=1).numpy() - exported).max() > 0.01
