"""A process that trains folds as it is told to, by lines of JSON: python -m ml_training.evaluation.fold_process.

The first line says which recordings and where results go, each later one names a fold. It ends with its standard input,
which is to say with whoever started it, however that ended.
"""

from __future__ import annotations

import json
import queue
import sys
from pathlib import Path
from typing import Any

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import DigitError, Interrupted
from ml_training.config import TrainConfig, to_dict
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.folds import Fold, train_fold
from ml_training.pipelines import get_pipeline
from ml_training.training.setup import cpu_threads
from ml_training.utils.processes import tell_parent, words_from_parent


def fold_line(fold: Fold) -> str:
    """What names a fold to a process."""
    return json.dumps({"pipeline": fold.pipeline.name, "config": to_dict(fold.config)})


def start_line(config: TrainConfig, data_hash: str, work: Path, models: str) -> str:
    """What is told to a process first."""
    return json.dumps({"config": to_dict(config), "data_hash": data_hash, "work": str(work), "models": models})


def main() -> int:
    lines = words_from_parent()
    with StopSignals() as signals:
        try:
            start = json.loads(lines.get())
            config = TrainConfig(**start["config"])
            with use_cache(Cache() if config.cache else None), cpu_threads(config.threads):
                _work(start, config, lines, signals)
        except Interrupted as stop:
            return stop.exit_code
        except DigitError as error:
            tell_parent(ended=str(error))
            return error.exit_code
    return 0


def _work(start: dict[str, Any], config: TrainConfig, lines: queue.SimpleQueue[str], signals: StopSignals) -> None:
    corpus = load_corpus(config, report=lambda line: None)
    if corpus.data_hash != start["data_hash"]:
        tell_parent(ended=f"{corpus.name} changed since the folds were planned: start again when nobody writes there")
        return
    while True:
        tell_parent(ready=True)
        job = json.loads(lines.get())
        fold = Fold(get_pipeline(job["pipeline"]), TrainConfig(**job["config"]), corpus.data_hash)
        try:
            found = train_fold(
                fold, corpus, Path(start["work"]), signals, start["models"], lambda line: tell_parent(say=line),
                lambda number, accuracy: tell_parent(epoch=number, accuracy=accuracy),
            )  # fmt: skip
            tell_parent(done=True, share=found["test"]["accuracy"])
        except Interrupted:
            raise
        except DigitError as error:
            tell_parent(failed=str(error))
        except Exception as error:  # a bug in one fold must not cost the others
            tell_parent(failed=f"{fold}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    sys.exit(main())
