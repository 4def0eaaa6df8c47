"""A corpus: labelled clips of one second, with speakers and files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, pad_or_trim
from ml_training.data.mapped_arrays import concatenate, take
from ml_training.results import Floats, Ints, SkippedClip

NOT_A_DIGIT = -1  # label of a clip without a digit
OFFICIAL_TEST_INDICES = 5  # recordings 0-4 of every speaker and digit are FSDD's test part
UNKNOWN_SPEAKER = "unknown"
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Corpus:
    """N labelled clips. A clip shorter than the second lies in its middle: it starts at (8000 - length) // 2."""

    name: str
    waveforms: Floats  # (N, 8000)
    lengths: Ints  # (N,) samples of each clip before padding, at most 8000
    labels: Ints  # (N,) digits
    speakers: tuple[str, ...]  # N names
    indices: Ints  # (N,) number of the recording
    files: tuple[str, ...]  # N names relative to the folder
    data_hash: str
    synthetic: bool
    official_split: bool  # it has a test part of its own: that of `parts`, or FSDD's, recordings 0-4
    skipped: tuple[SkippedClip, ...] = ()
    sources: tuple[str, ...] = ()  # data hashes of the corpora it was joined from; empty for one source
    parts: tuple[str, ...] = ()  # N of PARTS where a table divides the clips; else empty

    def __post_init__(self) -> None:
        clips = len(self.labels)
        sizes = {len(self.lengths), len(self.speakers), len(self.indices), len(self.files)}
        if self.waveforms.shape != (clips, NUM_SAMPLES) or sizes != {clips} or len(self.parts) not in (0, clips):
            raise ValueError(f"a corpus of {clips} labels has waveforms {self.waveforms.shape} and columns of {sizes}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def recordings(self) -> tuple[str, ...]:
        """The data hash of each of its sources."""
        return self.sources or (self.data_hash,)

    @property
    def official_test(self) -> NDArray[np.bool_]:
        """(N,) mask of its own test part; only where there is an `official_split`."""
        return np.asarray(self.parts) == TEST if self.parts else self.indices < OFFICIAL_TEST_INDICES

    @property
    def hours(self) -> float:
        """Hours of recorded sound, without padding."""
        return float(self.lengths.sum()) / SAMPLE_RATE / 3600


def make_corpus(
    name: str, clips: Sequence[Floats], labels: Sequence[int], speakers: Sequence[str], indices: Sequence[int],
    files: Sequence[str], synthetic: bool,
) -> Corpus:  # fmt: skip
    """A corpus of clips (T,) at 8 kHz; its hash is that of the waveforms."""
    waveforms = np.stack([pad_or_trim(clip) for clip in clips])
    return Corpus(
        name=name, waveforms=waveforms, lengths=np.array([min(len(c), NUM_SAMPLES) for c in clips], dtype=np.int64),
        labels=np.array(labels, dtype=np.int64), speakers=tuple(speakers), indices=np.array(indices, dtype=np.int64),
        files=tuple(files), data_hash=hashlib.sha256(waveforms.tobytes()).hexdigest(), synthetic=synthetic,
        official_split=False,
    )  # fmt: skip


def select_clips(corpus: Corpus, rows: Ints) -> Corpus:
    """The clips at these positions."""
    columns: dict[str, Any] = {name: getattr(corpus, name)[rows] for name in ("lengths", "labels", "indices")}
    for name in ("speakers", "files", "parts"):
        column = getattr(corpus, name)
        columns[name] = tuple(column[row] for row in rows) if column else ()
    return replace(corpus, waveforms=take(corpus.waveforms, rows), **columns)


def append_clips(corpus: Corpus, *others: Corpus, **changes: Any) -> Corpus:
    """`corpus` with the clips of `others` after its own, undivided; `changes` are fields of the result."""
    every = (corpus, *others)
    columns: dict[str, Any] = {"parts": ()}
    for name in ("lengths", "labels", "indices"):
        columns[name] = np.concatenate([getattr(each, name) for each in every])
    for name in ("speakers", "files"):
        columns[name] = tuple(chain.from_iterable(getattr(each, name) for each in every))
    return replace(corpus, waveforms=concatenate([each.waveforms for each in every]), **columns | changes)
