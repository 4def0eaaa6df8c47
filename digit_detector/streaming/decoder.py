"""From posteriors of tokens to digits: beam search over the utterance, endpoint, the two contexts.

A frame is a block of 32 ms. The search is CTC prefix beam search (Hannun et al. 2014): hypotheses are sequences of
tokens with the probabilities of all alignments that end in a blank or in their last token.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from digit_detector.acoustic_file import BLANK, BLOCK_SECONDS, DOUBLE, FIRST_DIGIT, OH, OTHER, TOKENS, TRIPLE
from digit_detector.streaming.config import ANY, DetectorConfig

_REPEATS = {DOUBLE: 2, TRIPLE: 3}  # of the digit that follows
_POSTERIOR_MARGIN = 1e-4  # from 0 and 1, within which log-odds are taken


@dataclass(frozen=True)
class Detection:
    """A digit in a stream; times in seconds since its first sample."""

    digit: int
    confidence: float  # probability that the digit is correct, 0 to 1
    start: float
    end: float  # of the word, about
    delay: float  # from `end` until it was reported

    @property
    def reported(self) -> float:
        """When it was reported."""
        return self.end + self.delay


@dataclass(frozen=True, slots=True)
class Token:
    """A token of a hypothesis."""

    token: int
    first: int  # frame in which it appears
    peak: int  # frame of its largest posterior
    posterior: float  # the largest


@dataclass(slots=True)
class Hypothesis:
    """A sequence of tokens and its probability, relative to the other hypotheses."""

    tokens: tuple[Token, ...]
    blank: float  # of alignments that end in a blank
    label: float  # of alignments that end in the last token

    @property
    def probability(self) -> float:
        return self.blank + self.label


class BeamSearch:
    """Prefix beam search over the frames of one utterance."""

    def __init__(self, config: DetectorConfig) -> None:
        self._width, self._floor = config.beam_width, config.posterior_floor
        self._weights = [1.0] * len(TOKENS)
        self._weights[OTHER] = config.other_weight
        self.hypotheses = [Hypothesis((), 1.0, 0.0)]

    @property
    def best(self) -> Hypothesis:
        return self.hypotheses[0]

    def push(self, posteriors: Sequence[float], frame: int) -> None:
        """Take the (15,) posteriors of the next frame."""
        blank = posteriors[BLANK]
        tokens = [token for token in range(1, len(TOKENS)) if posteriors[token] > self._floor]
        found: dict[tuple[int, ...], Hypothesis] = {}
        for hypothesis in self.hypotheses:
            sequence = tuple(each.token for each in hypothesis.tokens)
            last = hypothesis.tokens[-1] if hypothesis.tokens else None
            total = hypothesis.blank + hypothesis.label
            stayed = 0.0
            kept = hypothesis.tokens
            if last is not None:
                posterior = posteriors[last.token]
                stayed = hypothesis.label * posterior
                if posterior > last.posterior and frame - last.peak <= 2:
                    kept = (*kept[:-1], Token(last.token, last.first, frame, posterior))
            _add(found, sequence, kept, total * blank, stayed)
            for token in tokens:
                before = hypothesis.blank if last is not None and token == last.token else total
                posterior = posteriors[token]
                longer = (*hypothesis.tokens, Token(token, frame, frame, posterior))
                _add(found, (*sequence, token), longer, 0.0, before * posterior * self._weights[token])
        best = sorted(found.values(), key=lambda each: -each.probability)[: self._width]
        scale = 1.0 / sum(each.probability for each in best)
        for each in best:
            each.blank *= scale
            each.label *= scale
        self.hypotheses = best

    def commit(self, count: int) -> None:
        """Drop the first `count` tokens of the best hypothesis, and the hypotheses that begin with others."""
        prefix = [each.token for each in self.best.tokens[:count]]
        kept = [each for each in self.hypotheses if [token.token for token in each.tokens[:count]] == prefix]
        for each in kept:
            each.tokens = each.tokens[count:]
        self.hypotheses = kept


def _add(
    found: dict[tuple[int, ...], Hypothesis], sequence: tuple[int, ...], tokens: tuple[Token, ...], blank: float,
    label: float,
) -> None:  # fmt: skip
    """Add the probability of alignments to a hypothesis; its times are those of its most probable part."""
    known = found.get(sequence)
    if known is None:
        found[sequence] = Hypothesis(tokens, blank, label)
        return
    if blank + label > known.probability:
        known.tokens = tokens
    known.blank += blank
    known.label += label


class Decoder:
    """Digits of one stream, frame by frame."""

    def __init__(self, config: DetectorConfig) -> None:
        self._config = config
        self._any = config.context == ANY
        self._endpoint_frames = max(1, round(config.endpoint_seconds / BLOCK_SECONDS))
        self._pair_frames = config.pair_seconds / BLOCK_SECONDS
        self.frame = 0  # frames taken so far
        self._last_end = 0.0  # of the last detection, seconds
        self._guard_until = 0  # frame until which an utterance is dropped
        self._pending: list[Token] = []  # context any: "oh", "double", "triple" that wait for their digit
        self._start_utterance()

    def _start_utterance(self) -> None:
        self._search = BeamSearch(self._config)
        self._decided: list[Token] = []  # first tokens of the utterance
        self._silence = 0  # frames since the last speech
        self._first_speech: int | None = None
        self._others = 0.0  # sum of the largest posteriors of the other words so far
        self._other = 0.0  # largest posterior of the other word that is being said

    def push(self, posteriors: Sequence[float], speech: float) -> list[Detection]:
        """Take the (15,) posteriors and the speech activity of the next frame -> digits decided by it."""
        frame = self.frame
        self.frame += 1
        self._search.push(posteriors, frame)
        if posteriors[OTHER] >= self._config.other_floor:
            self._other = max(self._other, posteriors[OTHER])
        elif self._other:
            self._others += self._other
            self._other = 0.0
        if speech >= self._config.speech_threshold:
            self._silence = 0
            self._first_speech = frame if self._first_speech is None else self._first_speech
        else:
            self._silence += 1
        if self._any:
            return self._report_decided()
        self._decide(frame - self._config.commit_frames)
        started = self._first_speech is not None or self._decided or self._search.best.tokens
        begun = self._first_speech if self._first_speech is not None else frame
        too_long = frame - begun > self._config.max_utterance_seconds / BLOCK_SECONDS
        if started and (self._silence >= self._endpoint_frames or too_long):
            return self.end_utterance()
        if not started and self._silence > self._endpoint_frames:
            self._search = BeamSearch(self._config)
        return []

    def end_utterance(self) -> list[Detection]:
        """End the utterance here -> its digits; none if it has other words or their mean confidence is low."""
        if self._any:
            return self._report_decided(last=True)
        digits = self._digits([*self._decided, *self._search.best.tokens])
        others = self._others + self._other
        if others > self._config.other_ratio * (others + len(digits)):
            self._guard_until = self.frame - self._silence + round(self._config.guard_seconds / BLOCK_SECONDS)
            digits = []
        elif self._first_speech is not None and self._first_speech < self._guard_until:
            digits = []
        self._start_utterance()
        self._last_end = digits[-1].end if digits else self._last_end
        unclear = sum(digit.confidence for digit in digits) < self._config.digits_threshold * len(digits)
        return [] if unclear else digits

    @property
    def provisional(self) -> list[Detection]:
        """Digits of the utterance so far, which its end may change; always empty in context any."""
        return [] if self._any else self._digits([*self._decided, *self._search.best.tokens])

    def _decide(self, until: int) -> list[Token]:
        """Decide the tokens of the best hypothesis whose peak is not after a frame."""
        tokens = self._search.best.tokens
        count = sum(1 for token in tokens if token.peak <= until)
        if count:
            self._search.commit(count)
            self._decided += tokens[:count]
        return list(tokens[:count])

    def _report_decided(self, last: bool = False) -> list[Detection]:
        """Context any: the digits of the tokens that have just been decided."""
        tokens = [*self._pending, *self._decide(self.frame if last else self.frame - 1 - self._config.any_frames)]
        self._decided.clear()
        waiting = 0
        while waiting < len(tokens) and tokens[-1 - waiting].token in (OH, DOUBLE, TRIPLE):
            waiting += 1
        self._pending = tokens[len(tokens) - waiting :]
        digits = self._digits(tokens[: len(tokens) - waiting])
        if self._pending and self.frame - self._pending[-1].peak > self._pair_frames:
            self._pending = []
        self._last_end = digits[-1].end if digits else self._last_end
        return [digit for digit in digits if digit.confidence >= self._config.any_threshold]

    def _digits(self, tokens: Sequence[Token]) -> list[Detection]:
        """The digits of tokens: "oh" beside a digit is 0, "double" and "triple" repeat the digit that follows."""
        found: list[Detection] = []
        before = self._last_end
        for i, token in enumerate(tokens):
            if token.token in (OTHER, DOUBLE, TRIPLE) or (token.token == OH and not self._is_zero(tokens, i)):
                continue
            earlier = tokens[i - 1] if i else None
            doubled = earlier is not None and earlier.token in _REPEATS and self._are_near(earlier, token)
            count = _REPEATS[earlier.token] if earlier is not None and doubled else 1
            config = self._config
            end = max(before, (token.peak + 1) * BLOCK_SECONDS - config.token_seconds)
            start = max(before, end - count * config.word_seconds)
            confidence = self._calibrate(token.posterior)
            digit = 0 if token.token == OH else token.token - FIRST_DIGIT
            for k in range(count):
                first, last = (start + (end - start) * (k + j) / count for j in (0, 1))
                found.append(Detection(digit, confidence, first, last, self.frame * BLOCK_SECONDS - last))
            before = end
        return found

    def _is_zero(self, tokens: Sequence[Token], i: int) -> bool:
        """Whether the "oh" at `i` stands beside a digit or another "oh" that does."""
        beside = (each for each in (*tokens[max(0, i - 1) : i], *tokens[i + 1 : i + 2]))
        return any(each.token != OTHER and self._are_near(each, tokens[i]) for each in beside)

    def _are_near(self, one: Token, other: Token) -> bool:
        return abs(one.peak - other.peak) <= self._pair_frames

    def _calibrate(self, posterior: float) -> float:
        posterior = min(max(posterior, _POSTERIOR_MARGIN), 1.0 - _POSTERIOR_MARGIN)
        log_odds = math.log(posterior / (1.0 - posterior))
        return 1.0 / (1.0 + math.exp(-self._config.confidence_offset - self._config.confidence_scale * log_odds))
