"""The steps of demo.py: the real parts of this package on few clips for few epochs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile
from torch import Tensor, nn

import ml_training
from digit_detector.audio import SAMPLE_RATE
from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError, Interrupted
from digit_detector.labels import LABELS, MFCC, PIPELINE_TITLES, PIPELINES, model_folder
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.tts import synthesize_digits
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.training.checkpoint import BEST, INTERRUPTED, load_checkpoint, weights_hash
from ml_training.training.experiment import RunOutcome, run

EPOCHS = 6
AUGMENTATION = {"speed": (0.9, 1.1), "noise_probability": 0.2}  # so few epochs cannot learn much variation
CLIPS = 480
VOICES = 16
CHANCE = 1 / len(LABELS)


def run_demo(output: str | Path, synthetic: bool) -> int:
    """Run every step, print its outcome, then a table; 0 when all passed."""
    demo = _Demo(Path(output), synthetic)
    names = ("recordings", "training", "checkpoints", "interruption", "plots", "answers", "program")
    lines, started, passed = [], time.perf_counter(), 0
    for number, name in enumerate(names, 1):
        step, began = getattr(demo, name), time.perf_counter()
        print(f"\n[{number}/{len(names)}] {name}: {step.__doc__}", flush=True)
        try:
            verdict, result = "passed", step()
            passed += 1
        except (AssertionError, DigitError) as error:
            verdict, result = "FAILED", str(error)
        except Exception as error:  # a bug in one step must not hide the results of the others
            verdict, result = "FAILED", f"{type(error).__name__}: {error}".splitlines()[0]
        print(f"      {verdict}: {result}", flush=True)
        lines.append(f"{verdict}  {name:<12}  {time.perf_counter() - began:5.1f} s  {result}")
    seconds = time.perf_counter() - started
    end = f"{passed} of {len(names)} passed in {seconds:.0f} s; everything is in {demo.output}"
    print("\n".join(["", *lines, "", end]))
    return int(passed < len(names))


class _Demo:
    """Each step returns its result or raises; later steps use what earlier ones left."""

    def __init__(self, output: Path, synthetic: bool) -> None:
        self.output, self.synthetic = output, synthetic
        self.models, self.logs = output / "models", output / "train_logs"
        self._corpus: Corpus | None = None
        self._outcome: RunOutcome | None = None

    def recordings(self) -> str:
        """Your folder, the cache or a download of people saying digits; synthesised speech without them."""
        if self.synthetic:
            corpus = synthesize_digits(voices=VOICES, takes=CLIPS // len(LABELS) // VOICES)
        else:
            corpus = reduce_corpus(load_corpus(TrainConfig(), report=lambda line: print(f"      {line}", flush=True)))
        self._corpus = corpus
        _check(len(corpus) >= 100, f"only {len(corpus)} clips")
        _check(set(corpus.labels) == set(range(len(LABELS))), "not every digit occurs")
        _check(bool(np.isfinite(corpus.waveforms).all()), "samples that are not finite")
        kind = "" if corpus.synthetic else "real recordings, "
        return f"{kind}{corpus.name}: {len(corpus)} clips of {len(set(corpus.speakers))} speakers"

    def training(self) -> str:
        """Each pipeline learns for a few epochs, is tested and becomes a model.onnx."""
        config = self._config(self.models, self.logs, pipeline="all")
        outcome = self._outcome = run(config, corpus=self.corpus, resume_command="demo.py again")
        _check(not outcome.failures, "; ".join(f"{name}: {why}" for name, why in outcome.failures.items()))
        for result in outcome.results:
            _check(len(result.history) == EPOCHS, f"{result.pipeline} trained {len(result.history)} epochs")
            _check(result.test.interval[0] > CHANCE, f"{result.pipeline} is no better than guessing")
        accuracies = ", ".join(f"{r.pipeline} {100 * r.test.accuracy:.0f} %" for r in outcome.results)
        return f"accuracy after {EPOCHS} epochs: {accuracies}; guessing: {100 * CHANCE:.0f} %"

    def checkpoints(self) -> str:
        """Every epoch left one, and the best is kept apart."""
        for pipeline in PIPELINES:
            folder = model_folder(self.models, pipeline)
            paths = sorted(folder.glob("checkpoint_epoch_*.pt"))
            _check(len(paths) == EPOCHS, f"{len(paths)} checkpoints in {folder}, expected {EPOCHS}")
            for path in (*paths, folder / BEST):
                load_checkpoint(path)
        _check((model_folder(self.models, MFCC) / "scaler.pkl").is_file(), "scaler.pkl is missing")
        return f"{EPOCHS} epochs and the best of each pipeline read back"

    def interruption(self) -> str:
        """Ctrl-C in mid-epoch, then --resume, must lead to the same weights."""
        models, logs = self.output / "interrupted" / "models", self.output / "interrupted" / "train_logs"
        folder, config = model_folder(models, MFCC), self._config(models, logs, pipeline=MFCC)
        interrupted = interrupt_training(get_pipeline(MFCC), clips=len(self.corpus))  # between one and two epochs
        try:
            run(config, corpus=self.corpus, pipelines=[interrupted], resume_command="the demo does it now")
            _check(False, "training was not interrupted")
        except Interrupted:
            stopped = load_checkpoint(folder / INTERRUPTED)
        run(dataclasses.replace(config, resume="latest"), corpus=self.corpus)
        files = (folder / BEST, model_folder(self.models, MFCC) / BEST)
        resumed, straight = (weights_hash(load_checkpoint(path)["weights"]) for path in files)
        _check(resumed == straight, "the weights differ")
        return f"stopped after epoch {stopped['epoch'] + 1}, step {stopped['step']}; resumed to the same weights"

    def plots(self) -> str:
        """Curves, confusion matrices, a comparison, logs and a report."""
        plots = self.logs / "plots"
        names = [f"{kind}_{p}.png" for kind in ("training_history", "confusion_matrix") for p in PIPELINES]
        for name in (*names, "model_comparison.png", "training_report.html"):
            _check((plots / name).is_file() and (plots / name).stat().st_size > 1000, f"{plots / name} is missing")
        for pattern in ("experiment_*.log", "experiment_*.jsonl", "metrics_summary_*.json", "config_*.json"):
            _check(any(self.logs.glob(pattern)), f"no {pattern} in {self.logs}")
        return f"open {plots / 'training_report.html'} in a browser"

    def answers(self) -> str:
        """Each model answers test clips, alone and in a batch with a broken file in it."""
        (waveforms, labels), speeds = self._test_clips(), []
        for pipeline in PIPELINES:
            classifier = load_classifier(self.models, pipeline)
            broken, *entries = classifier.batch_predict([b"no sound at all", *waveforms], batch_size=16)
            _check("error" in broken, "a broken file was accepted")
            digits = [entry.get("predicted_digit") for entry in entries]
            alone = classifier.predict(waveforms[0])
            _check(alone["predicted_digit"] == digits[0], "a clip gets another answer in a batch")
            _check(math.isclose(sum(alone["probabilities"]), 1, abs_tol=1e-4), "probabilities do not sum to 1")
            speed, accuracy = classifier.benchmark_speed(num_samples=100)["p50_ms"], np.mean(np.array(digits) == labels)
            title = PIPELINE_TITLES[pipeline]
            print(f"      {title:<24} accuracy {accuracy:4.0%} of {len(labels)} clips, {speed:.2f} ms a clip")
            speeds.append(f"{pipeline} {speed:.1f} ms")
        return ", ".join(speeds) + " a clip"

    def program(self) -> str:
        """inference.py, as you would call it, on one recording."""
        (samples, *_), (digit, *_) = self._test_clips()
        audio, script = self.output / f"{digit}.wav", Path(ml_training.__file__).with_name("inference.py")
        soundfile.write(audio, samples, SAMPLE_RATE)
        words = ["--model_dir", str(self.models), "--pipeline", MFCC, "--audio", str(audio), "--json"]
        done = subprocess.run([sys.executable, str(script), *words], capture_output=True, text=True, timeout=60)
        _check(done.returncode == 0, f"it exited with {done.returncode}: {done.stderr.strip()}")
        answer = json.loads(done.stdout)
        expected = load_classifier(self.models, MFCC).predict(samples)["predicted_digit"]
        _check(answer["predicted_digit"] == expected, "the program answers differently from the library")
        return f"digit {digit}, predicted {expected}, confidence {100 * answer['confidence']:.0f} %"

    @property
    def corpus(self) -> Corpus:
        assert self._corpus is not None, "there are no recordings"
        return self._corpus

    def _config(self, models: Path, logs: Path, pipeline: str) -> TrainConfig:
        return TrainConfig(
            pipeline=pipeline, dataset="synthetic" if self.synthetic else "auto", models_dir=str(models),
            log_dir=str(logs), epochs=EPOCHS, batch_size=32, keep_checkpoints="all", augmentation=AUGMENTATION,
            threads=1,  # small batches gain little from a second one
        )  # fmt: skip

    def _test_clips(self) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], list[int]]:
        """Up to 40 clips of the test part, and their digits."""
        assert self._outcome is not None, "no model was trained"
        assert self._outcome.results, "no model was trained"
        positions = {file: position for position, file in enumerate(self.corpus.files)}
        files = self._outcome.results[0].test.files
        chosen = [positions[file] for file in files[:: max(1, len(files) // 40)]][:40]
        return self.corpus.waveforms[chosen], self.corpus.labels[chosen].tolist()


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def reduce_corpus(corpus: Corpus) -> Corpus:
    """CLIPS of the clips, chosen at random with a fixed seed."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(corpus))[:CLIPS])
    waveforms = corpus.waveforms[chosen]
    columns = {name: getattr(corpus, name)[chosen] for name in ("lengths", "labels", "indices")}
    names = ("speakers", "files", *(("parts",) if corpus.parts else ()))
    columns |= {name: tuple(getattr(corpus, name)[i] for i in chosen) for name in names}
    data_hash = hashlib.sha256(waveforms.tobytes()).hexdigest()
    return dataclasses.replace(
        corpus, name=f"part of {corpus.name}", waveforms=waveforms, data_hash=data_hash, **columns
    )


def interrupt_training(pipeline: Pipeline, clips: int) -> Pipeline:
    """The pipeline with a model that sends this process Ctrl-C once it was trained on `clips` clips."""

    def build(*width: float) -> DigitModel:
        model, seen = pipeline.build(*width), 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal seen
            before, seen = seen, seen + len(inputs[0]) * module.training
            if before < clips <= seen:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(count)
        return model

    return dataclasses.replace(pipeline, build=build)
