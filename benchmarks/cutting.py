"""Segmentation by speech activity, then classification, compared with the live detector on the same streams.

    python benchmarks/cutting.py [--digits FOLDER] [--seed 0]

A segment lasts while the acoustic model's speech activity stays above a threshold; segments longer than a word are
split where they are quietest. mel_cnn classifies each segment as a whole. Streams are made of recordings (default:
$DIGIT_CORPORA_DIR/iitg_digits) over noise/train; both methods have a threshold of 60 false alarms an hour
on speech/tune, the live detector in context any.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_detector.acoustic_file import BLOCK
from digit_detector.audio import NUM_SAMPLES, SAMPLE_RATE, Floats, pad_or_trim
from digit_detector.classifier import DigitClassifier, load_classifier
from digit_detector.evaluation.det import Detections, OperatingPoint, choose_any, choose_threshold, run
from digit_detector.evaluation.scoring import score
from digit_detector.evaluation.streams import (
    join_connected,
    join_with_pauses,
    load_sounds,
    load_words,
    make_noise_track,
    sentences,
)
from digit_detector.labels import MEL_CNN
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.tune_threshold import SPEECH, strings_of

_LONGEST = 0.75  # seconds of a segment of one word
_SHORTEST = 0.12
_SPEECH = 0.3
_MARGIN = 0.08  # seconds added before and after a segment
_ALARMS = 60.0


@dataclass(frozen=True)
class Segment:
    """Samples of a stream."""

    begin: int
    end: int


def segment(samples: Floats, speech: Floats) -> list[Segment]:
    """Segments of speech, no longer than a word, given the speech activity of each block."""
    active: list[bool] = []
    for probability in speech[: len(samples) // BLOCK]:
        active.append(bool(probability >= (_SPEECH / 2 if active and active[-1] else _SPEECH)))
    edges = np.flatnonzero(np.diff([False, *active, False]))
    segments = []
    margin = int(_MARGIN * SAMPLE_RATE)
    for first, last in edges.reshape(-1, 2) * BLOCK:
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


def segment_and_classify(classifier: DigitClassifier, samples: Floats, speech: Floats) -> list[Detection]:
    """A detection for each segment; its confidence is the digit score times the probability."""
    segments = segment(samples, speech)
    if not segments:
        return []
    clips = np.stack([pad_or_trim(samples[each.begin : each.end][:NUM_SAMPLES]) for each in segments])
    probabilities, scores = classifier.predict_proba(clips)
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
    parser.add_argument("--live_model", type=Path, default=None)
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
    engine, classifier = Engine(model=arguments.live_model), load_classifier(arguments.models, MEL_CNN)
    outputs = run(engine, list(streams.values()), {SPEECH: [speech]})
    (sentence,) = outputs.negatives[SPEECH]
    cut = Detections(
        engine.config,
        tuple(
            (stream, segment_and_classify(classifier, stream.samples, frames.speech))
            for stream, frames in outputs.digits
        ),
        {SPEECH: (segment_and_classify(classifier, speech, sentence.speech), sentence.seconds / 3600)},
    )
    limits = {SPEECH: _ALARMS}
    points = [OperatingPoint(cut, choose_threshold(cut, limits)), choose_any(outputs, engine.config, limits)]
    print(f"| at {_ALARMS:g} false alarms an hour of sentences | cut and classified | live detector |")
    print("|---|---:|---:|")
    for place, name in enumerate(streams):
        accuracies = []
        for point in points:
            stream, found = point.detections.digits[place]
            accuracies.append(score(stream.digits, point.detections.accept(found, point.threshold)).accuracy)
        print(f"| {name} | {' | '.join(f'{100 * accuracy:.1f}' for accuracy in accuracies)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
