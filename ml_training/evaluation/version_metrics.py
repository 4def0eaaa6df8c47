"""Figures of an evaluation, kept with the versions they are of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from digit_detector.classifier import MODEL_FILE
from digit_detector.errors import DigitError
from digit_detector.labels import model_folder
from digit_detector.versions import find
from ml_training.deploy.version_store import record
from ml_training.results import ModelCard, ProtocolResult

Report = Callable[[str], None]


def record_with_versions(result: ProtocolResult, models_dirs: Sequence[str], report: Report) -> None:
    """Add what a protocol found to each version that was scored, known by the hash of its model.

    A version that cannot be written to is told to `report`: the result itself lies elsewhere.
    """
    for card in result.models:
        for folder in (model_folder(models_dir, card.pipeline) for models_dir in models_dirs):
            for number in find(folder, MODEL_FILE, card.sha256):
                try:
                    record(folder, number, result.protocol, result.data, figures_of(result, card))
                    report(f"{result.protocol}: recorded with version {number} in {folder}")
                except DigitError as error:
                    report(f"{result.protocol}: not recorded with version {number} in {folder}: {error}")


def figures_of(result: ProtocolResult, card: ModelCard) -> dict[str, Any]:
    """What a protocol found of one model, a name and a figure each, ready for JSON."""

    def own(found: Any) -> bool:
        return (found.pipeline, found.seed) == (card.pipeline, card.seed)

    figures: dict[str, Any] = {}
    for score in filter(own, result.scores):
        right, clips = int(score.all.right), score.all.clips
        figures |= {
            "clips": clips, "errors": clips - right, "accuracy": score.all.accuracy,
            "interval_95": list(score.all.interval),
        }  # fmt: skip
    for fit in filter(own, result.reliability):
        figures |= {f"calibration_error_{fit.when}": fit.ece, f"log_loss_{fit.when}": fit.nll}
    for rejection in filter(own, result.rejections):
        figures[f"area_{rejection.kind}"] = rejection.area
        figures |= {f"accepted_{rejection.kind}_at_{at}": n.accuracy for at, n in rejection.accepted.items()}
    for curve in filter(own, result.curves):
        figures |= {
            f"accuracy_{curve.kind}_{point.label}": point.count.accuracy
            for point in curve.points
            if point.severity is not None
        }
    return {**figures, "data_hash": result.data_hash, "git_commit": result.git_commit, "created": result.created}
