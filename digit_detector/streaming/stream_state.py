"""State of one stream: filters, the acoustic model's state, the decoder."""

from __future__ import annotations

import math

import numpy as np

from digit_detector.acoustic_file import BLOCK
from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.decoder import Decoder
from digit_detector.streaming.high_pass import initial_state
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.samples import SampleReader

_LEAST_POWER = 1e-12  # -120 dB of full scale


class StreamState:
    """Everything kept between two blocks of a stream."""

    def __init__(self, config: DetectorConfig, model_state: Floats) -> None:
        self._flush_samples = round(config.flush_seconds * SAMPLE_RATE)
        self.reader = SampleReader()
        self.resampler = Resampler(config)
        self._pending = np.zeros(0, dtype=np.float32)  # less than a block
        self._last = np.float32(0.0)  # sample
        self.filter_state = initial_state()  # of the high-pass
        self.model_state = model_state  # (S,)
        self.decoder = Decoder(config)
        self.voice = 0.0  # speech activity of the last block
        self.power = 0.0  # of the last block

    @property
    def blocks(self) -> int:
        """Blocks processed so far."""
        return self.decoder.frame

    @property
    def level_db(self) -> float:
        """Level of the last block in dB of full scale."""
        return 10.0 * math.log10(max(self.power, _LEAST_POWER))

    def split_blocks(self, samples: Floats) -> list[Floats]:
        """Append (T,) samples at 8 kHz -> the complete blocks, (256,) each."""
        whole = np.concatenate([self._pending, samples])
        count = len(whole) // BLOCK
        if len(samples):
            self._last = samples[-1]
        self._pending = whole[count * BLOCK :].copy()  # a view would keep all of it
        return [whole[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]

    def flush_blocks(self) -> list[Floats]:
        """The last blocks of a stream: what the resampler held back, and padding in which its last word is decided."""
        held = self.split_blocks(self.resampler.flush())
        return [*held, *self.split_blocks(np.full(self._flush_samples, self._last, dtype=np.float32))]  # no step to 0
