"""Find the best checkpoints in a folder of models."""

from __future__ import annotations

from digit_detector.errors import CheckpointError
from digit_detector.files import check_not_shipped
from digit_detector.labels import PRETRAINED, model_folder, trained_pipelines

BEST = "best_model.pt"


def find_checkpoints(models_dir: str, pipeline: str) -> tuple[str, ...]:
    """The best checkpoint of a pipeline, or with "all" of every pipeline that has one. Raises CheckpointError."""
    check_not_shipped(models_dir)
    names = trained_pipelines(models_dir) if pipeline == "all" else (pipeline,)
    existing = [path for name in names if (path := model_folder(models_dir, name) / BEST).is_file()]
    if not existing:
        raise CheckpointError(
            f"{models_dir} holds no {names[0]}_classifier/{BEST}: train first, or name a checkpoint; the models that "
            f"ship are exported already: load_classifier({PRETRAINED!r}, {names[0]!r})"
        )
    return tuple(map(str, existing))
