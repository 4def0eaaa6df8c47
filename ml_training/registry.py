"""The pipelines by name, and the only list of them.

A further one is a module with a Pipeline (see pipelines/base.py) and an entry here, or, without changing the package,
the name module:ATTRIBUTE, e.g. `digits train --pipeline my_package.my_module:MyPipeline`. Modules are imported on
first use: reading settings needs no torch.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from digit_detector.errors import ConfigError, did_you_mean
from digit_detector.labels import MEL_CNN, MFCC, PIPELINE_NAME, RAW_CNN

if TYPE_CHECKING:
    from ml_training.pipelines.base import Pipeline

_ENTRIES = {
    MFCC: "ml_training.pipelines.mfcc_pipeline:PIPELINE",
    MEL_CNN: "ml_training.pipelines.mel_cnn_pipeline:PIPELINE",
    RAW_CNN: "ml_training.pipelines.raw_cnn_pipeline:PIPELINE",
}
_loaded: dict[str, Pipeline] = {}  # by name and by module:ATTRIBUTE


def pipeline_names() -> tuple[str, ...]:
    """The names of all registered pipelines, those that come with the package first."""
    return tuple(_ENTRIES)


def get_pipeline(name: str) -> Pipeline:
    """The pipeline of a registered name or of module:ATTRIBUTE, which is then registered by its own name.

    The working folder is searched for the module too. Raises ConfigError.
    """
    if name in _loaded:
        return _loaded[name]
    if ":" in name:
        _loaded[name] = register_pipeline(_load(name), name)
    elif name in _ENTRIES:
        _loaded[name] = _load(_ENTRIES[name])
    else:
        hint = did_you_mean(name, _ENTRIES)
        raise ConfigError([f"pipeline: expected one of {', '.join(_ENTRIES)} or module:ATTRIBUTE, got {name!r}{hint}"])
    return _loaded[name]


def register_pipeline(pipeline: Pipeline, spec: str = "") -> Pipeline:
    """Offer a pipeline by its name in this process; a later one replaces it, unless the earlier came from a module.

    Raises ConfigError for a name that is taken or cannot be that of a folder.
    """
    name = pipeline.name
    if not PIPELINE_NAME.fullmatch(name):
        raise ConfigError([f"pipeline: the name {name!r} is not made of letters, digits and _, a letter first"])
    taken = _ENTRIES.get(name, "")
    if taken not in ("", spec) and get_pipeline(name) is not pipeline:
        raise ConfigError([f"pipeline: the name {name!r} is that of {taken}: give {spec or 'the new one'} another"])
    _ENTRIES[name], _loaded[name] = spec or taken, pipeline
    return pipeline


def stored_name(name: str) -> str:
    """The name by which any process finds a pipeline: module:ATTRIBUTE where the package does not hold it."""
    spec = _ENTRIES.get(name, "")
    return name if not spec or spec.startswith("ml_training.") else spec


def is_registered(pipeline: Pipeline) -> bool:
    """Whether another process can find this pipeline by its name or module:ATTRIBUTE."""
    return bool(_ENTRIES.get(pipeline.name)) and get_pipeline(pipeline.name) is pipeline


def pipeline_spec(checkpoint: Mapping[str, Any]) -> str:
    """The name or module:ATTRIBUTE of the pipeline that a checkpoint was trained with."""
    name = str(checkpoint["config"].get("pipeline"))
    return name if ":" in name else str(checkpoint["pipeline"])


def _load(spec: str) -> Pipeline:
    module, _, attribute = spec.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # console scripts do not search it
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError([f"pipeline: cannot import {spec!r}: {error}"]) from error
    if not all(hasattr(found, field) for field in ("name", "build", "recipe")):
        raise ConfigError([f"pipeline: {spec!r} is {found!r}: expected a Pipeline(name, build, recipe)"])
    return found  # type: ignore[no-any-return]
