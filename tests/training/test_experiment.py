"""A whole run on a small corpus: what it leaves behind, and what a failing pipeline costs."""

from __future__ import annotations

import json
import os
import pickle
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
import torch
from torch import Tensor

from digit_detector.classifier import load_classifier
from digit_detector.errors import ConfigError, DataError, Interrupted
from ml_training.calibration import temperature_for_other_voices
from ml_training.config import TrainConfig, load_config
from ml_training.data.corpus import Corpus
from ml_training.data.splits import split_corpus
from ml_training.training.checkpoint import BEST, load_checkpoint
from ml_training.training.classification import predict
from ml_training.training.experiment import RunOutcome, run

PNG = b"\x89PNG"


def small_corpus(tiny: ModuleType, synthetic: bool = False) -> Corpus:
    corpus: Corpus = tiny.corpus(synthetic)
    return corpus


def settings(folder: Path, **changes: Any) -> TrainConfig:
    usual = {"threads": 1, "epochs": 6, "ema_decay": 0.8, "learning_rate": 0.03, "batch_size": 8, "negative_share": 0.0}
    return TrainConfig(
        models_dir=str(folder / "models"), log_dir=str(folder / "logs"), device="cpu", **{**usual, **changes}
    )


@pytest.fixture(scope="module")
def finished(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """A run of two pipelines of which the second fails, on synthetic speech."""

    class Broken(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def logits(self, waveforms: Tensor) -> Tensor:
            raise ValueError("a bug")

    class Scaled(tiny.TinyModel):  # type: ignore[name-defined, misc]
        def scaler(self) -> dict[str, list[float] | list[str]] | None:
            return {"features": ["energy"], "mean": [0.5], "scale": [2.0]}

    folder = tmp_path_factory.mktemp("run")
    good = replace(tiny.TINY, build=Scaled)
    broken = replace(tiny.TINY, name="raw_cnn", build=Broken)
    return folder, run(settings(folder), corpus=small_corpus(tiny, synthetic=True), pipelines=[broken, good])


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_everything_promised_is_there(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    model, logs = folder / "models" / "mfcc_classifier", folder / "logs"
    assert sorted(path.name for path in model.iterdir()) == [
        "best_model.pt", "checkpoint_epoch_004.pt", "checkpoint_epoch_005.pt", "checkpoint_epoch_006.pt",
        "model.onnx", "scaler.pkl", "versions",
    ]  # fmt: skip
    plots = logs / "plots"
    for name in ("training_history_mfcc", "confusion_matrix_mfcc", "model_comparison"):
        assert (plots / f"{name}.png").read_bytes().startswith(PNG)
    assert outcome.report == plots / "training_report.html"
    assert outcome.log_file == only(logs, "experiment_all_*.log")
    assert only(logs, "experiment_all_*.jsonl").stem == outcome.log_file.stem
    assert only(logs, "tensorboard/mfcc_*/events.out.tfevents.*").stat().st_size > 0
    assert pickle.loads((model / "scaler.pkl").read_bytes()) == {"features": ["energy"], "mean": [0.5], "scale": [2.0]}
    assert not list(folder.rglob("*.tmp"))


def test_the_figures_are_those_of_the_best_weights(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    (result,) = outcome.results
    assert result.test.clips == 100
    assert result.test.accuracy > 0.7  # chance is 0.1
    assert set(result.test.speakers) == {"ann", "ben"}
    assert len(result.history) == 6
    assert result.latency_ms > 0
    assert result.peak_memory_mb > 50
    assert len(result.mistake_waveforms) == result.test.errors
    best = load_checkpoint(folder / "models" / "mfcc_classifier" / "best_model.pt")
    assert best["epoch"] == result.best_epoch
    assert best["validation"]["loss"] == min(record.validation_loss for record in result.history)
    assert best["synthetic"] is True
    classifier = load_classifier(folder / "models", "mfcc")
    assert classifier.metadata["accuracy"] == f"{result.test.accuracy:.6f}"


def test_the_exported_model_answers_like_the_best_weights(tiny: ModuleType, finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    corpus = small_corpus(tiny)
    clips = corpus.waveforms[corpus.indices < 5]
    (result,) = outcome.results
    heard = load_classifier(folder / "models", "mfcc").probabilities(clips)
    assert heard == pytest.approx(result.test.probabilities, abs=1e-4)


def test_one_failing_pipeline_is_told_and_costs_nothing_else(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    assert outcome.exit_code == 1
    assert outcome.failures == {"raw_cnn": "ValueError: a bug"}
    log = outcome.log_file.read_text(encoding="utf-8")
    assert "raw_cnn failed unexpectedly: ValueError: a bug" in log
    assert "Traceback (most recent call last)" in log
    assert "ValueError: a bug" in outcome.report.read_text(encoding="utf-8")
    assert not (folder / "models" / "raw_cnn_classifier" / "model.onnx").exists()


def test_synthetic_speech_is_named_in_log_report_and_model(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    assert "synthetic speech" in outcome.log_file.read_text(encoding="utf-8")
    assert "synthetic speech" in outcome.report.read_text(encoding="utf-8").lower()
    model = onnx.load(folder / "models" / "mfcc_classifier" / "model.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props}["speech"] == "synthetic speech"


def test_the_summary_holds_the_figures_and_the_data(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    summary = json.loads(only(folder / "logs", "metrics_summary_mfcc_*.json").read_text(encoding="utf-8"))
    (result,) = outcome.results
    assert summary["test"]["errors"] == result.test.errors
    assert summary["best_epoch"] == result.best_epoch
    assert len(summary["history"]) == 6
    assert summary["data"]["data_hash"] == outcome.data.data_hash
    assert summary["data"]["parts"]["test"] == 100
    assert summary["data"]["skipped"] == [{"file": "5_ann_9.wav", "reason": "digital silence"}]
    assert torch.__version__.startswith(summary["versions"]["torch"].partition("+")[0])


def test_the_written_settings_give_the_same_weights_again(
    tiny: ModuleType, finished: tuple[Path, RunOutcome], tmp_path: Path
) -> None:
    folder, _ = finished
    config = TrainConfig(**load_config(only(folder / "logs", "config_mfcc_*.json")))
    assert (config.pipeline, config.epochs, config.batch_size, config.resume) == ("mfcc", 6, 8, None)
    again = replace(config, models_dir=str(tmp_path / "models"), log_dir=str(tmp_path / "logs"))
    run(again, corpus=small_corpus(tiny), pipelines=[tiny.TINY])
    first, second = (
        load_checkpoint(where / "models" / "mfcc_classifier" / "best_model.pt")["weights"]
        for where in (folder, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
def test_a_signal_stops_the_run_and_says_how_to_go_on(
    tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(tiny.TinyModel):  # type: ignore[name-defined, misc]
        calls = 0

        def logits(self, waveforms: Tensor) -> Tensor:
            if self.training:
                Impatient.calls += 1
                if Impatient.calls == 5:
                    os.kill(os.getpid(), signal.SIGTERM)
            scores: Tensor = super().logits(waveforms)
            return scores

    corpus = small_corpus(tiny)
    before = signal.getsignal(signal.SIGTERM)
    pipelines = [replace(tiny.TINY, build=Impatient), replace(tiny.TINY, name="mel_cnn")]
    with pytest.raises(Interrupted) as raised:
        run(settings(tmp_path), corpus=corpus, pipelines=pipelines, resume_command="train --resume")
    assert raised.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopped; to go on: train --resume" in capsys.readouterr().out
    assert (tmp_path / "models" / "mfcc_classifier" / "checkpoint_interrupted.pt").exists()
    assert not (tmp_path / "models" / "mel_cnn_classifier").exists()
    outcome = run(settings(tmp_path, resume="latest"), corpus=corpus, pipelines=pipelines)
    assert [result.pipeline for result in outcome.results] == ["mfcc", "mel_cnn"]
    said = capsys.readouterr().out
    assert "mfcc: resuming at epoch" in said
    assert "mel_cnn: nothing to resume" in said


def test_a_finished_run_is_tested_and_exported_again(
    tiny: ModuleType, finished: tuple[Path, RunOutcome], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, before = finished
    (folder / "models" / "mfcc_classifier" / "model.onnx").unlink()
    corpus = small_corpus(tiny, synthetic=True)
    outcome = run(settings(folder, resume="latest", pipeline="mfcc"), corpus=corpus, pipelines=[tiny.TINY])
    assert "already finished after epoch 6" in capsys.readouterr().out
    assert outcome.results[0].history == before.results[0].history
    assert outcome.results[0].test.errors == before.results[0].test.errors
    assert (folder / "models" / "mfcc_classifier" / "model.onnx").exists()


def test_impossible_settings_stop_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        run(settings(tmp_path, precision="fp16"))
    assert not list(tmp_path.iterdir())


def test_missing_recordings_are_in_the_log_too(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(settings(tmp_path, dataset="folder", data_dir=str(tmp_path / "missing")))
    assert "ERROR" in only(tmp_path / "logs", "experiment_all_*.log").read_text(encoding="utf-8")


def test_a_run_that_trains_nothing_leaves_an_earlier_report(tiny: ModuleType, tmp_path: Path) -> None:
    corpus = small_corpus(tiny)
    report = run(settings(tmp_path), corpus=corpus, pipelines=[tiny.TINY]).report
    before = report.read_bytes()
    outcome = run(replace(settings(tmp_path), resume="latest", seed=9), corpus=corpus, pipelines=[tiny.TINY])
    assert "seed was 0, is 9" in outcome.failures["mfcc"]
    assert outcome.exit_code == 1
    assert report.read_bytes() == before


def test_digits_nobody_says_are_named(tiny: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = small_corpus(tiny)
    run(replace(settings(tmp_path), epochs=1), corpus=replace(corpus, labels=corpus.labels % 8), pipelines=[tiny.TINY])
    written = capsys.readouterr()
    assert "no clip says eight, nine" in written.out + written.err


def test_synthetic_voices_among_recordings_are_named_everywhere(tiny: ModuleType, tmp_path: Path) -> None:
    changes = {"synthetic_share": 0.25, "synthetic_voices": 2}
    outcome = run(settings(tmp_path, **changes), corpus=small_corpus(tiny), pipelines=[tiny.TINY])
    (result,) = outcome.results
    count = outcome.data.parts["train"] // 4
    name = f"bursts with {count} clips of synthetic speech"
    assert outcome.data.name == name
    assert outcome.data.parts["test"] == result.test.clips == 100
    assert result.test.protocol == "the official split of bursts"
    assert not any("espeak" in speaker for speaker in result.test.speakers)
    assert name in outcome.log_file.read_text(encoding="utf-8")
    assert name in outcome.report.read_text(encoding="utf-8")
    metadata = load_classifier(tmp_path / "models", "mfcc").metadata
    assert metadata["data"] == name
    assert metadata["data_hash"] == outcome.data.data_hash != small_corpus(tiny).data_hash


def test_teachers_are_met_before_anything_is_loaded(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("recordings were loaded first")

    monkeypatch.setattr("ml_training.training.training_data.load_corpus", never)
    teacher_dir = tmp_path / "teachers"
    with pytest.raises(DataError, match="holds no best_model"):
        run(settings(tmp_path, teacher_dir=str(teacher_dir)), pipelines=[tiny.TINY])
    inside = settings(teacher_dir, teacher_dir=str(teacher_dir))
    with pytest.raises(ConfigError, match="a model would teach itself"):
        run(inside, pipelines=[tiny.TINY])


def test_whoever_heard_digits_alone_teaches_digits_alone(
    tiny: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ml_training.training.distillation.get_pipeline", lambda name: tiny.TINY)
    run(settings(tmp_path / "teacher"), corpus=small_corpus(tiny), pipelines=[tiny.TINY])
    student = settings(tmp_path, teacher_dir=str(tmp_path / "teacher"), epochs=1)
    assert not run(student, corpus=small_corpus(tiny), pipelines=[tiny.TINY]).failures
    student = settings(tmp_path, teacher_dir=str(tmp_path / "teacher"), negative_share=0.25)
    with pytest.raises(ConfigError, match=rf"teacher .*{BEST} has heard digits alone"):
        run(student, corpus=small_corpus(tiny), pipelines=[tiny.TINY])


def test_what_is_no_digit_is_trained_with_and_named_everywhere(tiny: ModuleType, tmp_path: Path) -> None:
    """Twelve voices, of which one judges: the figures are of digits alone, whatever was trained with beside them."""
    changes = {"negative_share": 0.25, "synthetic_voices": 12, "epochs": 2}
    corpus = small_corpus(tiny)
    outcome = run(settings(tmp_path, **changes), corpus=corpus, pipelines=[tiny.TINY])
    (result,) = outcome.results
    told = "432 synthetic words, digits cut off, doubled, spliced, turned round, noise"
    assert outcome.data.negatives == told
    assert (outcome.data.clips, outcome.data.speakers) == (160, ("ann", "ben"))
    assert sum(outcome.data.parts.values()) == 160
    assert result.test.clips == outcome.data.parts["test"] == 100
    assert set(result.test.labels.tolist()) == set(range(10))
    assert f"without a digit: {told}; hash" in outcome.log_file.read_text(encoding="utf-8")
    metadata = load_classifier(tmp_path / "models", "mfcc").metadata
    assert metadata["negatives"] == told
    assert metadata["recordings_hash"] == corpus.data_hash
    assert metadata["data_hash"] == outcome.data.data_hash != corpus.data_hash
    summary = json.loads(only(tmp_path / "logs", "metrics_summary_mfcc_*.json").read_text(encoding="utf-8"))
    assert summary["data"]["negatives"] == told
    assert f"fitted on {outcome.data.parts['validation']} validation clips" in outcome.log_file.read_text(
        encoding="utf-8"
    )


def test_trained_without_them_a_model_says_so(finished: tuple[Path, RunOutcome]) -> None:
    folder, outcome = finished
    assert outcome.data.negatives == ""
    assert "without a digit: none; hash" in outcome.log_file.read_text(encoding="utf-8")
    assert load_classifier(folder / "models", "mfcc").metadata["negatives"] == ""


def test_the_model_names_each_source_of_its_recordings(tiny: ModuleType, tmp_path: Path) -> None:
    corpus = replace(small_corpus(tiny), sources=("one", "two"))
    run(settings(tmp_path, epochs=1), corpus=corpus, pipelines=[tiny.TINY])
    assert load_classifier(tmp_path / "models", "mfcc").metadata["recordings_hash"] == "one two"


def test_background_noise_is_read_before_anything_is_trained(tiny: ModuleType, tmp_path: Path) -> None:
    missing = settings(tmp_path, augmentation={"noise_dir": str(tmp_path / "none")})
    with pytest.raises(DataError, match=r"noise_dir .*none is not a folder"):
        run(missing, corpus=small_corpus(tiny), pipelines=[tiny.TINY])
    assert not (tmp_path / "models").exists()
    folder = tmp_path / "noises"
    folder.mkdir()
    soundfile.write(folder / "hiss.wav", np.random.default_rng(0).normal(0, 0.1, 16000), 8000)
    changes = {"augmentation": {"noise_dir": str(folder), "noise_probability": 1.0}}
    outcome = run(settings(tmp_path, **changes), corpus=small_corpus(tiny), pipelines=[tiny.TINY])
    assert not outcome.failures
    assert "background noise: 1 files, 0.0 minutes" in outcome.log_file.read_text(encoding="utf-8")


# --- temperature ---------------------------------------------------------------------------------


def test_the_temperature_is_fitted_on_validation_and_told_everywhere(
    tiny: ModuleType, finished: tuple[Path, RunOutcome]
) -> None:
    folder, outcome = finished
    (result,) = outcome.results
    weights = load_checkpoint(folder / "models" / "mfcc_classifier" / "best_model.pt")["weights"]
    model = tiny.TinyModel()
    model.load_state_dict({**weights, "temperature": torch.ones(())})
    corpus = small_corpus(tiny)
    split = split_corpus(corpus, result.config)
    scores = predict(model, torch.from_numpy(corpus.waveforms[split.validation])).scores
    expected = temperature_for_other_voices(scores.numpy(), corpus.labels[split.validation], power=0.7)
    assert result.temperature == pytest.approx(expected, rel=1e-6)
    assert abs(expected - 1) > 0.02, "a temperature of 1 would show nothing"
    assert float(weights["temperature"]) == result.temperature
    metadata = load_classifier(folder / "models", "mfcc").metadata
    assert metadata["temperature"] == f"{expected:.6g}"
    assert metadata["seed"] == "0"
    summaries = (folder / "logs").glob("metrics_summary_mfcc_*.json")  # other tests go on with this run
    assert {json.loads(path.read_text(encoding="utf-8"))["temperature"] for path in summaries} == {result.temperature}


def test_the_exported_scores_are_divided_by_the_temperature(
    tiny: ModuleType, finished: tuple[Path, RunOutcome]
) -> None:
    folder, outcome = finished
    weights = load_checkpoint(folder / "models" / "mfcc_classifier" / "best_model.pt")["weights"]
    model = tiny.TinyModel()
    model.load_state_dict({**weights, "temperature": torch.ones(())})
    clips = small_corpus(tiny).waveforms[:30]
    undivided = predict(model, torch.from_numpy(clips)).scores
    heard = load_classifier(folder / "models", "mfcc").probabilities(clips)
    expected = (undivided / outcome.results[0].temperature).softmax(dim=1).numpy()
    assert heard == pytest.approx(expected, abs=1e-4)
    assert abs(undivided.softmax(dim=1).numpy() - heard).max() > 0.01


def test_resuming_a_finished_run_gives_the_same_bits(tiny: ModuleType, tmp_path: Path) -> None:
    corpus = small_corpus(tiny)
    path = tmp_path / "models" / "mfcc_classifier" / "best_model.pt"
    run(settings(tmp_path), corpus=corpus, pipelines=[tiny.TINY])
    before = load_checkpoint(path)
    run(settings(tmp_path, resume="latest"), corpus=corpus, pipelines=[tiny.TINY])
    after = load_checkpoint(path)
    assert after["epoch"] == before["epoch"]
    assert after["validation"] == before["validation"]
    assert after["weights"].keys() == before["weights"].keys()
    assert all(torch.equal(after["weights"][name], before["weights"][name]) for name in before["weights"])
