"""The models that are trained, one module each; see ml_training/registry.py for their names."""

from ml_training.pipelines.base import DigitModel, Pipeline
from ml_training.registry import get_pipeline, pipeline_names, register_pipeline

__all__ = ["DigitModel", "Pipeline", "get_pipeline", "pipeline_names", "register_pipeline"]
