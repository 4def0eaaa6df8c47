"""Choose the model to predict with: the most accurate on the official test clips of FSDD v1.0.10.

The pretrained models were tested there. A model of the user's own is compared with them only if it was tested on the
same clips and trained on recordings; any other is used only when it is named. Nothing heavy is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from digit_detector.errors import ModelError
from digit_detector.labels import MEL_CNN, MFCC, PRETRAINED, RAW_CNN, TRAINED, model_folder, trained_pipelines
from digit_detector.model_file import check_metadata

FSDD_TEST_HASH = "b4dd69d02423a4b5708a6249cf9124282d111d0b1d3c69d9fa7c059c90825435"  # see model_file.KEYS, test_hash
BEST_FIRST = (MEL_CNN, RAW_CNN, MFCC)  # the pretrained models, by their accuracy on these clips

Locate = Callable[[str, str, str, int | None], Path]  # models_dir, pipeline, precision, version -> model file


@dataclass(frozen=True)
class Choice:
    """The chosen model, and why; an empty reason where there was no alternative."""

    model_dir: str
    pipeline: str
    reason: str = ""


class _Candidate:
    """A model of the user's own, by its metadata."""

    def __init__(self, model_dir: str, pipeline: str, metadata: Mapping[str, str]) -> None:
        self.model_dir, self.pipeline = model_dir, pipeline
        self.synthetic = metadata.get("speech") != "recordings"
        self.test_hash = metadata.get("test_hash", "unknown")
        self.accuracy = _read_accuracy(metadata)
        self.comparable = not self.synthetic and self.test_hash == FSDD_TEST_HASH and not math.isnan(self.accuracy)

    def __str__(self) -> str:
        return f"your own {self.pipeline} in {self.model_dir}"


def choose_model(
    locate: Locate, model_dir: str | None, pipeline: str | None, precision: str, version: int | None
) -> Choice:
    """Choose among existing models; arguments that the user did not give are None.

    A given folder or version is used even if others would be better. Raises ModelError for a damaged or foreign model
    of the user's own.
    """
    names = BEST_FIRST if pipeline is None else (pipeline,)

    def existing(folder: str) -> list[str]:
        offered = dict.fromkeys((*names, *trained_pipelines(folder))) if pipeline is None else names
        return [name for name in offered if locate(folder, name, precision, version).is_file()]

    def read_candidate(folder: str, name: str) -> _Candidate:
        file = locate(folder, name, precision, version)
        try:
            metadata = _read_metadata(file)
            check_metadata(metadata, name, str(file))
        except ModelError as error:
            raise ModelError(f"{error}; --model_dir {PRETRAINED} selects the models that ship") from error
        return _Candidate(folder, name, metadata)

    if model_dir is not None or version is not None:
        folder = TRAINED if model_dir is None else model_dir
        found = existing(folder)
        if folder != PRETRAINED and len(found) > 1:
            return _choose_in_folder([read_candidate(folder, name) for name in found])
        # without a model, loading it raises an error that says what is missing
        begun = (name for name in names if folder != PRETRAINED and model_folder(folder, name).is_dir())
        return Choice(folder, found[0] if found else next(begun, names[0]))
    shipped = next(iter(existing(PRETRAINED)), names[0])
    own = [read_candidate(TRAINED, name) for name in existing(TRAINED)]
    if not own:
        return Choice(PRETRAINED, shipped)
    flag = " --pipeline {}" if len(own) > 1 else ""
    comparable = [model for model in own if model.comparable]
    if not comparable:
        rival = min(own, key=lambda model: model.synthetic)
        why = "learnt from synthetic speech" if rival.synthetic else "was not measured on FSDD's official test"
        how = f"--model_dir {TRAINED}{flag.format(rival.pipeline)} selects it"
        return Choice(PRETRAINED, shipped, f"{rival} {why}; {how}")
    best = max(comparable, key=lambda model: model.accuracy)  # the first of BEST_FIRST among equals
    rate = _read_accuracy(_read_metadata(locate(PRETRAINED, shipped, precision, None)))
    if best.accuracy >= rate:
        reason = f"{_percent(best.accuracy)} on FSDD's official test; the {shipped} that ships has {_percent(rate)}"
        return Choice(best.model_dir, best.pipeline, reason)
    other = f"{best} has {_percent(best.accuracy)}, --model_dir {TRAINED}{flag.format(best.pipeline)} selects it"
    return Choice(PRETRAINED, shipped, f"{_percent(rate)} on FSDD's official test; {other}")


def _choose_in_folder(models: Sequence[_Candidate]) -> Choice:
    """Recordings before synthetic speech, then accuracy on the same clips."""
    models = [model for model in models if not model.synthetic] or models
    tested = [model for model in models if model.comparable] or models
    same = len({model.test_hash for model in tested}) == 1 and tested[0].test_hash != "unknown"
    if not same or any(math.isnan(model.accuracy) for model in tested):
        names = " and ".join(model.pipeline for model in models[1:])
        reason = f"not tested on the same clips as {names}, so the first; --pipeline selects another"
        return Choice(models[0].model_dir, models[0].pipeline, reason)
    best = max(tested, key=lambda model: model.accuracy)
    others = ", ".join(f"{model.pipeline} {_percent(model.accuracy)}" for model in tested if model is not best)
    reason = f"{_percent(best.accuracy)} of its test clips; on the same {others}" if others else ""
    return Choice(best.model_dir, best.pipeline, reason)


def _read_metadata(file: Path) -> dict[str, str]:
    from digit_detector.inspection import read_metadata  # loaded only when models are compared

    return read_metadata(file)


def _read_accuracy(metadata: Mapping[str, str]) -> float:
    try:
        return float(metadata.get("accuracy", "nan"))
    except ValueError:
        return math.nan


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
