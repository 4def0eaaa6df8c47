"""Change of tempo without change of pitch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ml_training.results import Floats

_HOP = 80  # samples of output between grains, 10 ms
_GRAIN = 2 * _HOP
_SEARCH = 48  # samples by which a grain may move


def change_tempo(samples: Floats, factor: float) -> Floats:
    """(T,) samples at 8 kHz played `factor` times as fast, about T / factor of them.

    Waveform similarity overlap-add (Verhelst and Roelands, 1993): grains of 20 ms, each moved by up to 6 ms to where it
    continues the one before it best.
    """
    count = int((len(samples) - _GRAIN - 2 * _SEARCH) / (_HOP * factor))
    if count < 2:
        return samples
    window = np.hanning(_GRAIN + 1)[:-1].astype(np.float32)
    padded = np.pad(samples.astype(np.float32), (_SEARCH, _GRAIN + _SEARCH))
    output = np.zeros(count * _HOP + _GRAIN, dtype=np.float32)
    expected: NDArray[np.float32] = padded[_SEARCH : _SEARCH + _GRAIN]
    for i in range(count):
        at = int(i * _HOP * factor)
        region = padded[at : at + _GRAIN + 2 * _SEARCH]
        place = at + int(np.correlate(region, expected, mode="valid").argmax())
        output[i * _HOP : i * _HOP + _GRAIN] += window * padded[place : place + _GRAIN]
        expected = padded[place + _HOP : place + _HOP + _GRAIN]
    return output
