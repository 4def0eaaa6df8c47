"""Training clips in memory or on disk, and batches of them: digits beside clips without a digit, augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ml_training.config import AugmentationConfig
from ml_training.data.augmentation import augment
from ml_training.data.augmentation.mixup import mix
from ml_training.data.corpus import NOT_A_DIGIT
from ml_training.data.digit_corruption import corrupt_digits
from ml_training.data.feature_cache import AnyArray
from ml_training.data.mapped_arrays import take
from ml_training.pipelines.base import DigitModel
from ml_training.results import Ints
from ml_training.training.seeding import CPU


@dataclass(frozen=True, eq=False)
class MappedRows:
    """Rows of a memory-mapped array; indexing reads the requested ones into a tensor on `device`."""

    array: AnyArray  # (M, ...)
    rows: Ints  # (N,) positions in it
    device: torch.device = CPU

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return torch.from_numpy(take(self.array, self.select(index).rows)).to(self.device)

    def select(self, index: Tensor | slice) -> MappedRows:
        """Some of the rows, by position or mask, without reading them."""
        return replace(self, rows=self.rows[index if isinstance(index, slice) else index.cpu().numpy()])

    def to(self, device: torch.device) -> MappedRows:
        return replace(self, device=device)


Rows = Tensor | MappedRows


@dataclass(frozen=True)
class Clips:
    """N clips of one part of the data, in memory or on disk."""

    waveforms: Rows  # (N, 8000) float32
    lengths: Tensor  # (N,) int64, samples before padding
    labels: Tensor  # (N,) int64, NOT_A_DIGIT for clips without a digit
    features: Rows | None = None  # (N, ...), precomputed for one model in one mode

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def inputs(self) -> Rows:
        """The features if precomputed, otherwise the waveforms."""
        return self.waveforms if self.features is None else self.features

    def select(self, mask: Tensor) -> Clips:
        features = None if self.features is None else _select(self.features, mask)
        return Clips(_select(self.waveforms, mask), self.lengths[mask], self.labels[mask], features)

    def to(self, device: torch.device) -> Clips:
        features = None if self.features is None else self.features.to(device)
        return Clips(self.waveforms.to(device), self.lengths.to(device), self.labels.to(device), features)


def _select(rows: Rows, mask: Tensor) -> Rows:
    return rows.select(mask) if isinstance(rows, MappedRows) else rows[mask]


class Counts(NamedTuple):
    """How many clips a batch has, and how many of them are digits."""

    digits: int
    clips: int


class Batch(NamedTuple):
    """B clips of T samples, the D digits first; or a micro-batch of them."""

    inputs: Tensor  # (B, T) augmented waveforms, or (B, ...) precomputed features
    labels: Tensor  # (D,)
    targets: Tensor  # (D,) labels, or (D, 10) probabilities where clips were mixed
    precomputed: bool = False
    whole: Counts | None = None  # of the batch that this micro-batch is a part of

    @property
    def total(self) -> Counts:
        """The counts of the whole batch."""
        return self.whole or Counts(len(self.labels), len(self.inputs))

    def split(self, count: int) -> list[Batch]:
        """`count` micro-batches of nearly equal size and share of digits; `count` is at most B."""
        digits, clips = len(self.labels), len(self.inputs)
        ends = [(digits * end // clips, end) for end in (clips * i // count for i in range(count + 1))]
        parts = []
        for (first, start), (last, end) in pairwise(ends):
            own = slice(first, last)
            inputs = torch.cat([self.inputs[own], self.inputs[digits:][start - first : end - last]])
            parts.append(Batch(inputs, self.labels[own], self.targets[own], self.precomputed, self.total))
        return parts


def count_negatives(digits: int, ratio: float) -> int:
    """How many clips without a digit accompany `digits` clips when they are `ratio` of all."""
    return round(digits * ratio / (1.0 - ratio))


@dataclass(frozen=True)
class BatchMaker:
    """Batches of the digits at some positions, with negatives drawn by torch's global generator.

    Half of the negatives are clips without a digit, half corrupted digits; all if there are no such clips. Clips with
    precomputed features are not augmented; the features of corrupted digits are computed by `model`.
    """

    digits: Clips
    others: Clips  # without a digit
    negative_ratio: float
    augmentation: AugmentationConfig
    model: DigitModel | None = None

    @classmethod
    def of(
        cls, clips: Clips, ratio: float, augmentation: AugmentationConfig, model: DigitModel | None = None
    ) -> BatchMaker:
        """Of clips with and without a digit."""
        is_digit = clips.labels != NOT_A_DIGIT
        return cls(clips.select(is_digit), clips.select(~is_digit), ratio, augmentation, model)

    @torch.no_grad()
    def batch(self, positions: Tensor) -> Batch:
        digits, others, augmentation = self.digits, self.others, self.augmentation
        labels = targets = digits.labels[positions]
        precomputed = digits.features is not None
        inputs, lengths = digits.inputs[positions], digits.lengths[positions]
        if negatives := count_negatives(len(labels), self.negative_ratio):
            corrupted, spans, chosen = self._draw_negatives(negatives)
            if precomputed:
                assert self.model is not None
                features = self.model.features(corrupted, False)
                assert features is not None
                corrupted = features
            more = [others.inputs[chosen]] if len(chosen) else []
            inputs = torch.cat([inputs, corrupted, *more])
            lengths = torch.cat([lengths, spans, others.lengths[chosen]])
        if not precomputed and augmentation.enabled:
            inputs = augment(inputs, lengths, augmentation)
        if not precomputed and augmentation.mixes:
            inputs[: len(labels)], targets = mix(inputs[: len(labels)], labels, augmentation)
        return Batch(inputs, labels, targets, precomputed)

    def _draw_negatives(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupted digits and their lengths, and the positions of the clips without a digit: `count` together."""
        taken, digits = count // 2 if len(self.others) else 0, self.digits
        device = digits.labels.device
        corrupted = torch.randint(len(digits), (count - taken,), device=device)
        clips = digits.waveforms[corrupted], digits.lengths[corrupted], digits.labels[corrupted]
        waveforms, lengths = corrupt_digits(*clips, self.augmentation.noise_dir)
        chosen = torch.randint(len(self.others), (taken,), device=device) if taken else corrupted[:0]
        return waveforms, lengths, chosen
