"""State of one stream: filters, gates, the networks' states, recent audio."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, Floats
from digit_detector.spotter_file import BLOCK, FRAMES, HOP
from digit_detector.streaming.config import DetectorConfig
from digit_detector.streaming.high_pass import initial_state
from digit_detector.streaming.peak_picker import Candidate, Detection, PeakPicker
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.samples import SampleReader
from digit_detector.streaming.spotter import SpotterState
from digit_detector.streaming.vad import EnergyGate, SpeechGate

BLOCK_SECONDS = BLOCK / SAMPLE_RATE


class StreamState:
    """Everything kept between two blocks of a stream. Blocks are numbered from 0."""

    def __init__(
        self, config: DetectorConfig, vad_size: int, initial_spotter_state: Callable[[], SpotterState]
    ) -> None:
        self._config = config
        self._vad_size, self._initial_spotter_state = vad_size, initial_spotter_state
        self.reader = SampleReader()
        self.resampler = Resampler(config)
        self._pending = np.zeros(0, dtype=np.float32)  # less than a block
        self._last = np.float32(0.0)  # sample
        self.filter_state = initial_state()  # of the high-pass
        self.energy = EnergyGate(config)
        self.speech = SpeechGate(config)
        self.peaks = PeakPicker(config)
        self.last_detection: Detection | None = None
        self.committed_until = 0  # sample at which the last word of at least commit_confidence ended
        self.vad_state = np.zeros(0, dtype=np.float32)
        self.spotter_state = initial_spotter_state()
        self.voice = 0.0  # voice activity of the last block
        self.blocks = 0  # received so far
        self._next_vad = self._next_spotter = 0  # first block that voice activity and the spotter have not seen
        self._was_open = False
        self._audio = np.zeros((config.history_blocks, BLOCK), dtype=np.float32)
        self._voices = np.zeros(config.history_blocks, dtype=np.float32)

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
        size = round(self._config.flush_seconds * SAMPLE_RATE)
        return [*held, *self.split_blocks(np.full(size, self._last, dtype=np.float32))]  # zeros might be a step

    def push(self, block: Floats) -> list[int]:
        """Store the next block, filtered -> the numbers of the blocks that voice activity is due for."""
        self._audio[self.blocks % len(self._audio)] = block
        self._voices[self.blocks % len(self._voices)] = 0.0
        now = self.blocks
        self.blocks += 1
        if not self.energy.update(block):
            self._was_open, self.voice = False, 0.0
            self.speech.close()
            return []
        if not self._was_open:
            self._was_open = True
            self._next_vad = max(self._next_vad, now - self._config.vad_preroll_blocks, 0)
            self.vad_state = np.zeros(self._vad_size, dtype=np.float32)
        first, self._next_vad = self._next_vad, now + 1
        return list(range(first, now + 1))

    def on_vad(self, number: int, voice: float) -> list[int]:
        """Take a block's voice activity -> the numbers of the blocks that the spotter is due for."""
        self.voice = self._voices[number % len(self._voices)] = voice
        was_open = self.speech.is_open
        if not self.speech.update(voice):
            return []
        if not was_open:
            self.peaks.reset()
            self._next_spotter = max(self._next_spotter, number - self._config.spotter_preroll_blocks, 0)
            self.spotter_state = self._initial_spotter_state()
        first, self._next_spotter = self._next_spotter, number + 1
        return list(range(first, number + 1))

    def on_spotter(self, number: int, posteriors: Floats, largest: float, durations: Floats) -> list[Candidate]:
        """Take a block's posteriors (2, C), their maximum, and durations (2,) in frames -> candidates decided by it."""
        if self.peaks.skip_low(posteriors, largest):
            return []
        candidates = (self.peaks.push(number * FRAMES + i, posteriors[i], float(durations[i])) for i in range(FRAMES))
        return [candidate for candidate in candidates if candidate is not None]

    def block(self, number: int) -> Floats:
        """One of the last blocks, (256,)."""
        block: Floats = self._audio[number % len(self._audio)]
        return block

    def max_voice(self, candidate: Candidate) -> float:
        """The largest voice activity between the beginning of a word and the frame that decided it."""
        first = max(int(candidate.first) // FRAMES, self.blocks - len(self._voices), 0)
        numbers = range(first, candidate.frame // FRAMES + 1)
        return float(max(self._voices[number % len(self._voices)] for number in numbers))

    def word_audio(self, candidate: Candidate) -> Floats:
        """(T,) samples of a candidate with a margin on both sides, one second at most.

        A word committed before it is left out: classifiers reject two digits in one second.
        """
        config = self._config
        end = min(int(candidate.last * HOP + config.margin_after_seconds * SAMPLE_RATE), self.blocks * BLOCK)
        committed = min(self.committed_until, int((candidate.first - config.min_margin_frames) * HOP))
        wanted = int(candidate.first * HOP - config.margin_before_seconds * SAMPLE_RATE)
        begin = max(wanted, committed, end - NUM_SAMPLES, (self.blocks - len(self._audio)) * BLOCK, 0)
        blocks = [self.block(number) for number in range(begin // BLOCK, -(-end // BLOCK))]
        return np.concatenate(blocks)[begin % BLOCK :][: end - begin]
