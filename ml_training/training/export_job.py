"""From a checkpoint to files that answer: what the export door asks for, from request to what was written."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from digit_detector import versions
from digit_detector.errors import CheckpointError, ConfigError, DataError, DigitError
from digit_detector.files import check_not_shipped, unwritable, write_atomically
from digit_detector.labels import FILE_PRECISIONS, FP32, INT8, model_folder
from digit_detector.model_file import onnx_name
from ml_training import __version__
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.deploy import version_store
from ml_training.deploy.executorch import export_executorch
from ml_training.deploy.export import answers, export_onnx, network_of, sealed
from ml_training.deploy.quantise import Judges, quantised, softmax
from ml_training.pipelines import PIPELINE_REGISTRY
from ml_training.pipelines.base import Pipeline
from ml_training.results import Evaluation, Floats
from ml_training.training.checkpoint import BEST, Checkpoint, load_checkpoint, load_weights
from ml_training.training.classification import predict, predict_probabilities
from ml_training.training.training_data import PARITY_CLIPS, TrainingData, fitted_temperature, load_training_data
from ml_training.utils.temporary import clear_half_written, temporary_folder

CALIBRATION_CLIPS = 300
EXECUTORCH = "executorch"  # a kind of file beside FILE_PRECISIONS, computed in fp32
WHERE = ("dataset", "data_dir", "data_url", "extra_dir", "words_dir")  # settings that say where recordings lie
DATA = (  # settings that decide what a training learns from
    *WHERE, "split", "held_out_speaker", "validation_share", "seed", "synthetic_share", "synthetic_voices",
    "negative_share",
)  # fmt: skip

Report = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """Which checkpoints, as what, and where to."""

    checkpoints: tuple[str, ...]
    precisions: tuple[str, ...] = FILE_PRECISIONS
    output: str | None = None  # folder of models to write into; None: beside each checkpoint
    executorch: bool = False  # write a program for ExecuTorch, too
    where: Mapping[str, str] = field(default_factory=dict)  # of WHERE, in the place of what the checkpoint says

    def __post_init__(self) -> None:
        faults = [f"precision: expected some of {', '.join(FILE_PRECISIONS)}, got {p}"
                  for p in self.precisions if p not in FILE_PRECISIONS]  # fmt: skip
        faults += [f"{name}: expected one of {', '.join(WHERE)}" for name in self.where if name not in WHERE]
        if not (self.checkpoints and self.precisions):
            faults.append("expected a checkpoint and a precision at least")
        if faults:
            raise ConfigError(faults)


@dataclass(frozen=True)
class Exported:
    """One file that answers."""

    checkpoint: str
    pipeline: str
    precision: str  # of FILE_PRECISIONS, or EXECUTORCH
    file: Path
    size: int  # bytes
    errors: int  # of the clips of the test part
    clips: int
    compared: str  # with the trained network


@dataclass(frozen=True)
class ExportOutcome:
    """What an export led to."""

    files: tuple[Exported, ...]
    failures: Mapping[str, str]  # checkpoint and precision -> why there is no file

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def export(
    request: ExportRequest,
    report: Report = lambda line: None,
    *,
    corpus: Corpus | None = None,
    pipelines: Mapping[str, Pipeline] | None = None,
) -> ExportOutcome:
    """Write each checkpoint in each precision. A file that cannot be made is named in the outcome; the others go on.

    `corpus` takes the place of the recordings that the checkpoints learnt from, `pipelines` that of the registry.
    Raises CheckpointError for a checkpoint that is missing, damaged or foreign, and ConfigError where two would become
    one file.
    """
    if request.output is not None:
        check_not_shipped(request.output, "output")
    checkpoints = {name: load_checkpoint(Path(name)) for name in request.checkpoints}
    places = [_place(name, found, request.output, FP32) for name, found in checkpoints.items()]
    twice = sorted({str(place) for place in places if places.count(place) > 1})
    if twice:
        raise ConfigError([f"output: several checkpoints would become {place}" for place in twice])
    if faults := [fault for place in places for fault in unwritable({"output": place})]:
        raise ConfigError(faults)
    files: list[Exported] = []
    failures: dict[str, str] = {}
    known: dict[tuple[Any, ...], TrainingData] = {}
    for name, checkpoint in checkpoints.items():
        try:
            config = config_of(name, checkpoint, request.where)
            asked = tuple(getattr(config, setting) for setting in DATA)
            if asked not in known:
                known = {asked: load_training_data(config, corpus, report, report)}  # those before need no more room
            trained = Trained(name, checkpoint, known[asked], pipelines)
        except DigitError as error:
            failures[name] = str(error)
            continue
        for precision in (*request.precisions, *([EXECUTORCH] if request.executorch else [])):
            try:
                place = _place(name, checkpoint, request.output, precision)
                files.append(_put(trained, precision, place, _version_of(name, request.output), report))
            except DigitError as error:
                failures[f"{name} as {precision}"] = str(error)
    return ExportOutcome(tuple(files), failures)


def config_of(name: str, checkpoint: Checkpoint, where: Mapping[str, str]) -> TrainConfig:
    """The settings of the training that left a checkpoint, with the places of the recordings changed.

    Raises CheckpointError where this version does not take them.
    """
    said = {**checkpoint["config"], "teacher_dir": None, "resume": None}
    if checkpoint["synthetic"]:
        said["dataset"] = "synthetic"  # also where it was a makeshift
    try:
        return TrainConfig(**{**said, **where})
    except (TypeError, ConfigError) as error:
        raise CheckpointError(
            f"{name} was written by version {checkpoint['package_version']}, whose settings version {__version__} does "
            f"not take ({error}): export it with that version, or train anew"
        ) from error


def _place(name: str, checkpoint: Checkpoint, output: str | None, precision: str) -> Path:
    """Where a file goes: a best model's under the name that answers, another's under its own; see load_classifier."""
    path = Path(name)
    stem = path.stem if output is None and checkpoint["kind"] != "best" else "model"
    folder = path.parent if output is None else model_folder(output, checkpoint["pipeline"])
    return folder / (f"{stem}.pte" if precision == EXECUTORCH else onnx_name(stem, precision))


def _version_of(name: str, output: str | None) -> tuple[Path, int] | None:
    """The pipeline's folder and the version to which files of a checkpoint belong that are written beside it."""
    path = Path(name).absolute()
    if output is not None or path.name != BEST:
        return None
    if path.parents[1].name == versions.VERSIONS and path.parent.name.isdigit():
        return path.parents[2], int(path.parent.name)
    same = versions.find(path.parent, BEST, hashlib.sha256(path.read_bytes()).hexdigest())
    return (path.parent, same[-1]) if same else None


