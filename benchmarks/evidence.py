"""Fit how much each piece of evidence counts in the live detector's confidence.

    python benchmarks/evidence.py --digits FOLDER... [--spotter FILE] [--models FOLDER]

A logistic regression of what is a digit of streams that are made of --digits over noise/train, against what is none in
them, in speech/tune and in noise/train. Neither the spotter nor the classifier should have learnt from these digits.
The folders lie in $DIGIT_CORPORA_DIR. Prints OFFSET and WEIGHTS of digit_detector/streaming/decision.py, and for every
set of evidence what is right at so many false alarms an hour of sentences.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_detector.evaluation.scoring import Score, can_be, score
from digit_detector.evaluation.streams import Stream, load_sounds, load_words, remixed_noise, sentences
from digit_detector.streaming.decision import Candidate, Evidence
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import Detection, Engine
from digit_detector.streaming.stream import Stream as Live
from digit_detector.streaming.thresholds import Thresholds
from digit_detector.tune_threshold import streams_of
from ml_training.audio import SAMPLE_RATE, Floats

_NAMES = ("spotted", "is_digit", "classified")
_ALARMS = (60.0, 100.0)
_NOISE_HOURS = 2.0


class Recording(Engine):
    """An engine that reports every candidate, and remembers its evidence by when it was."""

    def __init__(self, *args: object, **more: object) -> None:
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.seen: dict[tuple[int, float], Evidence] = {}

    def evidence(self, stream: Live, candidate: Candidate) -> Evidence:
        found = super().evidence(stream, candidate)
        self.seen[candidate.digit, candidate.last] = found
        return found


@dataclass
class Found:
    """What was found in some sound, with the evidence for each."""

    detections: list[Detection]
    logits: np.ndarray  # (N, 3)


def hear(engine: Recording, samples: Floats) -> Found:
    engine.seen = {}
    detector = StreamingDetector(engine=engine)
    detections = detector.feed(samples) + detector.flush()
    logits = [engine.seen[d.digit, round(d.end * SAMPLE_RATE / 64) / 2].logits for d in detections]
    return Found(detections, np.array(logits).reshape(-1, len(_NAMES)))


def right_ones(stream: Stream, found: Found) -> np.ndarray:
    """(N,) which detections are paired with the digit that was said."""
    paired = np.zeros(len(found.detections), dtype=bool)
    taken: set[int] = set()
    for i, detection in enumerate(found.detections):
        near = [
            j for j, said in enumerate(stream.digits)
            if j not in taken and said.digit == detection.digit and can_be(said, detection)
        ]  # fmt: skip
        if near:
            taken.add(near[0])
            paired[i] = True
    return paired


def regression(logits: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Newton's method; the last coefficient is the offset."""
    x = np.column_stack([logits, np.ones(len(logits))])
    beta = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ beta))
        gradient = x.T @ (weight * (right - p)) - 1e-2 * beta
        hessian = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-2 * np.eye(len(beta))
        beta = beta + np.linalg.solve(hessian, gradient)
    return beta


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits", type=Path, nargs="+", required=True)
    parser.add_argument("--models", default="pretrained")
    parser.add_argument("--spotter", type=Path, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--spotted", type=float, default=0.15)
    parser.add_argument("--voice", type=float, default=0.1)
    arguments = parser.parse_args()
    corpora = Path(os.environ["DIGIT_CORPORA_DIR"])
    rng = np.random.default_rng(arguments.seed)
    noises = load_sounds(corpora / "noise" / "train")
    thresholds = Thresholds(voice=arguments.voice, spotted=arguments.spotted, digit=0.0)
    engine = Recording(arguments.models, thresholds=thresholds, spotter_file=arguments.spotter)
    streams = [(folder.name, s) for folder in arguments.digits for s in streams_of(load_words(folder), noises, rng)]
    found = [(name, stream, hear(engine, stream.samples)) for name, stream in streams]
    speech = sentences(load_sounds(corpora / "speech" / "tune"), rng)
    noise = remixed_noise(noises, 3600 * _NOISE_HOURS, rng)
    hours = {"speech": len(speech) / SAMPLE_RATE / 3600, "noise": _NOISE_HOURS}
    wrong = {"speech": hear(engine, speech), "noise": hear(engine, noise)}
    fit(found, wrong, hours)
    return 0


def fit(found: Sequence[tuple[str, Stream, Found]], wrong: dict[str, Found], hours: dict[str, float]) -> None:
    logits = np.concatenate([f.logits for _, _, f in found] + [f.logits for f in wrong.values()])
    right = np.concatenate(
        [right_ones(s, f) for _, s, f in found] + [np.zeros(len(f.detections)) for f in wrong.values()]
    )
    weight = np.where(right == 1, 0.5 / max(1, (right == 1).sum()), 0.5 / max(1, (right == 0).sum())) * len(right)
    chosen: list[tuple[int, ...]] = [(0,), (0, 1), (0, 1, 2)]
    for columns in chosen:
        beta = regression(logits[:, columns], right, weight)
        names = ", ".join(_NAMES[c] for c in columns)
        print(f"{names}: WEIGHTS {np.round(beta[:-1], 2)} OFFSET {beta[-1]:.2f}")

        def sure(f: Found, columns: tuple[int, ...] = columns, beta: np.ndarray = beta) -> np.ndarray:
            return np.asarray(f.logits[:, columns] @ beta[:-1] + beta[-1])

        for alarms in _ALARMS:
            of_speech = np.sort(sure(wrong["speech"]))[::-1]
            allowed = int(alarms * hours["speech"])
            threshold = of_speech[allowed] if allowed < len(of_speech) else -np.inf
            line = f"  {alarms:g}/h of speech: noise {(sure(wrong['noise']) > threshold).sum() / hours['noise']:.1f}/h;"
            scores: dict[str, Score] = {}
            for i, (name, stream, f) in enumerate(found):
                kept = [d for d, s in zip(f.detections, sure(f), strict=True) if s > threshold]
                key = f"{name} {('10', '20', '30', 'connected')[i % 4]}"
                scores[key] = scores.get(key, Score()) + score(stream.digits, kept)
            print(
                line
                + "; ".join(
                    f" {k} {100 * v.accuracy:.1f} (s{v.substituted} d{v.deleted} i{v.inserted})"
                    for k, v in scores.items()
                )
            )


if __name__ == "__main__":
    sys.exit(main())
