"""The protocol `rejection`: how well a digit score tells digits from everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from digit_detector.audio import AUDIO_SUFFIXES, NUM_SAMPLES, SAMPLE_RATE, decode_sound, pad_or_trim
from digit_detector.errors import AudioError, DataError
from digit_detector.labels import IS_DIGIT
from ml_training.evaluation.corruption import KINDS, corrupt_digits
from ml_training.evaluation.protocols import REJECTION, TestClips, TrainedModel, new_result, refuse_known, score
from ml_training.results import Count, Floats, ProtocolResult, Rejection

OWN_KINDS = ("digits", *KINDS, "silence")  # are there without recordings of them
KEPT = (0.95, 0.9)  # shares of the digits that are accepted where others are counted
AS_SHIPPED = f"score {IS_DIGIT:g}"
_LONGEST = 1.5  # seconds; a longer recording is heard a second at a time
_HOP = SAMPLE_RATE // 2
_PAUSE_DB = -40.0  # a second further below the loudest of its recording is a pause
_POINTS = 101  # of a ROC curve
_HISS_DB = -60.0  # dBFS of the silence


@dataclass(frozen=True)
class Others:
    """One kind of clips without a digit: (N, 8000)."""

    kind: str
    waveforms: Floats
    source: str


def load_others(kind: str, folder: str | Path) -> Others:
    """Every recording in and below a folder: a short one as one clip, a long one a second at a time, pauses left out.

    Raises DataError where there is none that can be heard.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"{folder} is not a folder: expected one with recordings of {kind}")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file())
    files = [path for path in files if not path.name.startswith(".")]  # as macOS leaves beside each recording
    clips: list[Floats] = []
    for path in files:
        try:
            clips += _clips(decode_sound(path.read_bytes()))
        except (AudioError, OSError) as error:
            raise DataError(f"{folder}: {path.name}: {error}; mend or remove it") from error
    if not clips:
        raise DataError(f"{folder} holds no audio: expected recordings of {kind}")
    return Others(kind, np.stack(clips), f"{len(clips)} clips of {len(files)} recordings in {root.resolve().name}")


def _clips(samples: Floats) -> list[Floats]:
    if len(samples) <= _LONGEST * SAMPLE_RATE:
        return [pad_or_trim(samples)]
    seconds = [samples[i : i + NUM_SAMPLES] for i in range(0, len(samples) - NUM_SAMPLES + 1, _HOP)]
    power = np.array([np.square(second, dtype=np.float64).mean() for second in seconds])
    return [seconds[i] for i in np.flatnonzero(power > power.max() * 10 ** (_PAUSE_DB / 10))]


def made_of(clips: TestClips, seed: int) -> list[Others]:
    """What needs no recordings but the digits': halves of them, two at a time, and the hiss of an open microphone."""
    corpus, told = clips.corpus, f"seed {seed}"
    corrupted = [
        Others(kind, made, told) for kind, made in corrupt_digits(corpus.waveforms, corpus.lengths, seed).items()
    ]
    rng = np.random.default_rng(seed)
    hiss = rng.standard_normal((len(corpus), NUM_SAMPLES), dtype=np.float32) * np.float32(10 ** (_HISS_DB / 20))
    return [*corrupted, Others("silence", hiss, told)]


def rejection(
    models: Sequence[TrainedModel], clips: TestClips, others: Sequence[Others], seed: int = 0
) -> ProtocolResult:
    """ROC of the digit score for each kind of clips, and how many pass at three thresholds.

    Two thresholds are where 95 and 90 % of the digits are accepted, the third is the one that models answer with.
    Raises DataError where a model was trained on the digits.
    """
    refuse_known(models, clips)
    everything = [*others, *made_of(clips, seed)]
    scores, found = [], []
    for model in models:
        probabilities, digits = model.predict_proba(clips.corpus.waveforms)
        scores.append(score(model.card, probabilities, clips.corpus))
        who = (model.card.pipeline, model.card.seed)
        found.append(_compared(*who, "digits", digits, digits))
        found += [_compared(*who, other.kind, model.predict_proba(other.waveforms)[1], digits) for other in everything]
    definition = (
        "Digits against clips without one, told apart by the digit score: the share of each kind that passes where "
        f"95 and 90 % of these digits do, and at a score of {IS_DIGIT:g}, with which the models answer"
    )
    details: Mapping[str, object] = {"noise_seed": seed, "others": {other.kind: other.source for other in everything}}
    return new_result(
        REJECTION, definition, clips, models, scores=tuple(scores), rejections=tuple(found), details=details
    )


def _compared(pipeline: str, seed: str, kind: str, scores: Floats, digits: Floats) -> Rejection:
    ranked = np.sort(digits)
    below = np.searchsorted(ranked, scores, "left") + np.searchsorted(ranked, scores, "right")
    thresholds = {f"{share:.0%}": float(np.quantile(digits, 1 - share)) for share in KEPT} | {AS_SHIPPED: IS_DIGIT}
    places = np.quantile(digits, np.linspace(1, 0, _POINTS))
    return Rejection(
        pipeline, seed, kind, len(scores), area=float(1 - below.mean() / (2 * len(digits))),
        accepted={name: Count(int((scores >= place).sum()), len(scores)) for name, place in thresholds.items()},
        roc=tuple((float((scores >= place).mean()), float((digits >= place).mean())) for place in places),
    )  # fmt: skip