def _put(trained: Trained, precision: str, place: Path, version: tuple[Path, int] | None, report: Report) -> Exported:
    """Write a file, into the version that it was made of where there is one."""
    clear_half_written(place.parent)
    if version is None:
        return trained.export(precision, place)
    folder, number = version
    with temporary_folder() as made:
        exported = trained.export(precision, made / place.name)
        if not version_store.attach(folder, number, place.name, exported.file.read_bytes(), report):
            report(f"version {number} keeps the {place.name} that it has; --output writes another elsewhere")
    return replace(exported, file=place, size=place.stat().st_size)


class Trained:
    """A network out of a checkpoint, and the recordings that it learnt from.

    Raises DataError for other recordings, CheckpointError for weights of another network.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        material: TrainingData,
        pipelines: Mapping[str, Pipeline] | None = None,
    ) -> None:
        if material.corpus.data_hash != checkpoint["data_hash"]:
            raise DataError(
                f"{name} learnt from recordings of hash {checkpoint['data_hash'][:12]}, but {material.corpus.name} has "
                f"hash {material.corpus.data_hash[:12]}: name the folders of its training with "
                "--data_dir, --extra_dir and --words_dir"
            )
        known, wanted = PIPELINE_REGISTRY if pipelines is None else pipelines, checkpoint["pipeline"]
        if wanted not in known:
            raise CheckpointError(f"{name} is of pipeline {wanted!r}: expected one of {', '.join(known) or 'none'}")
        self.name, self.checkpoint, self.material = name, checkpoint, material
        self.pipeline = known[wanted]
        self.model = self.pipeline.model(checkpoint["config"].get("width", 1.0))
        weights = checkpoint["weights"] if checkpoint["kind"] == "best" else checkpoint["state"]["averaged"]
        load_weights(self.model, weights, name)
        self.model.eval()
        if float(self.model.temperature) == 1.0:  # fitted at the end of training alone
            self.model.temperature.fill_(fitted_temperature(self.model, self.pipeline, material)[0])

    def export(self, precision: str, place: Path) -> Exported:
        """Write it, compared with the network. Raises ExportError where it answers otherwise."""
        material, model = self.material, self.model
        if precision != INT8:
            write = export_onnx if precision == FP32 else export_executorch
            test = material.tested(lambda waveforms: predict_probabilities(model, torch.from_numpy(waveforms)))
            difference = write(model, place, self._metadata(test), material.real_clips(PARITY_CLIPS))
            compared = f"largest difference {difference:.1e}"
        else:
            int8 = quantised(network_of(model), self.calibration(), self.judges())
            content = int8.proto.SerializeToString()
            test = material.tested(lambda waveforms: softmax(answers(content, waveforms)[0]))
            compared = str(int8.verdict)
            layers = f"{int8.layers} layer{'s' * (int8.layers > 1)}"
            told = f"{layers}, {int8.method} of {CALIBRATION_CLIPS} training clips; {compared}"
            write_atomically(place, sealed(int8.proto, self._metadata(test, precision=INT8, calibration=told)))
        return Exported(
            self.name, self.pipeline.name, precision, place, place.stat().st_size, test.errors, test.clips, compared
        )

    def _metadata(self, test: Evaluation, **more: str) -> dict[str, str]:
        said = self.checkpoint
        return self.material.metadata(
            self.pipeline.name, test, float(self.model.temperature), epoch=said["epoch"],
            version=said["package_version"], commit=said.get("git_commit", "unknown"), **more,
        )  # fmt: skip

    def calibration(self) -> Floats:
        """Clips of the training part, with and without a digit, each once."""
        train = np.unique(self.material.split.train)
        chosen = np.random.default_rng(self.material.config.seed).permutation(train)[:CALIBRATION_CLIPS]
        waveforms: Floats = self.material.corpus.waveforms[chosen]
        return waveforms

    def judges(self) -> Judges:
        """The validation part, and digits of the training part where it has fewer than are compared with."""
        split, material = self.material.split, self.material
        missing = max(0, PARITY_CLIPS - len(material.digits(split.validation)))
        chosen = np.concatenate([split.validation, material.digits(split.train)[:missing]])
        part = material.part(chosen)
        heard = predict(self.model, part.waveforms)
        return Judges(
            part.waveforms[:].numpy(),
            part.labels.numpy(),
            heard.scores.softmax(1).numpy(),
            heard.digit.sigmoid().numpy(),
        )
