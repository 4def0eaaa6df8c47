"""Your own network in a pipeline: trained, tested, exported and used like the others.

    python examples/own_network.py [--dataset auto] [--data_dir FOLDER] [--epochs 20] [--output own_network]

A model is any DigitModel from (B, 8000) waveforms to (B, OUTPUTS) scores: ten digits, and the presence of a digit.
Features are part of it, so that model.onnx contains them. CONTRIBUTING.md describes how such a file becomes a pipeline
with its own name. Needs the extra [train].
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from torch import Tensor, nn

from digit_detector.classifier import load_classifier
from digit_detector.errors import DigitError, Interrupted
from digit_detector.labels import RAW_CNN
from ml_training.config import DATASETS, Recipe, TrainConfig
from ml_training.pipelines.base import OUTPUTS, DigitModel, Pipeline
from ml_training.pipelines.features import normalise_level
from ml_training.training.experiment import run


class StridedNetwork(DigitModel):
    """Four strided convolutions on the samples themselves, mean over time, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, out, taps, stride in ((1, 32, 80, 16), (32, 48, 7, 4), (48, 64, 5, 2), (64, 96, 5, 2)):
            layers += [nn.Conv1d(channels, out, taps, stride, padding=taps // 2, bias=False)]
            layers += [nn.BatchNorm1d(out), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)  # (B, 1, 8000) -> (B, 96, 32)
        self.scores = nn.Linear(96, OUTPUTS)

    def forward_waveform(self, waveforms: Tensor) -> Tensor:
        track = self.convolutions(normalise_level(waveforms)[:, None, :])
        scores: Tensor = self.scores(track.mean(dim=2))
        return scores


OWN = Pipeline(RAW_CNN, StridedNetwork, Recipe(epochs=20, batch_size=32, learning_rate=3e-3, weight_decay=0.02))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a network of your own")
    parser.add_argument("--dataset", choices=DATASETS, default="auto")
    parser.add_argument("--data_dir")
    parser.add_argument("--epochs", type=int, help="default: the recipe's")
    parser.add_argument("--output", type=Path, default=Path("own_network"))
    args = parser.parse_args(argv)
    try:
        config = TrainConfig(
            pipeline=OWN.name, dataset=args.dataset, data_dir=args.data_dir, epochs=args.epochs,
            models_dir=str(args.output / "models"), log_dir=str(args.output / "train_logs"),
        )  # fmt: skip
        outcome = run(config, pipelines=[OWN])
        for result in outcome.results:
            speed = load_classifier(config.models_dir, result.pipeline).benchmark_speed(num_samples=200)
            print(f"\n{result.parameters:,} parameters, {speed['p50_ms']:.2f} ms a clip")
            print(f"{100 * result.test.accuracy:.1f} % right of {result.test.clips} test clips")
    except DigitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stopped:  # Ctrl-C; the training so far is saved
        return stopped.exit_code
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
