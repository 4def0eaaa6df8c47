"""Sound of any rate, in pieces of any size, as samples at 8 kHz."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.spotter_file import BLOCK

# A windowed sinc of linear phase: what lies below FLAT of half the lower rate passes, what lies above half of it is
# ATTENUATION dB down. It delays by 4.5 ms. soxr's streams hold back 11 to 103 ms for as steep a filter, because they
# work in large blocks. local/resampler.js is the same filter.
FLAT = 0.9
ATTENUATION = 60.0
GROUP = 64  # outputs that one matrix computes
_MOST_MATRICES = 5  # of a rate; 11,025 and 44,100 Hz have as many, whole multiples of 8,000 one
_HIGHEST_RATE = 192_000  # beyond, matrices become large
_EMPTY = np.zeros(0, dtype=np.float32)


class Resampler:
    """One stream's; however its sound is cut into pieces, the samples that come out are the same bits."""

    def __init__(self) -> None:
        self._rate = SAMPLE_RATE
        self._stream: _Sinc | _Soxr | None = None

    def feed(self, samples: Floats, rate: int) -> Floats:
        """(T,) samples at `rate` -> as many at 8 kHz as follow from all until now. A new rate ends what was begun."""
        before = self.end() if rate != self._rate else _EMPTY
        self._rate = rate
        if rate == SAMPLE_RATE:
            return np.concatenate([before, samples]) if len(before) else samples
        if self._stream is None:
            up = SAMPLE_RATE // math.gcd(SAMPLE_RATE, rate)
            simple = up // math.gcd(up, GROUP) <= _MOST_MATRICES and rate <= _HIGHEST_RATE
            self._stream = _Sinc(rate) if simple else _Soxr(rate)
        made = self._stream.feed(samples)
        return np.concatenate([before, made]) if len(before) else made

    def end(self) -> Floats:
        """What is still held back, (T,) at 8 kHz; then nothing is left of what was fed."""
        made = _EMPTY if self._stream is None else self._stream.end()
        self._stream = None
        return made


class _Sinc:
    """The filter of `matrices`. Outputs come BLOCK at a time, as the networks take them.

    The bits of a matrix product depend on its shape: all products have one shape, however sound is cut.
    """

    def __init__(self, rate: int) -> None:
        divisor = math.gcd(rate, SAMPLE_RATE)
        self._up, self._down = SAMPLE_RATE // divisor, rate // divisor
        self._half, self._matrices = matrices(self._up, self._down)
        self._waiting: list[Floats] = []  # what the next outputs need
        self._count = 0  # samples of that
        self._begin = 0  # which sample is the first of them; `half` - 1 made-up ones count
        self._taken = self._given = 0
        self._last = np.float32(0.0)
        _, self._needed = self._ahead()

    def feed(self, samples: Floats) -> Floats:
        if not len(samples):
            return _EMPTY
        if not self._taken:
            self._add(np.full(self._half - 1, samples[0], dtype=np.float32))  # an offset is there from the beginning
        self._taken += len(samples)
        self._last = samples[-1]
        self._add(samples)
        return self._run()

    def end(self) -> Floats:
        """The sound is followed by its last sample, again and again."""
        missing = (2 * self._taken * self._up + self._down) // (2 * self._down) - self._given
        if missing <= 0:
            return _EMPTY
        self._add(np.full(self._needed + (missing + BLOCK) * self._down // self._up, self._last, dtype=np.float32))
        return self._run()[:missing]

    def _add(self, samples: Floats) -> None:
        self._waiting.append(samples)
        self._count += len(samples)

    def _run(self) -> Floats:
        """All whole blocks that what waits is enough for."""
        if self._count < self._needed:
            return _EMPTY
        sound = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        made, at = [], 0
        while len(sound) - at >= self._needed:
            made.append(self._block(sound, at))
            self._given += BLOCK
            at, self._needed = self._ahead()
            at -= self._begin
        self._waiting = [sound[at:].copy()]  # a view would keep all of it
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
        first, phase = self._given // GROUP, self._given * self._down % self._up
        places = [at + (phase + i * self._down) // self._up for i in range(0, BLOCK, GROUP)]
        return np.concatenate([
            sound[place : place + width] @ self._matrices[(first + i) % len(self._matrices)]
            for i, place in enumerate(places)
        ])  # fmt: skip

    def _ahead(self) -> tuple[int, int]:
        """Where the window of the next output begins, and how many samples from there a block of them takes."""
        at = self._given * self._down // self._up
        last = (self._given + BLOCK - GROUP) * self._down // self._up
        return at, last - at + self._matrices.shape[1]


@lru_cache(maxsize=8)
def matrices(up: int, down: int) -> tuple[int, Floats]:
    """Half a window's length, and (M, W, GROUP) coefficients that W samples are multiplied with for GROUP outputs.

    Outputs are `up` / `down` of the samples. Group g of them takes matrix g modulo M. Kaiser's formulas for the
    window's length and shape: A. V. Oppenheim, R. W. Schafer, Discrete-Time Signal Processing, section 7.5.
    """
    lower = min(up / down, 1.0)  # of the two rates, as a share of the one that comes in
    half = math.ceil((ATTENUATION - 7.95) / (2.285 * np.pi * lower * (1.0 - FLAT)) / 2.0)
    beta = 0.1102 * (ATTENUATION - 8.7)
    cutoff = lower * (1.0 + FLAT) / 4.0  # as a share of the rate that comes in
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
    """For rates that would need many matrices, or large ones: nobody's sound card has them."""

    def __init__(self, rate: int) -> None:
        import soxr

        self._stream: Any = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="MQ")

    def feed(self, samples: Floats) -> Floats:
        made: Floats = self._stream.resample_chunk(samples)
        return made

    def end(self) -> Floats:
        return np.asarray(self._stream.resample_chunk(_EMPTY, last=True), dtype=np.float32)
