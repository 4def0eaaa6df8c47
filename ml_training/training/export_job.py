"""Checkpoints to ONNX, int8 and ExecuTorch files, each compared with its network before it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digit_detector import versions
from digit_detector.classifier import softmax
from digit_detector.errors import CheckpointError, ConfigError, DataError, DigitError
from digit_detector.files import check_not_shipped, unwritable, write_atomically
from digit_detector.labels import FILE_PRECISIONS, FP32, INT8, model_folder
from digit_detector.model_file import onnx_name
from ml_training import __version__
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.deploy import version_store
from ml_training.deploy.executorch import export_executorch
from ml_training.deploy.export import convert_network, export_onnx, run_model, serialize
from ml_training.deploy.quantise import HoldoutSet, quantize
from ml_training.pipelines.base import Pipeline
from ml_training.registry import get_pipeline, pipeline_spec
from ml_training.results import Evaluation, Floats
from ml_training.training.checkpoint import BEST, Checkpoint, load_checkpoint, load_weights
from ml_training.training.classification import predict, predict_probabilities
from ml_training.training.training_data import PARITY_CLIPS, TrainingData, fit_temperature, load_training_data
from ml_training.utils.temporary import clear_half_written, temporary_folder

CALIBRATION_CLIPS = 300
EXECUTORCH = "executorch"  # a kind of file beside FILE_PRECISIONS, computed in fp32
WHERE = ("dataset", "data_dir", "data_url", "extra_digits_dir", "non_digit_dir")  # settings that locate the recordings
DATA = (  # settings that decide what a training learns from
    *WHERE, "split", "held_out_speaker", "validation_ratio", "seed", "synthetic_ratio", "synthetic_voices",
    "negative_ratio",
)  # fmt: skip

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """Which checkpoints to export, in which precisions, and where to."""

    checkpoints: tuple[str, ...]
    precisions: tuple[str, ...] = FILE_PRECISIONS
    output: str | None = None  # folder of models to write into; None: beside each checkpoint
    executorch: bool = False  # write a program for ExecuTorch too
    where: Mapping[str, str] = field(default_factory=dict)  # of WHERE, instead of what the checkpoint says


@dataclass(frozen=True)
class Exported:
    """One exported file."""

    checkpoint: str
    pipeline: str
    precision: str  # of FILE_PRECISIONS, or EXECUTORCH
    file: Path
    size: int  # bytes
    errors: int  # in the clips of the test part
    clips: int
    compared: str  # with the trained network


@dataclass(frozen=True)
class ExportOutcome:
    """The files of an export and what failed."""

    files: tuple[Exported, ...]
    failures: Mapping[str, str]  # checkpoint and precision -> why there is no file

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def export(
    request: ExportRequest, report: Report = lambda line: None, *, corpus: Corpus | None = None,
    pipelines: Mapping[str, Pipeline] | None = None,
) -> ExportOutcome:  # fmt: skip
    """Write each checkpoint in each precision. A file that fails is named in the outcome; the others go on.

    `corpus` replaces the recordings of the trainings. Raises CheckpointError for a checkpoint that is missing, damaged
    or foreign, and ConfigError if two would become one file.
    """
    if request.output is not None:
        check_not_shipped(request.output, "output")
    checkpoints = {name: load_checkpoint(Path(name)) for name in request.checkpoints}
    paths = [_path(name, checkpoint, request.output, FP32) for name, checkpoint in checkpoints.items()]
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    faults = [f"output: several checkpoints would become {path}" for path in twice]
    if faults := faults or [fault for path in paths for fault in unwritable({"output": path})]:
        raise ConfigError(faults)
    files: list[Exported] = []
    failures: dict[str, str] = {}
    loaded: dict[tuple[Any, ...], TrainingData] = {}
    for name, checkpoint in checkpoints.items():
        try:
            config = config_of(name, checkpoint, request.where)
            key = tuple(getattr(config, setting) for setting in DATA)
            if key not in loaded:
                loaded = {key: load_training_data(config, corpus, report, report)}  # one at a time: memory
            trained = TrainedCheckpoint(name, checkpoint, loaded[key], pipelines)
        except DigitError as error:
            failures[name] = str(error)
            continue
        for precision in (*request.precisions, *([EXECUTORCH] if request.executorch else [])):
            try:
                files.append(_export_file(trained, precision, request.output, report))
            except DigitError as error:
                failures[f"{name} as {precision}"] = str(error)
    return ExportOutcome(tuple(files), failures)


def config_of(name: str, checkpoint: Checkpoint, where: Mapping[str, str]) -> TrainConfig:
    """The settings of a checkpoint's training, with other locations of the recordings.

    Raises CheckpointError if this version does not accept them.
    """
    settings = {**checkpoint["config"], "teacher_dir": None, "resume": None}
    if checkpoint["synthetic"]:
        settings["dataset"] = "synthetic"  # also if it was a fallback
    try:
        return TrainConfig(**{**settings, **where})
    except (TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{name} was written by version {checkpoint['package_version']}, whose settings version {__version__} does "
            f"not accept ({error}): export it with that version, or retrain"
        ) from error


def _path(name: str, checkpoint: Checkpoint, output: str | None, precision: str) -> Path:
    """Where a file goes: that of a best model is named model, others like their checkpoint; see load_classifier."""
    path = Path(name)
    stem = path.stem if output is None and checkpoint["kind"] != "best" else "model"
    folder = path.parent if output is None else model_folder(output, checkpoint["pipeline"])
    return folder / (f"{stem}.pte" if precision == EXECUTORCH else onnx_name(stem, precision))


def _version_of(name: str, output: str | None) -> tuple[Path, int] | None:
    """The pipeline's folder and version that files written beside a checkpoint belong to."""
    path = Path(name).absolute()
    if output is not None or path.name != BEST:
        return None
    if path.parents[1].name == versions.VERSIONS and path.parent.name.isdigit():
        return path.parents[2], int(path.parent.name)
    same = versions.find_versions(path.parent, BEST, hashlib.sha256(path.read_bytes()).hexdigest())
    return (path.parent, same[-1]) if same else None


