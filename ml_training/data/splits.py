"""Training, validation and test parts of a corpus. No clip is ever in two of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ml_training.config import TrainConfig, fold_numbers
from ml_training.data.corpus import OFFICIAL_TEST_INDICES, Corpus
from ml_training.errors import DataError
from ml_training.results import Ints

RANDOM_TEST_SHARE = 0.2
RANDOM_VALIDATION_SHARE = 0.1

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Split:
    """Which clips of a corpus are for what: ascending positions that share no clip and cover all."""

    name: str
    train: Ints
    validation: Ints
    test: Ints

    @property
    def parts(self) -> dict[str, int]:
        """Clips in each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def split_corpus(corpus: Corpus, config: TrainConfig, report: Callable[[str], None] = _say) -> Split:
    """Divide a corpus as `config.split` says; `config.seed` decides what chance decides.

    official: FSDD's recordings 0-4 are the test part; validation comes from the rest, evenly by
    speaker and digit. A corpus whose numbers mean nothing of the kind is split at random instead,
    and `report` is told. random: 70/10/20, evenly by digit. speaker: the test part is everything
    by `config.held_out_speaker`. fold: the test part is one of so many folds of nearly one size, which
    share no clip, cover all and take their part of every speaker and digit; validation comes from the rest.

    Raises DataError for an unknown speaker, or a corpus so small that a part stays empty.
    """
    rng = np.random.default_rng(config.seed)
    name = config.split
    if name == "official" and not corpus.official_split:
        report(f"{corpus.name} has no official test part: splitting it at random, 70/10/20, evenly by digit")
        name = "random"
    everything = np.ones(len(corpus), dtype=np.bool_)
    if name == "random":
        test = _draw(everything, [corpus.labels], RANDOM_TEST_SHARE, rng)
        validation = _draw(~test, [corpus.labels], RANDOM_VALIDATION_SHARE / (1 - RANDOM_TEST_SHARE), rng)
    else:
        if name == "speaker":
            test = _held_out(corpus, config.held_out_speaker)
        elif name == "fold":
            test = _fold(corpus, config.fold, rng)
        else:
            test = corpus.indices < OFFICIAL_TEST_INDICES
        validation = _draw(~test, [corpus.labels, np.asarray(corpus.speakers)], config.validation_share, rng)
    train = ~(test | validation)
    split = Split(name, *(np.flatnonzero(part).astype(np.int64) for part in (train, validation, test)))
    empty = [part for part, clips in split.parts.items() if clips == 0]
    if empty:
        raise DataError(
            f"split {name!r} of {corpus.name} ({len(corpus)} clips) leaves nothing for {' and '.join(empty)}: "
            "use more recordings or another --split"
        )
    return split


def _held_out(corpus: Corpus, speaker: str | None) -> Mask:
    names = sorted(set(corpus.speakers))
    if speaker not in names:
        shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" if len(names) > 100 else "")
        raise DataError(f"no speaker {speaker!r} in {corpus.name}: expected one of {shown}")
    held_out: Mask = np.asarray(corpus.speakers) == speaker
    return held_out


def _fold(corpus: Corpus, fold: str | None, rng: np.random.Generator) -> Mask:
    """Dealt out like cards, the clips in line by speaker and digit and shuffled within."""
    numbers = fold_numbers(fold)
    assert numbers is not None
    number, folds = numbers
    clips = rng.permutation(len(corpus))
    line = clips[np.lexsort([corpus.labels[clips], np.asarray(corpus.speakers)[clips]])]
    test = np.zeros(len(corpus), dtype=np.bool_)
    test[line[number - 1 :: folds]] = True
    return test


def _draw(pool: Mask, strata: Sequence[NDArray[np.generic]], share: float, rng: np.random.Generator) -> Mask:
    """A random `share` of the pool that takes its part of every stratum, to within one clip.

    Systematic sampling: the clips in line, stratum after stratum and shuffled within, of which
    every (1 / share)-th is taken from a random start on.
    """
    clips = rng.permutation(np.flatnonzero(pool))
    line = clips[np.lexsort([stratum[clips] for stratum in reversed(strata)])]
    marks = np.floor(rng.random() + share * np.arange(len(line) + 1))
    chosen = np.zeros_like(pool)
    chosen[line[np.diff(marks) > 0]] = True
    return chosen
