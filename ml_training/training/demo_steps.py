"""What demo.py shows: the real parts of this package on few clips and few epochs, one step after the other."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
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
from ml_training.results import Floats
from ml_training.training.checkpoint import BEST, INTERRUPTED, load_checkpoint
from ml_training.training.experiment import RunOutcome, run

EPOCHS = 6
LIGHTLY = {"speed": (0.9, 1.1), "noise_probability": 0.2}  # so few epochs cannot learn what varies much
CLIPS_OF_A_DIGIT = 48
MAX_SPEAKERS = 16
CHANCE = 1 / len(LABELS)


class _Failed(Exception):  # noqa: N818 (it is a finding)
    """A step that did not come out as it must."""


@dataclasses.dataclass
class _Row:
    step: str
    passed: bool
    found: str
    seconds: float


def demonstrate(output: str | Path, synthetic: bool) -> int:
    """Run every step, print what each does and finds, then the table; 0 when all passed."""
    show = _Demonstration(Path(output), synthetic)
    steps: list[tuple[str, str, Callable[[], str]]] = [
        ("recordings", show.why_recordings, show.recordings),
        ("training", "Each pipeline learns for a few epochs, is tested and becomes a model.onnx.", show.training),
        ("checkpoints", "Every epoch left one behind, and the best is kept apart.", show.checkpoints),
        ("interruption", "Ctrl-C in mid-epoch, then --resume, must lead to the very same weights.", show.resume),
        ("plots and report", "Curves, confusion matrices, a comparison and a report for people.", show.plots),
        ("answers", "Each model hears test clips, alone and in a batch with a broken file in it.", show.answers),
        ("the program", "inference.py, as you would call it, on one recording.", show.program),
    ]
    rows: list[_Row] = []
    for number, (name, why, step) in enumerate(steps, 1):
        print(f"\n[{number}/{len(steps)}] {name}: {why}", flush=True)
        started = time.perf_counter()
        try:
            passed, found = True, step()
        except (_Failed, DigitError) as error:
            passed, found = False, str(error)
        except Exception as error:  # a bug in one step must not hide what the others find
            passed, found = False, f"{type(error).__name__}: {error}".splitlines()[0]
        rows.append(_Row(name, passed, found, time.perf_counter() - started))
        print(f"      {'passed' if passed else 'FAILED'}: {found}", flush=True)
    print(_table(rows, show.output))
    return 0 if all(row.passed for row in rows) else 1


def _table(rows: list[_Row], output: Path) -> str:
    width = max(len(row.step) for row in rows)
    lines = [f"{'passed' if r.passed else 'FAILED'}  {r.step:<{width}}  {r.seconds:5.1f} s  {r.found}" for r in rows]
    passed, seconds = sum(row.passed for row in rows), sum(row.seconds for row in rows)
    return "\n".join(["", *lines, "", f"{passed} of {len(rows)} passed in {seconds:.0f} s; everything is in {output}"])


class _Demonstration:
    """The steps, each of which returns what it found; later ones use what earlier ones left."""

    def __init__(self, output: Path, synthetic: bool) -> None:
        self.output, self.synthetic = output, synthetic
        self.models, self.logs = output / "models", output / "train_logs"
        self._corpus: Corpus | None = None
        self._outcome: RunOutcome | None = None
        self.why_recordings = (
            "Speech synthesis says the ten digits in a few voices."
            if synthetic
            else "Real people saying digits: your folder, the cache or a download; synthetic speech without them."
        )

    # --- steps ---

    def recordings(self) -> str:
        if self.synthetic:
            corpus = synthesize_digits(voices=MAX_SPEAKERS, takes=CLIPS_OF_A_DIGIT // MAX_SPEAKERS)
        else:
            corpus = _part_of(load_corpus(TrainConfig(), report=lambda line: print(f"      {line}", flush=True)))
        self._corpus = corpus
        _demand(len(corpus) >= 100, f"only {len(corpus)} clips")
        _demand(set(corpus.labels) == set(range(10)), "not every digit occurs")
        _demand(bool(np.isfinite(corpus.waveforms).all()), "samples that are no numbers")
        kind = "" if corpus.synthetic else "real recordings, "
        return f"{kind}{corpus.name}: {len(corpus)} clips of {len(set(corpus.speakers))} speakers"

    def training(self) -> str:
        config = self._config(self.models, self.logs, pipeline="all")
        outcome = self._outcome = run(config, corpus=self.corpus, resume_command="demo.py anew")
        _demand(not outcome.failures, "; ".join(f"{name}: {why}" for name, why in outcome.failures.items()))
        for result in outcome.results:
            _demand(len(result.history) == EPOCHS, f"{result.pipeline} trained {len(result.history)} epochs")
            _demand(result.test.interval[0] > CHANCE, f"{result.pipeline} is no better than guessing")
        accuracies = ", ".join(f"{r.pipeline} {100 * r.test.accuracy:.0f} %" for r in outcome.results)
        return f"right after {EPOCHS} epochs: {accuracies}; guessing: {100 * CHANCE:.0f} %"

    def checkpoints(self) -> str:
        for pipeline in PIPELINES:
            folder = model_folder(self.models, pipeline)
            found = sorted(folder.glob("checkpoint_epoch_*.pt"))
            _demand(len(found) == EPOCHS, f"{len(found)} checkpoints in {folder}, expected {EPOCHS}")
            for path in (*found, folder / BEST):
                load_checkpoint(path)
        _demand((model_folder(self.models, MFCC) / "scaler.pkl").is_file(), "scaler.pkl is missing")
        return f"{EPOCHS} epochs and the best of each pipeline read back"

    def resume(self) -> str:
        models, logs = self.output / "interrupted" / "models", self.output / "interrupted" / "train_logs"
        folder = model_folder(models, MFCC)
        config = self._config(models, logs, pipeline=MFCC)
        interrupted = _with_ctrl_c(get_pipeline(MFCC), clips=len(self.corpus))  # more than an epoch, less than two
        try:
            run(config, corpus=self.corpus, pipelines=[interrupted], resume_command="the demo does it now")
        except Interrupted:
            stopped = load_checkpoint(folder / INTERRUPTED)
        else:
            raise _Failed("training was not interrupted")
        run(dataclasses.replace(config, resume="latest"), corpus=self.corpus)
        resumed = load_checkpoint(folder / BEST)["weights"]
        straight = load_checkpoint(model_folder(self.models, MFCC) / BEST)["weights"]
        _demand(resumed.keys() == straight.keys(), "the resumed run has other weights by name")
        differing = [name for name, value in straight.items() if not torch.equal(value, resumed[name])]
        _demand(not differing, f"{len(differing)} of {len(straight)} weights differ, first {differing[:1]}")
        where = f"epoch {stopped['epoch'] + 1}, step {stopped['step']}"
        return f"stopped after {where}, went on, and ended with the same weights bit for bit"

    def plots(self) -> str:
        plots = self.logs / "plots"
        names = [f"{kind}_{p}.png" for kind in ("training_history", "confusion_matrix") for p in PIPELINES]
        for name in (*names, "model_comparison.png", "training_report.html"):
            _demand((plots / name).is_file() and (plots / name).stat().st_size > 1000, f"{plots / name} is missing")
        for pattern in ("experiment_*.log", "experiment_*.jsonl", "metrics_summary_*.json", "config_*.json"):
            _demand(any(self.logs.glob(pattern)), f"no {pattern} in {self.logs}")
        return f"open {plots / 'training_report.html'} in a browser"

    def answers(self) -> str:
        waveforms, labels = self._test_clips()
        lines = []
        for pipeline in PIPELINES:
            classifier = load_classifier(self.models, pipeline)
            entries = classifier.batch_predict([b"no sound at all", *waveforms], batch_size=16)
            _demand("error" in entries[0], "a broken file was taken for speech")
            heard = [entry["predicted_digit"] for entry in entries if "error" not in entry]
            _demand(len(heard) == len(labels), "an answer is missing from the batch")
            alone = classifier.predict(waveforms[0])
            _demand(alone["predicted_digit"] == heard[0], "alone and in a batch the same clip gets two answers")
            _demand(math.isclose(sum(alone["probabilities"]), 1, abs_tol=1e-4), "probabilities do not sum to 1")
            speed = classifier.benchmark_speed(num_samples=100)
            print(
                f"      {PIPELINE_TITLES[pipeline]:<24} heard {labels[0]} as {heard[0]}; "
                f"{np.mean(np.array(heard) == labels):4.0%} of {len(labels)}, {speed['p50_ms']:.2f} ms a clip"
            )
            lines.append(f"{pipeline} {speed['p50_ms']:.1f} ms")
        return ", ".join(lines) + " a clip"

    def program(self) -> str:
        (samples, *_), (digit, *_) = self._test_clips()
        with tempfile.TemporaryDirectory() as folder:
            audio = str(Path(folder) / f"{digit}.wav")
            soundfile.write(audio, samples, SAMPLE_RATE)
            script = Path(ml_training.__file__).with_name("inference.py")
            command = [
                sys.executable,
                str(script),
                "--model_dir",
                str(self.models),
                "--pipeline",
                MFCC,
                "--audio",
                audio,
            ]
            done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60)
        _demand(done.returncode == 0, f"it left with {done.returncode}: {done.stderr.strip()}")
        answer = json.loads(done.stdout)
        expected = load_classifier(self.models, MFCC).predict(samples)["predicted_digit"]
        _demand(answer["predicted_digit"] == expected, "the program answers otherwise than the library")
        return f"said {digit}, heard {expected}, {100 * answer['confidence']:.0f} % sure"

    # --- what they share ---

    @property
    def corpus(self) -> Corpus:
        if self._corpus is None:
            raise _Failed("there are no recordings to do it with")
        return self._corpus

    def _config(self, models: Path, logs: Path, pipeline: str) -> TrainConfig:
        return TrainConfig(
            pipeline=pipeline, dataset="synthetic" if self.synthetic else "auto", models_dir=str(models),
            log_dir=str(logs), epochs=EPOCHS, batch_size=32, keep_checkpoints="all",
            augmentation=LIGHTLY,
            threads=1,  # batches this small gain little from a second one, and lose much on a busy machine
        )  # fmt: skip

    def _test_clips(self) -> tuple[Floats, list[int]]:
        """Up to 40 clips of the test part."""
        if self._outcome is None or not self._outcome.results:
            raise _Failed("no model was trained")
        place = {file: position for position, file in enumerate(self.corpus.files)}
        files = self._outcome.results[0].test.files
        chosen = [place[file] for file in files[:: max(1, len(files) // 40)]][:40]
        return self.corpus.waveforms[chosen], self.corpus.labels[chosen].tolist()


def _demand(holds: bool, otherwise: str) -> None:
    if not holds:
        raise _Failed(otherwise)


def _part_of(corpus: Corpus) -> Corpus:
    """A few takes of each digit by a few speakers; of FSDD, a quarter of them from its test part."""
    speakers = sorted(set(corpus.speakers))[:MAX_SPEAKERS]
    takes = CLIPS_OF_A_DIGIT // len(speakers)
    limits = {True: max(1, takes // 4), False: takes - max(1, takes // 4) if corpus.official_split else takes}
    taken: Counter[tuple[str, int, bool]] = Counter()
    chosen = []
    for position in np.argsort(corpus.indices, kind="stable"):
        speaker, digit = corpus.speakers[position], int(corpus.labels[position])
        test = corpus.official_split and bool(corpus.official_test[position])
        if speaker in speakers and taken[speaker, digit, test] < limits[test]:
            taken[speaker, digit, test] += 1
            chosen.append(int(position))
    chosen.sort()
    waveforms = corpus.waveforms[chosen]
    return dataclasses.replace(
        corpus, name=f"part of {corpus.name}", waveforms=waveforms, lengths=corpus.lengths[chosen],
        labels=corpus.labels[chosen], speakers=tuple(corpus.speakers[i] for i in chosen),
        indices=corpus.indices[chosen], files=tuple(corpus.files[i] for i in chosen),
        data_hash=hashlib.sha256(waveforms.tobytes()).hexdigest(),
        parts=tuple(corpus.parts[i] for i in chosen) if corpus.parts else (),
    )  # fmt: skip


def _with_ctrl_c(pipeline: Pipeline, clips: int) -> Pipeline:
    """The same pipeline, but once its model has heard so many training clips, this process gets a Ctrl-C."""

    def build(*width: float) -> DigitModel:
        model = pipeline.build(*width)
        heard = 0

        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            nonlocal heard
            before, heard = heard, heard + len(inputs[0]) * module.training
            if before < clips <= heard:
                signal.raise_signal(signal.SIGINT)

        model.register_forward_pre_hook(count)
        return model

    return dataclasses.replace(pipeline, build=build)
