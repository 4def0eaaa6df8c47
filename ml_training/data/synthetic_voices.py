"""Synthetic voices among the training clips of recordings; never among those that validate or test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from digit_detector.errors import DataError, DigitError
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.fsdd import TREE_HASH
from ml_training.data.mapped_arrays import concatenate, take
from ml_training.data.splits import Split
from ml_training.data.tts import cached_digits
from ml_training.results import Ints

WITH_FSDD = 0.25  # recordings of one's own may not be in English


def settled(config: TrainConfig, corpus: Corpus) -> TrainConfig:
    """`config` with a share where it leaves that open: FSDD's six men gain from other voices."""
    if config.synthetic_share is not None:
        return config
    is_fsdd = not corpus.synthetic and (config.dataset == "fsdd" or TREE_HASH in corpus.recordings)
    return replace(config, synthetic_share=WITH_FSDD if is_fsdd else 0.0)


def with_synthetic_voices(
    corpus: Corpus, split: Split, config: TrainConfig, report: Callable[[str], None]
) -> tuple[Corpus, Split]:
    """The same with so many clips of espeak-ng added that they are `config.synthetic_share` of the training part.

    They come after the recordings, so positions in the other parts stay as they are; name and data
    hash of the corpus tell of them. Spread evenly over digits and `config.synthetic_voices` voices,
    they follow from `config.seed`. Where all clips are synthetic already, `report` is told and nothing added.
    Raises DataError where there is no speech synthesis.
    """
    share = config.synthetic_share or 0.0
    count = round(len(split.train) * share / (1.0 - share))
    if not count:
        return corpus, split
    if corpus.synthetic:
        report("synthetic_share is for recordings: these clips are synthetic already, none are added")
        return corpus, split
    takes = -(-count // (10 * config.synthetic_voices))
    try:
        spoken = cached_digits(config.seed, config.synthetic_voices, takes)
    except DigitError as error:
        raise DataError(f"{error}; or train on recordings alone: --synthetic_share 0") from error
    chosen = _spread(spoken, count)
    digest = hashlib.sha256(f"{corpus.data_hash}\n{spoken.data_hash}\n{count}\n".encode())
    mixed = replace(
        corpus,
        name=f"{corpus.name} with {count} clips of synthetic speech",
        waveforms=concatenate([corpus.waveforms, take(spoken.waveforms, chosen)]),
        lengths=np.concatenate([corpus.lengths, spoken.lengths[chosen]]),
        labels=np.concatenate([corpus.labels, spoken.labels[chosen]]),
        speakers=corpus.speakers + tuple(spoken.speakers[i] for i in chosen),
        indices=np.concatenate([corpus.indices, spoken.indices[chosen]]),
        files=corpus.files + tuple(spoken.files[i] for i in chosen),
        data_hash=digest.hexdigest(),
        parts=(),  # they have been divided
    )
    added = np.arange(len(corpus), len(mixed), dtype=np.int64)
    return mixed, replace(split, train=np.concatenate([split.train, added]))


def _spread(spoken: Corpus, count: int) -> Ints:
    """Ascending positions of `count` clips, as many of each digit and of each voice, to within one or so."""
    voices = np.unique(np.asarray(spoken.speakers), return_inverse=True)[1]
    # First takes before second ones; within a take diagonally, so that any first few differ in voice and digit.
    order = np.lexsort([spoken.labels, (voices + spoken.labels) % len(set(spoken.speakers)), spoken.indices])
    return np.sort(order[:count]).astype(np.int64)
