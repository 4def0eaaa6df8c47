"""Segmentation by voice activity, then classification, compared with the spotter on the same streams.

    python benchmarks/cutting.py [--digits FOLDER] [--seed 0]

A segment lasts while Silero's voice activity stays above a threshold; segments longer than a word are split where they
are quietest. Each segment is classified as a whole. Streams are made of recordings (default:
$DIGIT_CORPORA_DIR/iitg_digits) over noise/train; both methods have a threshold of 60 false alarms an hour
on speech/tune.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, Floats, pad_or_trim
from digit_detector.evaluation.det import ScoredStreams, choose_threshold, run
from digit_detector.evaluation.streams import (
    join_connected,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
    sentences,
)
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.vad import load_voice_activity
from digit_detector.tune_threshold import SPEECH, strings_of

_BLOCK = 256
_LONGEST = 0.75  # seconds of a segment of one word
_SHORTEST = 0.12
_VOICE = 0.3
_MARGIN = 0.08  # seconds added before and after a segment
_ALARMS = 60.0


@dataclass(frozen=True)
class Segment:
    """Samples of a stream."""

    begin: int
    end: int


def segment(samples: Floats) -> list[Segment]:
    """Segments of speech, no longer than a word."""
    voice = load_voice_activity()
    state = np.zeros((1, voice.SIZE), dtype=np.float32)
    active: list[bool] = []
    for i in range(len(samples) // _BLOCK):
        probability, state = voice(samples[None, i * _BLOCK : (i + 1) * _BLOCK], state)
        active.append(bool(probability[0] >= (_VOICE / 2 if active and active[-1] else _VOICE)))
    edges = np.flatnonzero(np.diff([False, *active, False]))
    segments = []
    margin = int(_MARGIN * SAMPLE_RATE)
    for first, last in edges.reshape(-1, 2) * _BLOCK:
        segments += _split(samples, max(0, int(first) - margin), min(len(samples), int(last) + margin))
    return [each for each in segments if each.end - each.begin >= _SHORTEST * SAMPLE_RATE]


def _split(samples: Floats, begin: int, end: int) -> list[Segment]:
    """Split a segment where it is quietest until no part is too long."""
    if end - begin <= _LONGEST * SAMPLE_RATE:
        return [Segment(begin, end)]
    hop = SAMPLE_RATE // 100
    power = np.square(samples[begin:end]).reshape(-1)[: (end - begin) // hop * hop].reshape(-1, hop).mean(axis=1)
    smooth = np.convolve(power, np.hanning(7) / np.hanning(7).sum(), mode="same")
    inner = slice(int(0.15 * SAMPLE_RATE / hop), len(smooth) - int(0.15 * SAMPLE_RATE / hop))
    place = begin + (inner.start + int(np.argmin(smooth[inner]))) * hop
    return _split(samples, begin, place) + _split(samples, place, end)


def segment_and_classify(engine: Engine, samples: Floats) -> list[Detection]:
    """A detection for each segment; its confidence is the digit score times the probability."""
    segments = segment(samples)
    if not segments:
        return []
    clips = np.stack([pad_or_trim(samples[each.begin : each.end][:NUM_SAMPLES]) for each in segments])
    probabilities, scores = engine.classifiers[0].predict_proba(clips)
    return [
        Detection(
            int(p.argmax()), float(p.max() * score), each.begin / SAMPLE_RATE, each.end / SAMPLE_RATE - _MARGIN, 0.0
        )
        for each, p, score in zip(segments, probabilities, scores, strict=True)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    corpora = Path(os.environ.get("DIGIT_CORPORA_DIR", ""))
    parser.add_argument("--digits", type=Path, default=corpora / "iitg_digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="pretrained", help="folder of the classifier")
    parser.add_argument("--spotter", type=Path, default=None)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    words, noises = load_words(arguments.digits), load_sounds(corpora / "noise" / "train")
    chosen = [words[i] for i in rng.permutation(len(words))[:300]]
    streams = {
        "pauses, 20 dB": join_with_pauses(chosen, make_noise_track(noises, 60.0, rng), 20.0, rng),
        "pauses, 10 dB": join_with_pauses(chosen, make_noise_track(noises, 60.0, rng), 10.0, rng),
        "connected, 20 dB": join_connected(strings_of(words, 60, rng), make_noise_track(noises, 60.0, rng), 20.0, rng),
    }
    speech = sentences(load_sounds(corpora / "speech" / "tune"), rng)
    engine = Engine(arguments.models, spotter_file=arguments.spotter)
    hours = len(speech) / SAMPLE_RATE / 3600
    spotted = run(engine, list(streams.values()), {SPEECH: speech})
    cut = ScoredStreams(
        tuple((stream, segment_and_classify(engine, stream.samples)) for stream in streams.values()),
        {SPEECH: (segment_and_classify(engine, speech), hours)},
    )
    print(f"| at {_ALARMS:g} false alarms an hour of sentences | cut and classified | spotted and confirmed |")
    print("|---|---:|---:|")
    thresholds = [choose_threshold(scored, {SPEECH: _ALARMS}) for scored in (cut, spotted)]
    for place, name in enumerate(streams):
        shares = [
            ScoredStreams((scored.digits[place],), {}).score(t).accuracy
            for scored, t in zip((cut, spotted), thresholds, strict=True)
        ]
        print(f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
