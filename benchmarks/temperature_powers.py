"""Which power of the temperature suits speakers that a pipeline was not trained on?

    python benchmarks/temperature_powers.py --folds train_logs/loso [--powers 1.0 0.8 0.6]

Fits the temperature of every model of a leave-one-speaker-out run (`digits evaluate --protocol loso`, its --log_dir) on
its validation clips again. Under each power of it, the speaker left out ($DIGIT_DATA_DIR) and iitg_digits
($DIGIT_CORPORA_DIR) are scored: negative log likelihood, which decides, and calibration error, means over models.
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
from ml_training.config import TrainConfig
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus, load_folder
from ml_training.data.splits import split_corpus
from ml_training.metrics import Calibration, fit_logit_temperature, log_softmax, measure_calibration
from ml_training.pipelines import get_pipeline
from ml_training.results import Floats, Ints
from ml_training.training.checkpoint import BEST, load_checkpoint, load_weights
from ml_training.training.classification import predict

Logits = tuple[NDArray[np.float32], Ints]


def predict_fold(folder: Path, corpus: Corpus, other: Corpus) -> tuple[Logits, Logits, Logits]:
    """Logits and labels of one fold: its validation clips, the speaker left out, the other corpus."""
    fold = json.loads((folder / "fold.json").read_text())
    if fold["identity"]["data_hash"] != corpus.data_hash:
        sys.exit(f"{folder} was trained on other recordings than {corpus.name}: name other --folds")
    share = fold["identity"]["settings"]["validation_ratio"]
    config = TrainConfig(split="speaker", held_out_speaker=fold["left_out"], seed=fold["seed"], validation_ratio=share)
    split = split_corpus(corpus, config, report=lambda line: None)
    model = get_pipeline(fold["pipeline"]).model(fold["identity"]["settings"].get("width", 1.0))
    load_weights(model, load_checkpoint(folder / BEST)["weights"], folder)
    model.temperature.fill_(1.0)

    def run(waveforms: Floats, labels: Ints) -> Logits:
        return predict(model, torch.from_numpy(waveforms)).digit_logits.numpy(), labels

    validation, test = ((corpus.waveforms[i], corpus.labels[i]) for i in (split.validation, split.test))
    return run(*validation), run(*test), run(other.waveforms, other.labels)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", type=Path, required=True, help="folder of the folds")
    parser.add_argument("--powers", type=float, nargs="+", default=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5])
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=PIPELINES)
    arguments = parser.parse_args()
    if not os.environ.get("DIGIT_CORPORA_DIR"):
        sys.exit("$DIGIT_CORPORA_DIR is not set: expected the folder that holds iitg_digits")
    torch.set_num_threads(1)
    corpus = load_corpus(TrainConfig(dataset="fsdd"))
    other = load_folder(Path(os.environ["DIGIT_CORPORA_DIR"]) / "iitg_digits")
    for pipeline in arguments.pipelines:
        folders = sorted(path.parent for path in arguments.folds.glob(f"{pipeline}_*/fold.json"))
        if not folders:
            continue
        print(f"{pipeline}, {len(folders)} models\npower   left out: NLL  error %   iitg_digits: NLL  error %")
        folds = [predict_fold(folder, corpus, other) for folder in folders]
        for power in arguments.powers:
            fits: tuple[list[Calibration], list[Calibration]] = ([], [])
            for validation, *tests in folds:
                temperature = fit_logit_temperature(*validation, power)
                for column, (logits, labels) in zip(fits, tests, strict=True):
                    column.append(measure_calibration(np.exp(log_softmax(logits / temperature)), labels))
            cells = [(statistics.mean(f.nll for f in c), 100 * statistics.mean(f.ece for f in c)) for c in fits]
            (nll, error), (other_nll, other_error) = cells
            print(f"{power:5.2f} {nll:15.4f} {error:8.2f} {other_nll:18.4f} {other_error:8.2f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
