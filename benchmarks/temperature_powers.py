"""Which power of the temperature suits voices that a pipeline was not trained with?

    python benchmarks/temperature_powers.py --folds train_logs/loso [--powers 1.0 0.8 0.6]

Every model of a leave-one-speaker-out run (`digits evaluate --protocol loso`, its --log_dir) has its temperature fitted
on its validation clips again. Under each power of it, probabilities for the speaker left out ($DIGIT_DATA_DIR) and for
iitg_digits ($DIGIT_CORPORA_DIR) are scored: negative log likelihood, which decides, and calibration error, both means
over models, the smaller the better.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from digit_detector.labels import PIPELINES
from ml_training.calibration import Calibration, calibration, log_softmax, temperature_for_other_voices
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.pipelines import get_pipeline
from ml_training.training.checkpoint import BEST, load_checkpoint, load_weights
from ml_training.training.classification import predict

Scored = tuple[NDArray[np.float32], NDArray[np.int64]]


def scores_of(folder: Path, recordings: Corpus, others: Corpus) -> tuple[Scored, Scored, Scored]:
    """One fold's scores and labels: its validation clips, the speaker left out, the other corpus."""
    fold = json.loads((folder / "fold.json").read_text())
    if fold["identity"]["data_hash"] != recordings.data_hash:
        sys.exit(f"{folder} was trained on other recordings than {recordings.name}: name other --folds")
    share = fold["identity"]["settings"]["validation_share"]
    config = TrainConfig(split="speaker", held_out_speaker=fold["left_out"], seed=fold["seed"], validation_share=share)
    split = split_corpus(recordings, config, report=lambda line: None)
    model = get_pipeline(fold["pipeline"]).model(fold["identity"]["settings"].get("width", 1.0))
    load_weights(model, load_checkpoint(folder / BEST)["weights"], folder)
    model.temperature.fill_(1.0)

    def heard(waveforms: NDArray[np.float32], labels: NDArray[np.int64]) -> Scored:
        return predict(model, torch.from_numpy(waveforms)).scores.numpy(), labels

    known, unknown = ((recordings.waveforms[i], recordings.labels[i]) for i in (split.validation, split.test))
    return heard(*known), heard(*unknown), heard(others.waveforms, others.labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, required=True, help="folder of the folds")
    parser.add_argument("--powers", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    arguments = parser.parse_args()
    if not os.environ.get("DIGIT_CORPORA_DIR"):
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits")
    torch.set_num_threads(1)
    recordings = load_corpus(TrainConfig(dataset="fsdd"))
    others = load_folder(Path(os.environ["DIGIT_CORPORA_DIR"]) / "iitg_digits")
    for pipeline in arguments.pipelines:
        folders = sorted(path.parent for path in arguments.folds.glob(f"{pipeline}_*/fold.json"))
        if not folders:
            continue
        print(f"{pipeline}, {len(folders)} models\npower   left out: NLL  error %   iitg_digits: NLL  error %")
        folds = [scores_of(folder, recordings, others) for folder in folders]
        for power in arguments.powers:
            found: tuple[list[Calibration], list[Calibration]] = ([], [])
            for (known, known_labels), *unknown in folds:
                temperature = temperature_for_other_voices(known, known_labels, power)
                for kept, (scores, labels) in zip(found, unknown, strict=True):
                    kept.append(calibration(np.exp(log_softmax(scores / temperature)), labels))
            cells = [
                (statistics.mean(c.nll for c in kept), 100 * statistics.mean(c.ece for c in kept)) for kept in found
            ]
            print(
                f"{power:5.2f} {cells[0][0]:15.4f} {cells[0][1]:8.2f} {cells[1][0]:18.4f} {cells[1][1]:8.2f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
