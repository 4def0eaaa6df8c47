"""The recordings of a run, divided: what its pipelines learn from and are judged by, and what models say of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from digit_detector.audio import LOUDEST
from digit_detector.errors import DataError
from digit_detector.memory import available_memory
from digit_detector.model_file import model_metadata
from ml_training.calibration import temperature_for_other_voices
from ml_training.config import TrainConfig
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.mapped_arrays import take
from ml_training.data.negatives import with_negatives
from ml_training.data.splits import Split, split_corpus
from ml_training.data.synthetic_voices import settled, with_synthetic_voices
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.results import DataSummary, Evaluation, Floats, Ints
from ml_training.training.batches import Clips, MappedRows
from ml_training.training.classification import predict

_AT_ONCE = 2048  # clips in memory while models are tested
_PLENTY = 0.25  # of the memory that is left: so much may clips take
PARITY_CLIPS = 300  # on so many a file is held against its network

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingData:
    """A corpus with everything that joins it, and which of its clips are for what."""

    config: TrainConfig  # with what only the recordings could settle
    corpus: Corpus
    split: Split
    summary: DataSummary
    recordings_hash: str  # of the recordings, without synthetic voices among them
    tested_on: str  # what the test part is of: the recordings, without synthetic voices among the training clips

    def part(self, chosen: Ints, seldom: bool = False) -> Clips:
        """Some of the clips as tensors.

        Memory-mapped waveforms stay on disk where settings say so, where memory is short, and where few of them will
        be read, `seldom`.
        """
        corpus, waveforms = self.corpus, self.corpus.waveforms
        lengths, labels = (torch.from_numpy(column[chosen]) for column in (corpus.lengths, corpus.labels))
        if isinstance(waveforms, np.memmap) and _stays_on_disk(waveforms.nbytes, self.config.waveforms, seldom):
            return Clips(MappedRows(waveforms, chosen), lengths, labels)
        return Clips(torch.from_numpy(take(waveforms, chosen)), lengths, labels)

    def digits(self, chosen: Ints) -> Ints:
        """Those of the clips in which a digit is said."""
        digits: Ints = chosen[self.corpus.labels[chosen] != NOT_A_DIGIT]
        return digits

    def tested(self, answer: Callable[[Floats], Floats]) -> Evaluation:
        """What somebody who gives (N, 10) probabilities for (N, 8000) waveforms makes of the test part."""
        corpus, chosen = self.corpus, self.split.test
        return Evaluation(
            protocol=f"the {self.split.name} split of {self.tested_on}",
            files=tuple(corpus.files[i] for i in chosen),
            speakers=tuple(corpus.speakers[i] for i in chosen),
            labels=corpus.labels[chosen],
            probabilities=np.concatenate(
                [
                    answer(take(corpus.waveforms, chosen[i : i + _AT_ONCE]))
                    for i in range(0, max(1, len(chosen)), _AT_ONCE)
                ]
            ),
        )

    @cached_property
    def test_hash(self) -> str:
        """SHA-256 of the samples and labels of the test part, in any order: figures of one hash can be compared."""
        corpus, chosen = self.corpus, self.split.test
        clips: list[bytes] = []
        for first in range(0, len(chosen), _AT_ONCE):
            part = chosen[first : first + _AT_ONCE]
            pairs = zip(corpus.labels[part], take(corpus.waveforms, part), strict=True)
            clips += [hashlib.sha256(b"%d " % label + samples.tobytes()).digest() for label, samples in pairs]
        return hashlib.sha256(b"".join(sorted(clips))).hexdigest()

    def real_clips(self, count: int, first: str = "test") -> Floats:
        """(count, 8000), or all there are: of one part first, then of the others; synthetic voices come last."""
        names = [first, *(name for name in ("test", "validation", "train") if name != first)]
        clips = np.concatenate([self.digits(getattr(self.split, name)) for name in names])[:count]
        waveforms: Floats = take(self.corpus.waveforms, clips)
        return waveforms

    def metadata(self, pipeline: str, test: Evaluation, temperature: float, **more: Any) -> dict[str, str]:
        """What a file of a model that learnt from this says of itself; `more` as in model_metadata."""
        corpus = self.corpus
        return model_metadata(
            pipeline=pipeline, data=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic,
            negatives=self.summary.negatives, split=self.split.name, accuracy=test.accuracy,
            tested_on=f"{test.clips} clips, {test.protocol}", test_hash=self.test_hash,
            recordings_hash=self.recordings_hash, seed=self.config.seed, temperature=temperature, **more,
        )  # fmt: skip


def load_training_data(config: TrainConfig, corpus: Corpus | None, say: Say, warn: Say) -> TrainingData:
    """What `config` names, divided and with all that joins it; `corpus` takes the place of the recordings it names.

    Raises DataError without usable recordings, or where speech is to be synthesised and cannot be.
    """
    if corpus is None:
        corpus = load_corpus(config, report=lambda line: warn(line) if line.startswith("!!!") else say(line))
    else:
        _check_levels(corpus)
    config = settled(config, corpus)
    split = split_corpus(corpus, config, report=warn)
    tested_on, recordings_hash = corpus.name, " ".join(corpus.recordings)
    corpus, split = with_synthetic_voices(corpus, split, config, report=warn)
    digits, parts = corpus, split.parts
    corpus, split, negatives = with_negatives(corpus, split, config)
    summary = DataSummary(
        name=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic, clips=len(digits),
        speakers=tuple(sorted(set(digits.speakers))), hours=digits.hours, split=split.name, parts=parts,
        negatives=negatives, skipped=corpus.skipped,
    )  # fmt: skip
    return TrainingData(config, corpus, split, summary, recordings_hash, tested_on)


def _check_levels(corpus: Corpus) -> None:
    """Raise DataError for a clip that the loader of recordings would have left out: one makes every weight NaN."""
    loudest = np.zeros(len(corpus), np.float32)
    for start in range(0, len(corpus), _AT_ONCE):
        clips = take(corpus.waveforms, slice(start, start + _AT_ONCE))
        loudest[start : start + _AT_ONCE] = np.maximum(clips.max(axis=1), -clips.min(axis=1))
    bad = np.flatnonzero(~(loudest <= LOUDEST))  # NaN among them
    if len(bad):
        raise DataError(
            f"{corpus.name}: {corpus.files[bad[0]]} has samples of {loudest[bad[0]]:.2g} times full scale, expected -1 "
            f"to 1{f', and {len(bad) - 1} more' if len(bad) > 1 else ''}: leave it out"
        )


def _stays_on_disk(nbytes: int, where: str, seldom: bool) -> bool:
    if where != "auto" or seldom:
        return where != "memory"
    left = available_memory()
    return left is not None and nbytes > _PLENTY * left


def fitted_temperature(model: DigitModel, pipeline: Pipeline, material: TrainingData) -> tuple[float, int]:
    """What to divide a trained model's scores by, fitted on the digits of the validation part; and their number."""
    validation = material.part(material.digits(material.split.validation))
    scores = predict(model, validation.waveforms).scores.numpy()
    power = pipeline.temperature_power
    return temperature_for_other_voices(scores, validation.labels.numpy(), power), len(validation)
