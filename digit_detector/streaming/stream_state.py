"""One stream of sound and all that is known of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, Floats
from digit_detector.spotter_file import BLOCK, FRAMES, HOP
from digit_detector.streaming.high_pass import initial_state
from digit_detector.streaming.peak_picker import Candidate, Detection, PeakPicker
from digit_detector.streaming.resampler import Resampler
from digit_detector.streaming.samples import SampleReader
from digit_detector.streaming.spotter import SpotterState
from digit_detector.streaming.thresholds import Thresholds
from digit_detector.streaming.vad import EnergyGate, SpeechGate

BLOCK_SECONDS = BLOCK / SAMPLE_RATE
VOICE_PREROLL = 10  # blocks before the energy gate opened that voice activity hears, 0.3 s
WORD_PREROLL = 20  # blocks before speech was noticed that the spotter hears, 0.6 s
_ENERGY_HELD = 20  # blocks
_SPEECH_BEGINS = 0.005  # voice activity from which the spotter listens: a word begins with little
_SPEECH_HELD = 15  # blocks; a digit is said by the spotter sooner after its end
_AFTER_THE_END = 2 * SAMPLE_RATE // 5  # samples
_KEPT = 64  # blocks, 2 s: a word, and what was said of it later
BEFORE, AFTER = 0.35, 0.18  # seconds before and after a word that the classifiers hear with it
_CLOSE = 2  # frames before it that they hear in any case


class StreamState:
    """What lies between one block and the next. Blocks are numbered from 0."""

    def __init__(self, thresholds: Thresholds, voice_size: int, quiet: Callable[[], SpotterState]) -> None:
        self._voice_size, self._quiet = voice_size, quiet
        self.reader = SampleReader()
        self.resampler = Resampler()
        self.pending = np.zeros(0, dtype=np.float32)  # less than a block
        self._last = np.float32(0.0)  # sample
        self.filter_state = initial_state()  # of the high-pass
        self.energy = EnergyGate(_ENERGY_HELD)
        self.speech = SpeechGate(_SPEECH_BEGINS, _SPEECH_HELD)
        self.words = PeakPicker(thresholds.spotted)
        self.reported: Detection | None = None  # the last
        self.committed_until = 0  # the sample at which the last digit that is hardly doubted ended
        self.voice_state = np.zeros(0, dtype=np.float32)
        self.word_state = quiet()
        self.voice = 0.0  # of the last block
        self.blocks = 0  # how many came
        self._voiced = self._spotted = 0  # the next block that voice activity and the spotter hear
        self._was_open = False
        self._kept = np.zeros((_KEPT, BLOCK), dtype=np.float32)
        self._voices = np.zeros(_KEPT, dtype=np.float32)

    def cut(self, samples: Floats) -> list[Floats]:
        """More samples (T,) at 8 kHz -> the blocks that are whole now."""
        whole = np.concatenate([self.pending, samples])
        count = len(whole) // BLOCK
        if len(samples):
            self._last = samples[-1]
        self.pending = whole[count * BLOCK :].copy()  # a view would keep all of it
        return [whole[i * BLOCK : (i + 1) * BLOCK] for i in range(count)]

    def ending(self) -> list[Floats]:
        """The last blocks of a stream that has ended: what was held back, and time for its last word to be told."""
        held = self.cut(self.resampler.end())
        more = np.full(_AFTER_THE_END, self._last, dtype=np.float32)  # zeros might be a step
        return [*held, *self.cut(more)]

    def take(self, block: Floats) -> list[int]:
        """Hear the next block, filtered; -> the blocks that voice activity must hear now, in their order."""
        self._kept[self.blocks % _KEPT] = block
        self._voices[self.blocks % _KEPT] = 0.0
        now = self.blocks
        self.blocks += 1
        if not self.energy.hears(block):
            self._was_open, self.voice = False, 0.0
            self.speech.close()
            return []
        if not self._was_open:
            self._was_open = True
            self._voiced = max(self._voiced, now - VOICE_PREROLL)
            self.voice_state = np.zeros(self._voice_size, dtype=np.float32)
        first, self._voiced = self._voiced, now + 1
        return list(range(first, now + 1))

    def heard_voice(self, number: int, voice: float) -> list[int]:
        """What voice activity says of a block -> the blocks that the spotter must hear now, in their order."""
        self.voice = self._voices[number % _KEPT] = voice
        was_open = self.speech.is_open
        if not self.speech.hears(voice):
            return []
        if not was_open:
            self.words.reset()
            self._spotted = max(self._spotted, number - WORD_PREROLL, 0)
            self.word_state = self._quiet()
        first, self._spotted = self._spotted, number + 1
        return list(range(first, number + 1))

    def heard_words(self, number: int, probabilities: Floats, largest: float, durations: Floats) -> list[Candidate]:
        """What the spotter says of a block: (2, 10), the largest of these, and (2,) -> the digits that it decides."""
        found: list[Candidate] = []
        if self.words.pass_quiet(probabilities, largest):
            return found
        for i in range(FRAMES):
            candidate = self.words.frame(number * FRAMES + i, probabilities[i], float(durations[i]))
            if candidate is not None:
                found.append(candidate)
        return found

    def block(self, number: int) -> Floats:
        """One of the last blocks, (256,)."""
        block: Floats = self._kept[number % _KEPT]
        return block

    def voice_of(self, candidate: Candidate) -> float:
        """The largest voice activity from the beginning of a word until it was known."""
        first = max(int(candidate.first) // FRAMES, self.blocks - _KEPT, 0)
        return float(max(self._voices[number % _KEPT] for number in range(first, candidate.frame // FRAMES + 1)))

    def word(self, candidate: Candidate) -> Floats:
        """What a candidate sounds like: (T,), a second at most, with a little before and after it.

        What another digit explains is left out: two in one second would be taken for none.
        """
        end = min(int(candidate.last * HOP + AFTER * SAMPLE_RATE), self.blocks * BLOCK)
        other = min(self.committed_until, int((candidate.first - _CLOSE) * HOP))
        wanted = int(candidate.first * HOP - BEFORE * SAMPLE_RATE)
        begin = max(wanted, other, end - NUM_SAMPLES, (self.blocks - _KEPT) * BLOCK, 0)
        blocks = [self.block(number) for number in range(begin // BLOCK, -(-end // BLOCK))]
        return np.concatenate(blocks)[begin % BLOCK :][: end - begin]
