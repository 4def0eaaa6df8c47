"""Sound of any rate, in pieces of any size, as samples at 8 kHz."""

from __future__ import annotations

from typing import Any

import numpy as np

from ml_training.audio import LOUDEST, MAX_RATE, MIN_RATE, SAMPLE_RATE, Floats, as_floats
from ml_training.errors import NonFiniteAudioError, UndecodableAudioError

# Of soxr's qualities the one that waits least for what comes (20 to 30 ms instead of 80): 3 dB less at 3.3 kHz.
_QUALITY = "LQ"
_EMPTY = np.zeros(0, dtype=np.float32)


class Resampler:
    """One stream's; however its sound is cut into pieces, the samples that come out are the same bits."""

    def __init__(self) -> None:
        self._rate = SAMPLE_RATE
        self._stream: Any = None

    def feed(self, samples: Floats, rate: int) -> Floats:
        """(T,) samples at `rate` -> as many at 8 kHz as follow from all until now. A new rate ends what was begun."""
        before = self.end() if rate != self._rate else _EMPTY
        self._rate = rate
        if rate == SAMPLE_RATE:
            return np.concatenate([before, samples]) if len(before) else samples
        if self._stream is None:
            import soxr

            self._stream = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=_QUALITY)
        made = self._stream.resample_chunk(samples)
        return np.concatenate([before, made])

    def end(self) -> Floats:
        """What soxr still holds back, (T,) at 8 kHz; then nothing is left of what was fed."""
        made = _EMPTY if self._stream is None else self._stream.resample_chunk(_EMPTY, last=True)
        self._stream = None
        return np.asarray(made, dtype=np.float32)


def as_samples(samples: object, rate: object) -> tuple[Floats, int]:
    """What a caller feeds, checked: (T,) or (T, channels) floats around [-1, 1] or integers of full scale -> (T,).

    Raises UndecodableAudioError for a rate, shape or type that cannot be, NonFiniteAudioError for NaN or infinities.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or not MIN_RATE <= rate <= MAX_RATE:
        raise UndecodableAudioError(
            f"sample_rate: expected a whole number of Hz from {MIN_RATE} to {MAX_RATE}, got {rate!r}"
        )
    if isinstance(samples, (bytes, bytearray)):
        raise UndecodableAudioError(
            f"got {type(samples).__name__}: expected numbers, as of np.frombuffer(data, np.int16)"
        )
    try:
        array = np.asarray(samples)
    except ValueError as error:  # lists of different lengths
        raise UndecodableAudioError(f"samples are no array: {error}") from error
    if array.dtype.kind in "iu" and array.itemsize == 8 and array.any():  # what numpy makes of a list
        raise UndecodableAudioError(
            "whole numbers of 64 bits have no full scale: pass them as np.array(samples, np.int16)"
        )
    if array.ndim == 2:
        array = array if array.shape[1] <= 32 else array.T
    elif array.ndim != 1:
        raise UndecodableAudioError(f"samples have shape {array.shape}: expected (samples,) or (samples, channels)")
    if array.size == 0:
        return _EMPTY, int(rate)
    wave = array if array.dtype == np.float32 else as_floats(array)
    if wave.ndim == 2:
        with np.errstate(over="ignore", invalid="ignore"):  # of which more below
            wave = wave.mean(axis=1, dtype=np.float32)
    if array.dtype.kind in "iu":
        return wave, int(rate)
    if not np.abs(wave).max() <= LOUDEST:  # NaN is not, either
        at = int(np.argmax(~np.isfinite(wave) | (np.abs(wave) > LOUDEST)))
        raise NonFiniteAudioError(
            f"sample {at} of this piece is {wave[at]}: expected numbers around [-1, 1]; nothing of the piece was heard"
        )
    return wave, int(rate)
