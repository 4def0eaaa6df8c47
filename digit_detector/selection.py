"""Which model answers where the user named none: the one with the highest accuracy on one common test.

The models that ship were measured on the official test clips of FSDD v1.0.10. A model of one's own is compared with
them only if it was measured on the same clips and learnt from recordings; any other answers only when it is asked for.

Inference reads it too, so it imports nothing heavy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from digit_detector.errors import ModelError
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN, TRAINED, model_folder, trained_pipelines
from digit_detector.model_file import check_metadata

FSDD_TEST_HASH = "b4dd69d02423a4b5708a6249cf9124282d111d0b1d3c69d9fa7c059c90825435"  # see metadata.KEYS, test_hash
BEST_FIRST = (MEL_CNN, RAW_CNN, MFCC)  # the models that ship, by their accuracy on these clips

Locate = Callable[[str, str, str, int | None], Path]  # folder of models, pipeline, precision, version -> file


@dataclass(frozen=True)
class Choice:
    """The model that answers, and why it was chosen; an empty reason where there was no choice."""

    model_dir: str
    pipeline: str
    reason: str = ""


@dataclass(frozen=True)
class _Candidate:
    """A model of one's own and what its file says."""

    model_dir: str
    pipeline: str
    metadata: Mapping[str, str]

    def __str__(self) -> str:
        return f"your own {self.pipeline} in {self.model_dir}"

    @property
    def synthetic(self) -> bool:
        return self.metadata.get("speech") != "recordings"

    @property
    def test_hash(self) -> str:
        return self.metadata.get("test_hash", "unknown")

    @property
    def accuracy(self) -> float:
        return _accuracy(self.metadata)

    @property
    def comparable(self) -> bool:
        """Whether its accuracy may be compared with that of the models that ship."""
        return not self.synthetic and self.test_hash == FSDD_TEST_HASH and not math.isnan(self.accuracy)


def _read_metadata(file: Path) -> dict[str, str]:
    from digit_detector.inspection import read_metadata  # a quick start does without

    return read_metadata(file)


def choose_model(
    locate: Locate, model_dir: str | None, pipeline: str | None, precision: str, version: int | None
) -> Choice:
    """The model that answers; `locate` says where the file of one lies. None stands for what the user did not name.

    A folder or a version that is named answers or nobody. Raises ModelError for a model of one's own that is damaged
    or foreign, because nobody can tell whether it would be the best.
    """
    names = BEST_FIRST if pipeline is None else (pipeline,)

    def existing(folder: str) -> list[str]:
        offered = dict.fromkeys((*names, *trained_pipelines(folder))) if pipeline is None else names
        return [name for name in offered if locate(folder, name, precision, version).is_file()]

    def candidate(folder: str, name: str) -> _Candidate:
        file = locate(folder, name, precision, version)
        try:
            metadata = _read_metadata(file)
            check_metadata(metadata, name, str(file))
        except ModelError as error:
            raise ModelError(f"{error}; --model_dir {PRETRAINED} asks the models that ship") from error
        return _Candidate(folder, name, metadata)

    if model_dir is not None or version is not None:
        folder = TRAINED if model_dir is None else model_dir
        found = existing(folder)
        if folder != PRETRAINED and len(found) > 1:
            return _best_of_folder([candidate(folder, name) for name in found])
        # Of none, the error of loading it says what is missing.
        begun = (name for name in names if folder != PRETRAINED and model_folder(folder, name).is_dir())
        return Choice(folder, found[0] if found else next(begun, names[0]))
    shipped = next(iter(existing(PRETRAINED)), names[0])
    own = [candidate(TRAINED, name) for name in existing(TRAINED)]
    if not own:
        return Choice(PRETRAINED, shipped)
    return _own_or_shipped(own, shipped, lambda: _read_metadata(locate(PRETRAINED, shipped, precision, None)))


def _own_or_shipped(own: Sequence[_Candidate], shipped: str, metadata: Callable[[], Mapping[str, str]]) -> Choice:
    def ask(model: _Candidate) -> str:
        others = [name for name in (m.pipeline for m in own) if name != model.pipeline]
        return f"--model_dir {model.model_dir}{f' --pipeline {model.pipeline}' if others else ''} asks it"

    comparable = [model for model in own if model.comparable]
    if not comparable:
        rival = min(own, key=lambda model: model.synthetic)
        why = "learnt from synthetic speech" if rival.synthetic else "was not measured on FSDD's official test"
        return Choice(PRETRAINED, shipped, f"{rival} {why}; {ask(rival)}")
    best = max(comparable, key=lambda model: model.accuracy)  # of equal ones the first of BEST_FIRST
    theirs = _accuracy(metadata())
    if best.accuracy >= theirs:
        reason = f"{_percent(best.accuracy)} on FSDD's official test; the {shipped} that ships has {_percent(theirs)}"
        return Choice(best.model_dir, best.pipeline, reason)
    reason = f"{_percent(theirs)} on FSDD's official test; {best} has {_percent(best.accuracy)}, {ask(best)}"
    return Choice(PRETRAINED, shipped, reason)


def _best_of_folder(models: Sequence[_Candidate]) -> Choice:
    """The best of a folder that was named: recordings before synthetic speech, then accuracy on the same clips."""
    models = [model for model in models if not model.synthetic] or models
    measured = [model for model in models if model.comparable] or models
    same = len({model.test_hash for model in measured}) == 1 and measured[0].test_hash != "unknown"
    if not same or any(math.isnan(model.accuracy) for model in measured):
        first = models[0]
        names = " and ".join(model.pipeline for model in models[1:])
        reason = f"not tested on the same clips as {names}, so the first; --pipeline asks another"
        return Choice(first.model_dir, first.pipeline, reason)
    best = max(measured, key=lambda model: model.accuracy)
    others = [f"{model.pipeline} {_percent(model.accuracy)}" for model in measured if model is not best]
    reason = f"{_percent(best.accuracy)} of its test clips; on the same {', '.join(others)}" if others else ""
    return Choice(best.model_dir, best.pipeline, reason)


def _accuracy(metadata: Mapping[str, str]) -> float:
    try:
        return float(metadata.get("accuracy", "nan"))
    except ValueError:
        return math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
