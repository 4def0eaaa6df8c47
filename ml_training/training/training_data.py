"""The recordings of a run: split, with synthetic voices and negatives added, and what model files say of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from digit_detector.audio import LOUDEST
from digit_detector.errors import DataError
from digit_detector.memory import available_memory
from digit_detector.model_file import model_metadata
from ml_training.config import TrainConfig
from ml_training.data.corpus import NOT_A_DIGIT, Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.mapped_arrays import take
from ml_training.data.negatives import mix_negatives
from ml_training.data.splits import Split, split_corpus
from ml_training.data.tts import mix_synthetic_voices, resolve_synthetic_ratio
from ml_training.metrics import fit_logit_temperature
from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.results import DataSummary, Evaluation, Floats, Ints
from ml_training.training.batches import Clips, MappedRows
from ml_training.training.classification import predict

PARITY_CLIPS = 300  # clips on which an exported file is compared with its network
_AT_ONCE = 2048  # clips in memory while models are tested
_MEMORY_SHARE = 0.25  # of the available memory, that clips may take

Report = Callable[[str], None]


@dataclass(frozen=True)
class TrainingData:
    """A corpus with everything added to it, and its split."""

    config: TrainConfig  # with the settings that depend on the recordings
    corpus: Corpus
    split: Split
    summary: DataSummary
    recordings_hash: str  # of the recordings, without synthetic voices
    tested_on: str  # name of the recordings in the test part

    def part(self, chosen: Ints, seldom: bool = False) -> Clips:
        """Some of the clips as tensors.

        Memory-mapped waveforms stay on disk if settings say so, if memory is short, or if few of them will be read
        (`seldom`).
        """
        waveforms = self.corpus.waveforms
        lengths, labels = (torch.from_numpy(column[chosen]) for column in (self.corpus.lengths, self.corpus.labels))
        if isinstance(waveforms, np.memmap) and self._stays_on_disk(seldom):
            return Clips(MappedRows(waveforms, chosen), lengths, labels)
        return Clips(torch.from_numpy(take(waveforms, chosen)), lengths, labels)

    def _stays_on_disk(self, seldom: bool) -> bool:
        storage, available = self.config.clip_storage, available_memory()
        if storage != "auto" or seldom:
            return storage != "memory"
        return available is not None and self.corpus.waveforms.nbytes > _MEMORY_SHARE * available

    def digits(self, chosen: Ints) -> Ints:
        """Those of the clips that hold a digit."""
        digits: Ints = chosen[self.corpus.labels[chosen] != NOT_A_DIGIT]
        return digits

    def _test_parts(self) -> Iterator[Ints]:
        for start in range(0, max(1, len(self.split.test)), _AT_ONCE):
            yield self.split.test[start : start + _AT_ONCE]

    def evaluate(self, predict_proba: Callable[[Floats], Floats]) -> Evaluation:
        """The test part under a function from (N, 8000) waveforms to (N, 10) probabilities."""
        corpus, chosen = self.corpus, self.split.test
        return Evaluation(
            protocol=f"the {self.split.name} split of {self.tested_on}",
            files=tuple(corpus.files[i] for i in chosen), speakers=tuple(corpus.speakers[i] for i in chosen),
            labels=corpus.labels[chosen],
            probabilities=np.concatenate([predict_proba(take(corpus.waveforms, part)) for part in self._test_parts()]),
        )  # fmt: skip

    @cached_property
    def test_hash(self) -> str:
        """SHA-256 of the samples and labels of the test part, in any order: figures of one hash can be compared."""
        clips: list[bytes] = []
        for part in self._test_parts():
            pairs = zip(self.corpus.labels[part], take(self.corpus.waveforms, part), strict=True)
            clips += [hashlib.sha256(b"%d " % label + samples.tobytes()).digest() for label, samples in pairs]
        return hashlib.sha256(b"".join(sorted(clips))).hexdigest()

    def real_clips(self, count: int) -> Floats:
        """(count, 8000) digits, or all: of the test part first, then validation, then training (synthetic last)."""
        parts = (self.split.test, self.split.validation, self.split.train)
        clips = np.concatenate([self.digits(part) for part in parts])[:count]
        waveforms: Floats = take(self.corpus.waveforms, clips)
        return waveforms

    def metadata(self, pipeline: str, test: Evaluation, temperature: float, **more: Any) -> dict[str, str]:
        """Metadata for the file of a model trained on this data; `more` as in model_metadata."""
        corpus = self.corpus
        return model_metadata(
            pipeline=pipeline, data=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic,
            negatives=self.summary.negatives, split=self.split.name, accuracy=test.accuracy,
            tested_on=f"{test.clips} clips, {test.protocol}", test_hash=self.test_hash,
            recordings_hash=self.recordings_hash, seed=self.config.seed, temperature=temperature, **more,
        )  # fmt: skip


def load_training_data(config: TrainConfig, corpus: Corpus | None, say: Report, warn: Report) -> TrainingData:
    """The data of `config`, split, with everything added; `corpus` replaces the recordings it names.

    Raises DataError without usable recordings, or if speech is to be synthesised and cannot be.
    """
    if corpus is None:
        corpus = load_corpus(config, report=lambda line: warn(line) if line.startswith("!!!") else say(line))
    else:
        _check_levels(corpus)
    config = resolve_synthetic_ratio(config, corpus)
    split = split_corpus(corpus, config, report=warn)
    tested_on, recordings_hash = corpus.name, " ".join(corpus.recordings)
    digits, split = mix_synthetic_voices(corpus, split, config, report=warn)
    parts = split.parts
    corpus, split, negatives = mix_negatives(digits, split, config)
    summary = DataSummary(
        name=corpus.name, data_hash=corpus.data_hash, synthetic=corpus.synthetic, clips=len(digits),
        speakers=tuple(sorted(set(digits.speakers))), hours=digits.hours, split=split.name, parts=parts,
        negatives=negatives, skipped=corpus.skipped,
    )  # fmt: skip
    return TrainingData(config, corpus, split, summary, recordings_hash, tested_on)


def _check_levels(corpus: Corpus) -> None:
    """Raise DataError for a clip that the loader would have left out: one makes every weight NaN."""
    for start in range(0, len(corpus), _AT_ONCE):
        peaks = np.abs(take(corpus.waveforms, slice(start, start + _AT_ONCE))).max(axis=1)
        bad = np.flatnonzero(~(peaks <= LOUDEST))  # NaN among them
        if len(bad):
            raise DataError(
                f"{corpus.name}: {corpus.files[start + bad[0]]} has samples of {peaks[bad[0]]:.2g} times full scale, "
                "expected -1 to 1: leave it out"
            )


def fit_temperature(model: DigitModel, pipeline: Pipeline, data: TrainingData) -> tuple[float, int]:
    """The temperature that divides a trained model's scores, fitted on the digits of the validation part; their number.

    (Guo et al., On calibration of modern neural networks, 2017.)
    """
    validation = data.part(data.digits(data.split.validation))
    scores = predict(model, validation.waveforms).digit_logits.numpy()
    return fit_logit_temperature(scores, validation.labels.numpy(), pipeline.temperature_power), len(validation)
