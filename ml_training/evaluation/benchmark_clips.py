"""The benchmark on recordings: which clips are heard, and the note in the log where they are evaluation only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import soxr

from digit_detector.audio import SAMPLE_RATE
from digit_detector.labels import PIPELINES
from digit_detector.processors.baselines import WIDE
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.fsdd import recordings_folder
from ml_training.evaluation.benchmark import BenchmarkResult, Heard, Plan, Report, measure
from ml_training.evaluation.protocols import (
    OFFICIAL,
    STRANGERS,
    TestClips,
    TrainedModel,
    load_models,
    new_result,
    official_part,
    refuse_known,
)
from ml_training.evaluation.records import log_scoring
from ml_training.results import ModelScore, ProtocolResult


def benchmark(
    config: TrainConfig,
    names: Sequence[str],
    models_dir: str,
    folder: Path | None,
    plan: Plan,
    log: Path | None,
    report: Report,
) -> BenchmarkResult:
    """Measure contenders on FSDD's official test part and on the clips of `folder`.

    Raises DataError without FSDD, ModelError without models, and what `measure` raises.
    """
    models = [m for name in PIPELINES if name in names for m in load_models([models_dir], name)]
    corpus = load_corpus(config, report=report)
    clips = {OFFICIAL: official_part(corpus)}
    recordings: dict[str, list[Path]] = {}
    if folder is not None:
        clips[STRANGERS] = TestClips(load_folder(folder), official=False)
        recordings[STRANGERS] = files_of(clips[STRANGERS].corpus, folder)
    for given in clips.values():
        refuse_known(models, given)
    protocols = {name: heard(given, recordings.get(name)) for name, given in clips.items()}
    training = None if config.data_dir is None else Path(config.data_dir)
    result = measure(protocols, names, models_dir, training, plan, report)
    if log is not None and STRANGERS in clips:
        log_scoring(log, _scored(result, clips[STRANGERS], models))
    return result


def heard(clips: TestClips, recordings: Sequence[Path] | None = None) -> Heard:
    """Clips as contenders of both rates hear them; at 16 kHz from the recordings, if given, a second at most.

    FSDD's are of 8 kHz, and nothing is gained by going back to the files.
    """
    corpus = clips.corpus
    if recordings is None:
        wide = soxr.resample(corpus.waveforms.T, SAMPLE_RATE, WIDE, quality="HQ").T
    else:
        wide = np.zeros((len(corpus), WIDE), dtype=np.float32)
        for row, path in zip(wide, recordings, strict=True):
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
            found = soxr.resample(samples.mean(axis=1), rate, WIDE, quality="HQ")[:WIDE]
            begin = (WIDE - len(found)) // 2
            row[begin : begin + len(found)] = found
    both = {SAMPLE_RATE: corpus.waveforms, WIDE: np.ascontiguousarray(wide, dtype=np.float32)}
    return Heard(both, [int(label) for label in corpus.labels], clips.description)


def files_of(corpus: Corpus, folder: Path) -> list[Path]:
    """Where the recordings lie: in the folder or, as some are given away, one further down."""
    places = (folder, recordings_folder(folder), folder / "data")
    return [next(place / file for place in places if (place / file).is_file()) for file in corpus.files]


def _scored(result: BenchmarkResult, clips: TestClips, models: Sequence[TrainedModel]) -> ProtocolResult:
    scores = tuple(ModelScore(m.name, "", m.accuracy[STRANGERS], {}, {}) for m in result.contenders)
    return new_result("benchmark", "Our models beside others", clips, models, scores=scores)
