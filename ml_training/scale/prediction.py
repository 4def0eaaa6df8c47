"""Recordings of a folder or of object storage predicted by Ray Data."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from digit_detector.audio import AUDIO_SUFFIXES, load_audio
from digit_detector.classifier import MODEL_FILE, DigitClassifier, load_classifier
from digit_detector.errors import BatchError, ClusterError, ConfigError
from digit_detector.labels import LABELS, model_folder
from ml_training.predict.batching import Report, predict_recordings
from ml_training.predict.folder import Listing, predict_folder
from ml_training.predict.tables import Recording, sort_key
from ml_training.scale.cluster import last_line, quiet, ray_cluster

CHUNK = 20_000  # names on their way at once
BATCH_SIZE = 64

Columns = dict[str, Any]


class AddressListing(Listing):
    """The recordings below addresses of object storage, as s3://bucket/folder."""

    def __init__(self, named: Sequence[str]) -> None:
        self.kinds, self.other_files = dict.fromkeys(sorted(named), "elsewhere"), 0

    def __iter__(self) -> Iterator[Recording]:
        """Raises BatchError where an address cannot be listed."""
        from pyarrow import fs

        names = []
        for address in self.kinds:
            try:
                system, path = fs.FileSystem.from_uri(address)
                infos = system.get_file_info(fs.FileSelector(path, recursive=True))
            except (OSError, ValueError) as error:
                raise BatchError(f"cannot list {address}: {str(error).splitlines()[0]}") from error
            below = (info.path.removeprefix(path.rstrip("/")) for info in infos if info.is_file)
            names += [address.rstrip("/") + name for name in below if name.lower().endswith(AUDIO_SUFFIXES)]
        return map(Recording, sorted(names, key=sort_key))


def predict_on_cluster(
    classifier: DigitClassifier, answered_by: str, named: Sequence[str], out: Path, workers: int, address: str,
    **modes: bool,
) -> int:  # fmt: skip
    """As predict_folder, with `workers` models on a cluster. Raises ConfigError, ClusterError."""
    addresses = [name for name in named if _is_address(name)]
    if addresses and len(addresses) < len(named):
        raise ConfigError(["name files of this machine or addresses, not both"], "batch")
    with ray_cluster(address, workers, workers):
        listing = AddressListing(addresses) if addresses else Listing(named)
        return predict_folder(classifier, answered_by, listing, out, partial(_predict, classifier, workers), **modes)


def _predict(
    classifier: DigitClassifier, workers: int, recordings: Iterator[Recording], report: Report
) -> Iterator[list[Recording]]:
    """Predict recordings in their order; Ray repeats what a lost machine had."""
    import ray.data

    quiet("ray.data")
    model, pipeline = classifier.model_file.read_bytes(), classifier.metadata["pipeline"]

    class Actor(PredictActor):  # sent to workers by value, with the model
        def __init__(self) -> None:
            super().__init__(model, pipeline)

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    while chunk := list(islice(recordings, CHUNK)):
        waiting = iter(chunk)
        if names := [{"name": one.name} for one in chunk if _is_open(one)]:
            blocks = max(1, min(len(names) // BATCH_SIZE, 8 * workers))
            answers = ray.data.from_items(names, override_num_blocks=blocks).map_batches(
                Actor, batch_size=BATCH_SIZE, num_cpus=1, compute=ray.data.ActorPoolStrategy(size=workers)
            )
            try:
                for batch in answers.iter_batches(batch_size=BATCH_SIZE, prefetch_batches=1):
                    yield list(_join(batch, waiting))
            except Exception as error:
                raise ClusterError(f"the cluster gave the predictions up: {last_line(error)}") from error
        yield list(waiting)


def _join(batch: Columns, waiting: Iterator[Recording]) -> Iterator[Recording]:
    """Predicted recordings, each behind those before it that needed no prediction."""
    for probabilities, score, error in zip(batch["probabilities"], batch["digit_score"], batch["error"], strict=True):
        while not _is_open(one := next(waiting)):
            yield one
        yield Recording(one.name, None, None if error else probabilities, float(score), str(error) or None)


def _is_open(recording: Recording) -> bool:
    return recording.row is None and recording.error is None


class PredictActor:
    """A model in a process of Ray's that predicts batches of names."""

    def __init__(self, model: bytes, pipeline: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = model_folder(self._folder.name, pipeline)
        path.mkdir(parents=True)
        (path / MODEL_FILE).write_bytes(model)
        self._model = load_classifier(self._folder.name, pipeline)

    def __call__(self, batch: Columns) -> Columns:
        recordings = map(_fetch, batch["name"].tolist())
        batches = predict_recordings(recordings, print, model=self._model, batch_size=BATCH_SIZE, decoders=1)
        predicted = list(chain.from_iterable(batches))
        zeros = np.zeros(len(LABELS), dtype=np.float32)
        return {
            "probabilities": np.stack([zeros if p.probabilities is None else p.probabilities for p in predicted]),
            "digit_score": np.array([p.digit_score for p in predicted], dtype=np.float32),
            "error": np.array([p.error or "" for p in predicted], dtype=object),
        }


def _fetch(name: str) -> Recording:
    """A recording, decoded if it lies in object storage."""
    if not _is_address(name):
        return Recording(name)
    from pyarrow import fs

    try:
        system, path = fs.FileSystem.from_uri(name)
        with system.open_input_stream(path) as file:
            return Recording(name, load_audio(file.read()))
    except Exception as error:  # one of a million files must not end the run
        return Recording(name, error=f"{name}: {error}")


def _is_address(name: str) -> bool:
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.isalnum()