def _export_file(trained: TrainedCheckpoint, precision: str, output: str | None, report: Report) -> Exported:
    """Write a file, into the version of its checkpoint if it has one."""
    path = _path(trained.name, trained.checkpoint, output, precision)
    clear_half_written(path.parent)
    if (version := _version_of(trained.name, output)) is None:
        return trained.export(precision, path)
    folder, number = version
    with temporary_folder() as work:
        exported = trained.export(precision, work / path.name)
        if not version_store.add_file(folder, number, path.name, exported.file.read_bytes(), report):
            report(f"version {number} keeps the {path.name} that it has; --output writes another one")
    return replace(exported, file=path, size=path.stat().st_size)


class TrainedCheckpoint:
    """The network of a checkpoint and the recordings it was trained on.

    Raises DataError for other recordings, CheckpointError for weights of another network.
    """

    def __init__(
        self, name: str, checkpoint: Checkpoint, data: TrainingData,
        pipelines: Mapping[str, Pipeline] | None = None,
    ) -> None:  # fmt: skip
        if data.corpus.data_hash != checkpoint["data_hash"]:
            raise DataError(
                f"{name} was trained on recordings of hash {checkpoint['data_hash'][:12]}, but {data.corpus.name} has "
                f"hash {data.corpus.data_hash[:12]}: name the folders of its training with "
                "--data_dir, --extra_digits_dir and --non_digit_dir"
            )
        try:
            spec = pipeline_spec(checkpoint)
            self.pipeline = get_pipeline(spec) if pipelines is None else pipelines[checkpoint["pipeline"]]
        except (ConfigError, KeyError) as error:
            expected = error if pipelines is None else f"expected one of {', '.join(pipelines) or 'none'}"
            raise CheckpointError(f"{name} is of pipeline {checkpoint['pipeline']!r}: {expected}") from error
        self.name, self.checkpoint, self.data = name, checkpoint, data
        self.model = self.pipeline.model(checkpoint["config"].get("width", 1.0))
        weights = checkpoint["weights"] if checkpoint["kind"] == "best" else checkpoint["state"]["averaged"]
        load_weights(self.model, weights, name)
        self.model.eval()
        if float(self.model.temperature) == 1.0:  # it is fitted only at the end of training
            self.model.temperature.fill_(fit_temperature(self.model, self.pipeline, data)[0])

    def export(self, precision: str, path: Path) -> Exported:
        """Write a file, compared with the network. Raises ExportError if their outputs differ."""
        data, model = self.data, self.model
        if precision != INT8:
            write = export_onnx if precision == FP32 else export_executorch
            test = data.evaluate(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
            difference = write(model, path, self._metadata(test), data.real_clips(PARITY_CLIPS))
            compared = f"largest difference {difference:.1e}"
        else:
            int8 = quantize(convert_network(model), self.calibration(), self.holdout())
            content = int8.proto.SerializeToString()
            test = data.evaluate(lambda waveforms: softmax(run_model(content, waveforms)[0]))
            compared = str(int8.report)
            layers = f"{int8.layers} layer{'s' * (int8.layers > 1)}"
            calibration = f"{layers}, {int8.method} of {CALIBRATION_CLIPS} training clips; {compared}"
            write_atomically(path, serialize(int8.proto, self._metadata(test, precision=INT8, calibration=calibration)))
        size = path.stat().st_size
        return Exported(self.name, self.pipeline.name, precision, path, size, test.errors, test.clips, compared)

    def _metadata(self, test: Evaluation, **more: str) -> dict[str, str]:
        checkpoint = self.checkpoint
        return self.data.metadata(
            self.pipeline.name, test, float(self.model.temperature), epoch=checkpoint["epoch"],
            version=checkpoint["package_version"], commit=checkpoint.get("git_commit", "unknown"), **more,
        )  # fmt: skip

    def calibration(self) -> Floats:
        """Clips of the training part, with and without a digit, each once."""
        train = np.unique(self.data.split.train)
        chosen = np.random.default_rng(self.data.config.seed).permutation(train)[:CALIBRATION_CLIPS]
        waveforms: Floats = self.data.corpus.waveforms[chosen]
        return waveforms

    def holdout(self) -> HoldoutSet:
        """The hold-out set of quantization: the validation part, filled up with digits of the training part."""
        split, data = self.data.split, self.data
        missing = max(0, PARITY_CLIPS - len(data.digits(split.validation)))
        part = data.part(np.concatenate([split.validation, data.digits(split.train)[:missing]]))
        outputs = predict(self.model, part.waveforms)
        probabilities, presence = outputs.digit_logits.softmax(1).numpy(), outputs.presence_logit.sigmoid().numpy()
        return HoldoutSet(part.waveforms[:].numpy(), part.labels.numpy(), probabilities, presence)
