"""Fit the weights of the scores that make the live detector's confidence.

    python benchmarks/evidence.py --digits FOLDER... --noise FOLDER --spotter FILE --models FOLDER

A logistic regression that separates the digits of streams made of --digits over --noise from other candidates: in these
streams, in speech/tune (of $DIGIT_CORPORA_DIR) and in hours of --noise, whose candidates have --noise_weight, because
most of a day is noise. Neither the spotter nor the classifiers may be trained on these digits or this noise; fold 1 of
ESC-10 was for their training, fold 2 for this. Prints fusion_offset and fusion_weights of
digit_detector/streaming/config.py, and for every set of scores the accuracy at some false alarms an hour of sentences.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from digit_detector.audio import SAMPLE_RATE, Floats
from digit_detector.evaluation.det import accept
from digit_detector.evaluation.scoring import Score, can_match, score
from digit_detector.evaluation.streams import TestStream, load_sounds, load_words, mix_noise, sentences
from digit_detector.labels import PIPELINES
from digit_detector.streaming.config import DetectorConfig, load_config
from digit_detector.streaming.detector import StreamingDetector
from digit_detector.streaming.engine import CONFIRMING, Detection, Engine
from digit_detector.streaming.fusion import FusionScores
from digit_detector.streaming.peak_picker import Candidate
from digit_detector.streaming.stream_state import StreamState
from digit_detector.tune_threshold import streams_of

_NAMES = ("spotter", "presence", "classifier", "voice")
_SETS = ((0,), (0, 1), (0, 1, 2), (0, 1, 2, 3))
_ALARMS = (60.0, 100.0, 110.0)
_CONDITIONS = ("10 dB", "20 dB", "30 dB", "connected")  # of the streams that tune_threshold makes


class Recording(Engine):
    """An engine that reports every candidate and stores its scores by time."""

    def __init__(self, models: str, pipelines: Sequence[str], config: DetectorConfig, spotter: Path | None) -> None:
        super().__init__(models, pipelines, config, spotter_file=spotter)
        self.allow_repeats = True
        self.scores: dict[float, FusionScores] = {}

    def score_candidate(self, stream: StreamState, candidate: Candidate) -> tuple[int, FusionScores]:
        digit, scores = super().score_candidate(stream, candidate)
        self.scores[_frame(candidate.last)] = scores
        return digit, scores


@dataclass
class Candidates:
    """Detections in some audio, with the log-odds of their scores."""

    detections: list[Detection]
    logits: np.ndarray  # (N, 4)
    hours: float

    def rescore(self, columns: Sequence[int], beta: np.ndarray) -> list[Detection]:
        """The detections with confidences of other weights and offset."""
        logits = self.logits[:, columns] @ beta[:-1] + beta[-1]
        return [
            Detection(d.digit, float(logit), d.start, d.end, d.delay)
            for d, logit in zip(self.detections, logits, strict=True)
        ]


def detect(engine: Recording, samples: Floats) -> Candidates:
    engine.scores = {}
    detector = StreamingDetector(engine=engine)
    detections = detector.feed(samples) + detector.flush()
    floor = engine.config.probability_floor
    logits = [engine.scores[_frame(d.end * SAMPLE_RATE / 128)].log_odds(floor) for d in detections]
    return Candidates(detections, np.array(logits).reshape(-1, len(_NAMES)), len(samples) / SAMPLE_RATE / 3600)


def _frame(frame: float) -> float:
    return round(2 * frame) / 2


def match_digits(stream: TestStream, candidates: Candidates) -> np.ndarray:
    """(N,) which detections match a digit of the stream."""
    paired = np.zeros(len(candidates.detections), dtype=bool)
    taken: set[int] = set()
    for i, detection in enumerate(candidates.detections):
        near = [
            j for j, spoken in enumerate(stream.digits)
            if j not in taken and spoken.digit == detection.digit and can_match(spoken, detection)
        ]  # fmt: skip
        if near:
            taken.add(near[0])
            paired[i] = True
    return paired


def fit_logistic(logits: np.ndarray, right: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients of a logistic regression, the offset last; Newton's method."""
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
    parser.add_argument("--noise", type=Path, required=True)
    parser.add_argument("--noise_weight", type=float, default=6.0)
    parser.add_argument("--noise_hours", type=float, default=4.0, help="for each seed")
    parser.add_argument("--models", default="pretrained")
    parser.add_argument("--spotter", type=Path, default=None)
    parser.add_argument("--spotted", type=float, default=0.1)
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=CONFIRMING)
    parser.add_argument(
        "--before",
        type=float,
        default=DetectorConfig.margin_before_seconds,
        help="seconds before a word that the classifiers get",
    )
    parser.add_argument(
        "--sure",
        type=float,
        default=DetectorConfig.commit_confidence,
        help="confidence from which a digit is not classified with the next",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()
    config = replace(
        load_config(), spotter_threshold=arguments.spotted, detection_threshold=0.0,
        margin_before_seconds=arguments.before, commit_confidence=arguments.sure,
    )  # fmt: skip
    noises = load_sounds(arguments.noise)
    speech = load_sounds(Path(os.environ["DIGIT_CORPORA_DIR"]) / "speech" / "tune")
    engine = Recording(arguments.models, arguments.pipelines, config, arguments.spotter)
    positive: list[tuple[str, TestStream, Candidates]] = []
    negative: dict[str, list[Candidates]] = {"speech": [], "noise": []}
    for seed in arguments.seeds:
        rng = np.random.default_rng(seed)
        for folder in arguments.digits:
            for condition, stream in zip(_CONDITIONS, streams_of(load_words(folder), noises, rng), strict=True):
                positive.append((f"{folder.name} {condition}", stream, detect(engine, stream.samples)))
        negative["speech"].append(detect(engine, sentences(speech, rng)))
        negative["noise"].append(detect(engine, mix_noise(noises, 3600 * arguments.noise_hours, rng)))
    fit(positive, negative, arguments.noise_weight)
    return 0


def fit(
    positive: Sequence[tuple[str, TestStream, Candidates]], negative: dict[str, list[Candidates]], noise_weight: float
) -> None:
    """Print weights and accuracies of every set of scores."""
    right = np.concatenate([match_digits(stream, candidates) for _, stream, candidates in positive])
    every = [*(candidates for _, _, candidates in positive), *negative["speech"], *negative["noise"]]
    logits = np.concatenate([candidates.logits for candidates in every])
    noises = sum(len(candidates.logits) for candidates in negative["noise"])
    right = np.pad(right, (0, len(logits) - len(right)))
    weight = np.ones(len(logits))
    weight[len(logits) - noises :] = noise_weight
    for kind in (right, ~right):  # digits and others have equal weight
        weight[kind] *= 0.5 * len(logits) / max(1.0, weight[kind].sum())
    hours = {kind: sum(candidates.hours for candidates in each) for kind, each in negative.items()}
    for columns in _SETS:
        beta = fit_logistic(logits[:, columns], right, weight)
        names = ", ".join(_NAMES[c] for c in columns)
        print(f"{names}: fusion_weights {np.round(beta[:-1], 2)} fusion_offset {beta[-1]:.2f}")
        rescored = {kind: [candidates.rescore(columns, beta) for candidates in each] for kind, each in negative.items()}
        for alarms in _ALARMS:
            confidences = sorted((d.confidence for each in rescored["speech"] for d in each), reverse=True)
            allowed = int(alarms * hours["speech"])
            threshold = np.nextafter(confidences[allowed], np.inf) if allowed < len(confidences) else -np.inf
            in_noise = sum(len(accept(each, threshold)) for each in rescored["noise"]) / hours["noise"]
            scores: dict[str, Score] = {}
            for name, stream, candidates in positive:
                of_stream = score(stream.digits, accept(candidates.rescore(columns, beta), threshold))
                scores[name] = scores.get(name, Score()) + of_stream
            print(f"  {alarms:g}/h of speech: noise {in_noise:.2f}/h" + "".join(map(_format, scores.items())))


def _format(named: tuple[str, Score]) -> str:
    name, s = named
    return f"; {name} {100 * s.accuracy:.1f} (s{s.substituted} d{s.deleted} i{s.inserted})"


if __name__ == "__main__":
    sys.exit(main())
