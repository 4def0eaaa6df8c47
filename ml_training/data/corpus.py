"""A corpus in memory: every clip as one second of samples, with what is known about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE
from ml_training.results import Floats, Ints, SkippedClip

NOT_A_DIGIT = -1  # label of a clip that says none
OFFICIAL_TEST_INDICES = 5  # recordings 0-4 of every speaker and digit are FSDD's test part
UNKNOWN_SPEAKER = "unknown"
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Corpus:
    """N labelled clips and where they came from.

    A clip shorter than the second lies in its middle: it starts at (8000 - length) // 2.
    """

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
    sources: tuple[str, ...] = ()  # data hashes of the recordings it was put together from; empty for one source
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
        """(N,) which clips are of the test part of its own; only where there is an `official_split`."""
        return np.asarray(self.parts) == TEST if self.parts else self.indices < OFFICIAL_TEST_INDICES

    @property
    def hours(self) -> float:
        """Hours of recorded sound, padding left out."""
        return float(self.lengths.sum()) / SAMPLE_RATE / 3600
