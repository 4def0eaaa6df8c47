"""Where the best weights of a folder of models lie."""

from __future__ import annotations

from ml_training.config import PIPELINES, model_folder
from ml_training.errors import CheckpointError

BEST = "best_model.pt"


def checkpoints_in(models_dir: str, pipeline: str) -> tuple[str, ...]:
    """The best weights of a folder of models: of one pipeline, or of "all" those that are there.

    Raises CheckpointError where there are none.
    """
    names = PIPELINES if pipeline == "all" else (pipeline,)
    files = [model_folder(models_dir, name) / BEST for name in names]
    there = tuple(str(path) for path in files if path.is_file())
    if not there:
        raise CheckpointError(f"{models_dir} holds no {names[0]}_classifier/{BEST}: train first, or name a checkpoint")
    return there
