"""Recordings of a folder or of object storage answered by many machines: Ray Data hands them out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from digit_detector.audio import AUDIO_SUFFIXES, Floats, load_audio
from digit_detector.errors import BatchError, ClusterError, ConfigError, DigitError
from ml_training.predict.tables import Row
from ml_training.predict.walk import Found
from ml_training.scale.cluster import cluster, cores_of, quiet

if TYPE_CHECKING:
    from digit_detector.classifier import DigitClassifier
    from ml_training.predict.command import BatchRequest

CHUNK = 20_000  # names on their way at once
BATCH = 64  # recordings that a worker takes at once
Answers = dict[str, Any]


def is_address(name: str) -> bool:
    """Whether something names object storage, as s3://bucket/folder, and no file here."""
    scheme, sign, _ = name.partition("://")
    return bool(sign) and scheme.isalnum()


def listed(named: Sequence[str]) -> list[Found]:
    """The recordings below addresses, in their order. Raises BatchError where an address cannot be read."""
    from pyarrow import fs

    found: list[Found] = []
    for name in named:
        try:
            system, path = fs.FileSystem.from_uri(name)
            infos = system.get_file_info(fs.FileSelector(path, recursive=True))
        except (OSError, ValueError) as error:
            raise BatchError(f"cannot list {name}: {str(error).splitlines()[0]}") from error
        prefix = name.rstrip("/")
        names = sorted(i.path for i in infos if i.is_file and i.path.lower().endswith(AUDIO_SUFFIXES))
        found += [Found(prefix + each.removeprefix(path.rstrip("/"))) for each in names]
    return found


@contextlib.contextmanager
def on_cluster(
    request: BatchRequest, classifier: DigitClassifier, workers: int, address: str
) -> Iterator[BatchRequest]:
    """The same request, answered by so many workers of a cluster for as long as this is entered.

    Raises ConfigError for what cannot be meant, ClusterError where the cluster is not there or too small.
    """
    faults = [] if workers >= 1 else [f"workers: expected 1 or more, got {workers}"]
    addresses = [name for name in request.named if is_address(name)]
    if addresses and len(addresses) < len(request.named):
        faults.append("name files of this machine or addresses, not both")
    if faults:
        raise ConfigError(faults, "batch")
    model, name = classifier.model_file.read_bytes(), classifier.metadata["pipeline"]
    with cluster(address, workers) as ray:
        if cores_of(ray) < workers:
            raise ClusterError(f"the cluster has {cores_of(ray)} cores, {workers} workers need one each: ask for fewer")
        yield dataclasses.replace(
            request, answered=lambda found: answered(found, model, name, workers),
            listed=(lambda: listed(addresses)) if addresses else None,
        )  # fmt: skip


class Hearer:
    """An actor with a model of its own that answers batches of names."""

    def __init__(self, model: bytes, name: str) -> None:
        import tempfile
        from pathlib import Path

        from digit_detector.classifier import MODEL_FILE, load_classifier
        from digit_detector.labels import model_folder

        self._folder = tempfile.TemporaryDirectory()
        place = model_folder(self._folder.name, name)
        place.mkdir(parents=True)
        (Path(place) / MODEL_FILE).write_bytes(model)
        self._classifier = load_classifier(self._folder.name, name)

    def __call__(self, batch: Answers) -> Answers:
        names, faults = batch["name"].tolist(), batch["fault"].tolist()
        errors: list[str] = []
        clips: list[Floats] = []
        for name, fault in zip(names, faults, strict=True):
            clip, error = (None, fault) if fault else _heard(name)
            errors.append(error)
            if clip is not None:
                clips.append(clip)
        probabilities = np.zeros((len(names), 10), dtype=np.float32)
        digit_scores = np.zeros(len(names), dtype=np.float32)
        good = np.array([not error for error in errors])
        if clips:
            probabilities[good], digit_scores[good] = self._classifier.predict_proba(np.stack(clips))
        return {
            "name": batch["name"], "error": np.array(errors, dtype=object), "probabilities": probabilities,
            "digit_score": digit_scores,
        }  # fmt: skip


def _heard(name: str) -> tuple[Floats | None, str]:
    try:
        if not is_address(name):
            return load_audio(name), ""
        from pyarrow import fs

        system, path = fs.FileSystem.from_uri(name)
        with system.open_input_stream(path) as file:
            return load_audio(file.read()), ""
    except DigitError as error:
        return None, str(error)
    except Exception as error:  # of a million files one must not end the work for the others
        return None, f"{name}: {type(error).__name__}: {error}"


def answered(found: Iterator[Found], model: bytes, name: str, workers: int) -> Iterator[list[Row]]:
    """Rows for what was found, in its order, a block at a time, by so many actors with the model in these bytes.

    What a machine had that is lost is done again by others. Raises ClusterError where the cluster gives up.
    """

    class Own(Hearer):  # goes to the workers by value, model and all: it outlives every machine but this one
        def __init__(self) -> None:
            super().__init__(model, name)

    import ray.data

    quiet("ray.data")
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    while chunk := list(islice(found, CHUNK)):
        names = [{"name": one.name, "fault": one.fault or ""} for one in chunk]
        blocks = max(1, min(len(names) // BATCH, 8 * workers))
        answers = ray.data.from_items(names, override_num_blocks=blocks).map_batches(
            Own, batch_size=BATCH, num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )  # fmt: skip
        try:
            for batch in answers.iter_batches(batch_size=BATCH, prefetch_batches=1):
                yield list(_rows(batch))
        except Exception as error:
            raise ClusterError(f"the cluster gave the answers up: {str(error).splitlines()[-1][:300]}") from error


def _rows(batch: Answers) -> Iterator[Row]:
    columns = (batch["name"], batch["error"], batch["probabilities"], batch["digit_score"])
    for name, error, probabilities, score in zip(*columns, strict=True):
        yield Row(str(name), error=str(error)) if error else Row(str(name), probabilities, float(score))
