"""One trial of a search, in this process or in one of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from digit_detector.errors import ConfigError, TrainingError
from ml_training.config import TrainConfig
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.cross_validation import load_unchanged
from ml_training.evaluation.process_pool import Worker
from ml_training.pipelines import get_pipeline
from ml_training.training.setup import cpu_threads
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import parse_space, with_values
from ml_training.tuning.spec import SearchSpec
from ml_training.tuning.study import load_trial, open_study, read_values

if TYPE_CHECKING:
    import optuna


def run_trial(
    spec: SearchSpec, study: optuna.Study, number: int, objective: ObjectiveFn, on_step: Callable[[int, float], None]
) -> None:
    """Train with the settings of trial `number` and tell the study how it ended.

    `on_step` gets each step (epoch or fold, from 1) and the accuracy there. Raises Interrupted, after a checkpoint that
    the trial continues from.
    """
    import optuna

    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():  # its process died after it had told the study
        return
    trial, folder = load_trial(study, number), spec.trial_folder(number)
    reported, last_step = max(frozen.intermediate_values, default=0), 0

    def report(step: int, accuracy: float) -> None:
        nonlocal last_step
        last_step = step
        on_step(step, accuracy)
        if len(spec.objectives) == 1 and step > reported:  # earlier ones were reported before a restart
            trial.report(accuracy, step)
            if trial.should_prune():
                raise optuna.TrialPruned

    state, values, attributes = "COMPLETE", None, dict[str, Any]()
    try:
        config = TrainConfig(**with_values(spec.config, read_values(frozen.params, parse_space(spec.space))))
        trial.set_user_attr("most", objective.count_epochs(config))
        result = objective(dataclasses.replace(config, keep_checkpoints="1"), folder, report)
        values, attributes = list(result.values), {"epochs": result.epochs, **result.details}
    except optuna.TrialPruned:
        state, attributes = "PRUNED", {"epochs": last_step * objective.epochs_of_a_step(config)}
    except (ConfigError, TrainingError) as error:
        state, attributes = "FAIL", {"epochs": last_step, "fault": str(error)}
    for name, value in attributes.items():
        trial.set_user_attr(name, value)
    study.tell(trial, values, state=optuna.trial.TrialState[state])
    for path in folder.rglob("*.pt"):  # a trial that has ended is never resumed
        path.unlink(missing_ok=True)


def run_trial_in_worker(worker: Worker, job: tuple[SearchSpec, int]) -> None:
    """The same in a worker process. Sends (number, step, accuracy), and lines to show."""
    (spec, number), kept = job, worker.kept
    config = TrainConfig(**spec.config)
    with use_cache(Cache() if config.cache else None), cpu_threads(config.threads):
        corpus = load_unchanged(worker, config, spec.data_hash)
        if "objective" not in kept:
            pipeline = get_pipeline(config.pipeline)
            kept["objective"] = ObjectiveFn(pipeline, corpus, spec.objectives, spec.folds, worker.stop, worker.send)
            kept["study"] = open_study(spec)
        run_trial(
            spec, kept["study"], number, kept["objective"],
            lambda step, accuracy: worker.send((number, step, accuracy)),
        )  # fmt: skip
