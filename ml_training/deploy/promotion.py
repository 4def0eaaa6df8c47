"""Whether the version that a training left takes the place of the promoted one unasked."""

from __future__ import annotations

from dataclasses import dataclass

from digit_detector.versions import Version


@dataclass(frozen=True)
class Comparison:
    """Whether a new version may take the place of the promoted one unasked, and why."""

    promote: bool
    reason: str


def compare_for_promotion(new: Version, promoted: Version) -> Comparison:
    """Errors of both on the same test clips decide; what synthetic speech taught never replaces recordings."""
    before = f"version {promoted.number}"
    if new.origin.synthetic != promoted.origin.synthetic:
        if new.origin.synthetic:
            return Comparison(False, f"it learnt from synthetic speech, {before} from recordings")
        return Comparison(True, f"it learnt from recordings, {before} from synthetic speech")
    ours, theirs = _own_test(new), _own_test(promoted)
    if theirs is None:
        return Comparison(True, f"not comparable with {before}, which does not say on which clips it was tested")
    if ours is None or ours.hash != theirs.hash:
        return Comparison(True, f"not comparable with {before}, which was tested on other clips")
    figures = f"{ours.errors} errors in {ours.clips} test clips, {before} has {theirs.errors} in the same"
    return Comparison(ours.errors <= theirs.errors, figures)


@dataclass(frozen=True)
class _Test:
    hash: str
    clips: int
    errors: int


def _own_test(version: Version) -> _Test | None:
    """What a training measured on its own test part; None for a version that does not say on which clips."""
    said = version.origin.training
    try:
        return _Test(str(said["test_hash"]), int(said["test_clips"]), int(said["test_errors"]))
    except (KeyError, TypeError, ValueError):
        return None
