"""Where the best weights of a folder of models lie."""

from __future__ import annotations

from digit_detector.errors import CheckpointError
from digit_detector.files import check_not_shipped
from digit_detector.labels import PRETRAINED, model_folder, trained_pipelines

BEST = "best_model.pt"


def checkpoints_in(models_dir: str, pipeline: str) -> tuple[str, ...]:
    """The best weights of a folder of models: of one pipeline, or of "all" those that are there.

    Raises CheckpointError where there are none.
    """
    check_not_shipped(models_dir)
    names = trained_pipelines(models_dir) if pipeline == "all" else (pipeline,)
    files = [model_folder(models_dir, name) / BEST for name in names]
    there = tuple(str(path) for path in files if path.is_file())
    if not there:
        raise CheckpointError(
            f"{models_dir} holds no {names[0]}_classifier/{BEST}: train first, or name a checkpoint; the models that "
            f"ship are exported already: load_classifier({PRETRAINED!r}, {names[0]!r})"
        )
    return there
