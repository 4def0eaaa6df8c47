"""The registry: a pipeline's name -> how its model is built and best trained.

A further pipeline is one new file, one row here and its name in config.py.
"""

from __future__ import annotations

from digit_detector.errors import ConfigError, did_you_mean
from ml_training.pipelines import mel_cnn_pipeline, mfcc_pipeline, raw_cnn_pipeline
from ml_training.pipelines.base import DigitModel, Pipeline

__all__ = ["PIPELINE_REGISTRY", "DigitModel", "Pipeline", "get_pipeline"]

PIPELINE_REGISTRY = {
    pipeline.name: pipeline
    for pipeline in (mfcc_pipeline.PIPELINE, mel_cnn_pipeline.PIPELINE, raw_cnn_pipeline.PIPELINE)
}


def get_pipeline(name: str) -> Pipeline:
    """The pipeline of that name; raises ConfigError for an unknown one."""
    if name not in PIPELINE_REGISTRY:
        hint = did_you_mean(name, PIPELINE_REGISTRY)
        raise ConfigError([f"pipeline: expected one of {', '.join(PIPELINE_REGISTRY)}, got {name!r}{hint}"])
    return PIPELINE_REGISTRY[name]
