"""Streaming resampling to 8 kHz, independent of how the input is cut.

A linear-phase windowed sinc, by default flat up to 0.9 of the lower Nyquist frequency and 60 dB down above it, which
delays by 4.5 ms: soxr's streams hold back 11 to 103 ms for as steep a filter, because they work in large blocks.
webapp/static/local/resampler.js is the same filter.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from digit_detector.acoustic_file import BLOCK
from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.streaming.config import DetectorConfig

GROUP = 64  # outputs per matrix
_MOST_MATRICES = 5  # of a rate; 11,025 and 44,100 Hz need 5, whole multiples of 8,000 Hz need 1
_HIGHEST_RATE = 192_000  # Hz; above it matrices become large
_EMPTY = np.zeros(0, dtype=np.float32)


class Resampler:
    """Of one stream; the output has the same bits however the input is cut."""

    def __init__(self, config: DetectorConfig) -> None:
        self._filter = config.resampler_flatness, config.resampler_attenuation_db
        self._rate = SAMPLE_RATE
        self._stream: _Sinc | _Soxr | None = None

    def feed(self, samples: Floats, rate: int) -> Floats:
        """Resample (T,) samples at `rate` Hz; returns the output so far. A new rate flushes the old."""
        before = self.flush() if rate != self._rate else _EMPTY
        self._rate = rate
        if rate == SAMPLE_RATE:
            return np.concatenate([before, samples]) if len(before) else samples
        if self._stream is None:
            up = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)
            simple = up // math.gcd(up, GROUP) <= _MOST_MATRICES and rate <= _HIGHEST_RATE
            self._stream = _Sinc(rate, *self._filter) if simple else _Soxr(rate)
        output = self._stream.feed(samples)
        return np.concatenate([before, output]) if len(before) else output

    def flush(self) -> Floats:
        """The samples still held back, (T,) at 8 kHz; resets the resampler."""
        output = _EMPTY if self._stream is None else self._stream.flush()
        self._stream = None
        return output


class _Sinc:
    """The filter of `design_filter`. Outputs come BLOCK at a time, as the networks take them.

    The bits of a matrix product depend on its shape: all products have one shape, however sound is cut.
    """

    def __init__(self, rate: int, flatness: float, attenuation_db: float) -> None:
        divisor = math.gcd(rate, SAMPLE_RATE)
        self._up, self._down = SAMPLE_RATE // divisor, rate // divisor
        self._half, self._matrices = design_filter(self._up, self._down, flatness, attenuation_db)
        self._buffer: list[Floats] = []  # input of the next outputs
        self._count = 0  # samples in the buffer
        self._begin = 0  # index of its first sample, counting `half` - 1 of padding
        self._consumed = self._produced = 0
        self._last = np.float32(0.0)
        _, self._needed = self._ahead()

    def feed(self, samples: Floats) -> Floats:
        if not len(samples):
            return _EMPTY
        if not self._consumed:
            self._add(np.full(self._half - 1, samples[0], dtype=np.float32))  # pads with the first sample
        self._consumed += len(samples)
        self._last = samples[-1]
        self._add(samples)
        return self._run()

    def flush(self) -> Floats:
        """Pads with the last sample."""
        missing = (2 * self._consumed * self._up + self._down) // (2 * self._down) - self._produced
        if missing <= 0:
            return _EMPTY
        self._add(np.full(self._needed + (missing + BLOCK) * self._down // self._up, self._last, dtype=np.float32))
        return self._run()[:missing]

    def _add(self, samples: Floats) -> None:
        self._buffer.append(samples)
        self._count += len(samples)

    def _run(self) -> Floats:
        """All whole blocks that the buffered samples determine."""
        if self._count < self._needed:
            return _EMPTY
        sound = self._buffer[0] if len(self._buffer) == 1 else np.concatenate(self._buffer)
        made, at = [], 0
        while len(sound) - at >= self._needed:
            made.append(self._block(sound, at))
            self._produced += BLOCK
            at, self._needed = self._ahead()
            at -= self._begin
        self._buffer = [sound[at:].copy()]  # a view would keep all of it
        self._begin += at
        self._count -= at
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _block(self, sound: Floats, at: int) -> Floats:
        """The next BLOCK outputs; the window of the first begins at `at`."""
        width = self._matrices.shape[1]
        if len(self._matrices) == 1:
            hop = GROUP * self._down // self._up
            windows = np.ndarray((BLOCK // GROUP, width), np.float32, sound, 4 * at, (4 * hop, 4))
            made: Floats = np.matmul(windows.copy(), self._matrices[0])
            return made.ravel()
        first, phase = self._produced // GROUP, self._produced * self._down % self._up
        places = [at + (phase + i * self._down) // self._up for i in range(0, BLOCK, GROUP)]
        return np.concatenate([
            sound[place : place + width] @ self._matrices[(first + i) % len(self._matrices)]
            for i, place in enumerate(places)
        ])  # fmt: skip

    def _ahead(self) -> tuple[int, int]:
        """Where the window of the next output begins, and how many samples from there a block of them takes."""
        at = self._produced * self._down // self._up
        last = (self._produced + BLOCK - GROUP) * self._down // self._up
        return at, last - at + self._matrices.shape[1]


@lru_cache(maxsize=8)
def design_filter(up: int, down: int, flatness: float, attenuation_db: float) -> tuple[int, Floats]:
    """Half a window's length, and (M, W, GROUP) coefficients that W samples are multiplied with for GROUP outputs.

    Outputs are `up` / `down` of the samples. Group g of them takes matrix g modulo M. Kaiser's formulas for the
    window's length and shape: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, section 7.5.
    """
    lower = min(up / down, 1.0)  # of the two rates, as a share of the one that comes in
    half = math.ceil((attenuation_db - 7.95) / (2.285 * np.pi * lower * (1.0 - flatness)) / 2.0)
    beta = 0.1102 * (attenuation_db - 8.7)
    cutoff = lower * (1.0 + flatness) / 4.0  # as a share of the rate that comes in
    count = up // math.gcd(up, GROUP)
    first = [group * GROUP * down % up for group in range(count)]  # where its first output lies after a sample, / up
    width = max((phase + (GROUP - 1) * down) // up for phase in first) + 2 * half
    made = np.zeros((count, width, GROUP), dtype=np.float32)
    for group, phase in enumerate(first):
        time = np.arange(width)[:, None] - (half - 1) - (phase + np.arange(GROUP) * down) / up
        window = np.i0(beta * np.sqrt(np.maximum(0.0, 1.0 - (time / half) ** 2))) / np.i0(beta)
        made[group] = np.where(np.abs(time) < half, 2.0 * cutoff * np.sinc(2.0 * cutoff * time) * window, 0.0)
    return half, made


class _Soxr:
    """For unusual rates, which would need many or large matrices."""

    def __init__(self, rate: int) -> None:
        import soxr

        self._stream: Any = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="MQ")

    def feed(self, samples: Floats) -> Floats:
        made: Floats = self._stream.resample_chunk(samples)
        return made

    def flush(self) -> Floats:
        return np.asarray(self._stream.resample_chunk(_EMPTY, last=True), dtype=np.float32)
