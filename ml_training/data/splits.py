"""Training, validation and test parts of a corpus. No clip is ever in two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digit_detector.errors import DataError
from ml_training.config import TrainConfig, parse_fold
from ml_training.data.corpus import UNKNOWN_SPEAKER, VALIDATION, Corpus
from ml_training.results import Ints
from ml_training.utils.console import print_note

RANDOM_TEST_SHARE = 0.2
RANDOM_VALIDATION_SHARE = 0.1

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Split:
    """Ascending positions of the clips in each part; the parts share no clip and cover all."""

    name: str
    train: Ints
    validation: Ints
    test: Ints

    @property
    def parts(self) -> dict[str, int]:
        """Clips in each part."""
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}


def split_corpus(corpus: Corpus, config: TrainConfig, report: Callable[[str], None] = print_note) -> Split:
    """Divide a corpus as `config.split` says, at random by `config.seed`.

    official: the test part is the corpus's own, FSDD's recordings 0-4 or that of a table; validation is that of the
    table or a share of the rest, evenly by speaker and digit. A corpus without a test part is split at random, which
    is reported. random: 70/10/20, evenly by digit. speaker: the test part is `config.held_out_speaker`. fold: the test
    part is one of k folds of nearly equal size, each evenly by speaker and digit; validation comes from the rest.

    Raises DataError for an unknown speaker, for split "speaker" where clips are of unknown ones or all of one, and for
    a corpus so small that a part stays empty.
    """
    rng = np.random.default_rng(config.seed)
    name = config.split
    if name == "official" and not corpus.official_split:
        report(f"{corpus.name} has no official test part: splitting it at random, 70/10/20, evenly by digit")
        name = "random"
    everything = np.ones(len(corpus), dtype=np.bool_)
    speakers, strata = np.asarray(corpus.speakers), [corpus.labels]
    share = RANDOM_VALIDATION_SHARE / (1 - RANDOM_TEST_SHARE)
    if name == "random":
        test = _draw(everything, strata, RANDOM_TEST_SHARE, rng)
    else:
        strata, share = [corpus.labels, speakers], config.validation_ratio
        if name == "speaker":
            test = speakers == _check_speaker(corpus, config.held_out_speaker)
        else:
            test = _fold(corpus, config.fold, rng) if name == "fold" else corpus.official_test
    if name == "official" and VALIDATION in corpus.parts:
        validation = np.asarray(corpus.parts) == VALIDATION
    else:
        validation = _draw(~test, strata, share, rng)
    train = ~(test | validation)
    split = Split(name, *(np.flatnonzero(part).astype(np.int64) for part in (train, validation, test)))
    empty = [part for part, clips in split.parts.items() if clips == 0]
    if empty:
        raise DataError(
            f"split {name!r} of {corpus.name} ({len(corpus)} clips) leaves nothing for {' and '.join(empty)}: "
            "use more recordings or another --split"
        )
    return split


def known_speakers(corpus: Corpus) -> list[str]:
    """The speakers of a corpus that can be held out. Raises DataError where some are unknown or there is only one."""
    unknown = corpus.speakers.count(UNKNOWN_SPEAKER)
    names = sorted(set(corpus.speakers))
    if unknown or len(names) < 2:
        what = f"does not say who speaks in {unknown} of its {len(corpus)} clips" if unknown else "has one speaker"
        raise DataError(
            f"{corpus.name} {what}: leaving a speaker out needs two at least, and the name of each (a sub-folder, or "
            "the column speaker of a table); --split random, or folds, go without"
        )
    return names


def _check_speaker(corpus: Corpus, speaker: str | None) -> str | None:
    names = known_speakers(corpus)
    if speaker not in names:
        shown = ", ".join(names[:100]) + (f" and {len(names) - 100} more" if len(names) > 100 else "")
        raise DataError(f"no speaker {speaker!r} in {corpus.name}: expected one of {shown}")
    return speaker


def _fold(corpus: Corpus, fold: str | None, rng: np.random.Generator) -> Mask:
    """Every k-th clip, in the order of speaker and digit and shuffled within."""
    numbers = parse_fold(fold)
    assert numbers is not None
    number, folds = numbers
    clips = rng.permutation(len(corpus))
    line = clips[np.lexsort([corpus.labels[clips], np.asarray(corpus.speakers)[clips]])]
    test = np.zeros(len(corpus), dtype=np.bool_)
    test[line[number - 1 :: folds]] = True
    return test


def _draw(pool: Mask, strata: Sequence[NDArray[np.generic]], share: float, rng: np.random.Generator) -> Mask:
    """A random `share` of the pool and of every stratum, to within one clip.

    Systematic sampling: every (1 / share)-th clip from a random start, in the order of strata and shuffled within.
    """
    clips = rng.permutation(np.flatnonzero(pool))
    line = clips[np.lexsort([stratum[clips] for stratum in reversed(strata)])]
    marks = np.floor(rng.random() + share * np.arange(len(line) + 1))
    chosen = np.zeros_like(pool)
    chosen[line[np.diff(marks) > 0]] = True
    return chosen
