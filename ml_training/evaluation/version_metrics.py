"""Record the metrics of an evaluation with the versions that were scored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from digit_detector.classifier import MODEL_FILE
from digit_detector.errors import DigitError
from digit_detector.labels import model_folder
from digit_detector.versions import find_versions
from ml_training.deploy.version_store import record_metrics
from ml_training.results import ModelCard, ProtocolResult


def record_with_versions(result: ProtocolResult, models_dirs: Sequence[str], report: Callable[[str], None]) -> None:
    """Add the metrics of a protocol to each version that was scored, found by the SHA-256 of its model.

    Failures are passed to `report` only, since the result has its own file.
    """
    for card in result.models:
        for folder in (model_folder(models_dir, card.pipeline) for models_dir in models_dirs):
            for number in find_versions(folder, MODEL_FILE, card.sha256):
                try:
                    record_metrics(folder, number, result.protocol, result.data, collect_metrics(result, card))
                    report(f"{result.protocol}: recorded with version {number} in {folder}")
                except DigitError as error:
                    report(f"{result.protocol}: not recorded with version {number} in {folder}: {error}")


def collect_metrics(result: ProtocolResult, card: ModelCard) -> dict[str, Any]:
    """Name -> figure of one model of an evaluation, ready for JSON."""

    def is_own(part: Any) -> bool:
        return (part.pipeline, part.seed) == (card.pipeline, card.seed)

    metrics: dict[str, Any] = {}
    for score in filter(is_own, result.scores):
        right, clips = int(score.all.right), score.all.clips
        metrics |= {"clips": clips, "errors": clips - right, "accuracy": score.all.accuracy}
        metrics["interval_95"] = list(score.all.interval)
    for fit in filter(is_own, result.reliability):
        metrics |= {f"calibration_error_{fit.when}": fit.ece, f"log_loss_{fit.when}": fit.nll}
    for rejection in filter(is_own, result.rejections):
        metrics[f"area_{rejection.kind}"] = rejection.area
        metrics |= {f"accepted_{rejection.kind}_at_{at}": n.accuracy for at, n in rejection.accepted.items()}
    for curve in filter(is_own, result.curves):
        points = [point for point in curve.points if point.severity is not None]
        metrics |= {f"accuracy_{curve.kind}_{point.label}": point.count.accuracy for point in points}
    return {**metrics, "data_hash": result.data_hash, "git_commit": result.git_commit, "created": result.created}
