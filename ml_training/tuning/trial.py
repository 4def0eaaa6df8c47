"""One trial of a search, in this process or in one of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from digit_detector.errors import ConfigError, TrainingError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.cross_validation import load_unchanged
from ml_training.evaluation.process_pool import Worker
from ml_training.pipelines import get_pipeline
from ml_training.training.seeding import cpu_threads
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import parse_space, with_values
from ml_training.tuning.spec import SearchSpec
from ml_training.tuning.study import load_trial, open_study, read_values

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class TrialEnd:
    """How a trial ended."""

    state: str  # COMPLETE, PRUNED or FAIL, as Optuna names them
    values: tuple[float, ...] = ()  # of the objectives, of a complete trial
    steps: int = 0  # epochs or folds
    fault: str = ""


def run_trial(
    spec: SearchSpec, study: optuna.Study, number: int, objective: ObjectiveFn, on_step: Callable[[int, float], None]
) -> TrialEnd:
    """Train what trial `number` proposes and tell the study how it ended.

    `on_step` gets each step (epoch or fold, from 1) and the accuracy there. Raises Interrupted, after a checkpoint that
    the trial continues from.
    """
    import optuna

    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():  # its process died after it had told the study
        steps = len(frozen.intermediate_values)
        return TrialEnd(frozen.state.name, tuple(frozen.values or ()), steps, frozen.user_attrs.get("fault", ""))
    trial = load_trial(study, number)
    values = read_values(frozen, parse_space(spec.space))
    reported = max(frozen.intermediate_values, default=0)
    folder = spec.trial_folder(number)
    last_step = 0

    def report(step: int, accuracy: float) -> None:
        nonlocal last_step
        last_step = step
        on_step(step, accuracy)
        if len(spec.objectives) == 1 and step > reported:  # earlier ones were reported before a restart
            trial.report(accuracy, step)
            if trial.should_prune():
                raise optuna.TrialPruned

    try:
        config = TrainConfig(**with_values(to_dict(TrainConfig(**spec.config)), values))
        trial.set_user_attr("most", objective.count_epochs(config))
        result = objective(dataclasses.replace(config, keep_checkpoints="1"), folder, report)
    except optuna.TrialPruned:
        trial.set_user_attr("epochs", last_step * objective.epochs_of_a_step(config))
        end = TrialEnd("PRUNED", steps=last_step)
    except (ConfigError, TrainingError) as error:
        trial.set_user_attr("epochs", last_step)
        trial.set_user_attr("fault", str(error))
        end = TrialEnd("FAIL", steps=last_step, fault=str(error))
    else:
        for name, value in {"epochs": result.epochs, **result.details}.items():
            trial.set_user_attr(name, value)
        end = TrialEnd("COMPLETE", result.values, last_step)
    study.tell(trial, list(end.values) or None, state=optuna.trial.TrialState[end.state])
    write_json(folder / "trial.json", {"number": number, "settings": values})
    for path in folder.rglob("*.pt"):  # a trial that has ended is never resumed
        path.unlink(missing_ok=True)
    return end


@dataclass(frozen=True)
class TrialJob:
    """A trial for a worker process."""

    spec: SearchSpec
    number: int


def run_trial_in_worker(worker: Worker, job: TrialJob) -> TrialEnd:
    """The same in a worker process. Sends (number, step, accuracy), and lines to show."""
    spec, kept = job.spec, worker.kept
    config = TrainConfig(**spec.config)
    with use_cache(Cache() if config.cache else None), cpu_threads(config.threads):
        corpus = load_unchanged(worker, config, spec.data_hash)
        if "objective" not in kept:
            pipeline = get_pipeline(config.pipeline)
            kept["objective"] = ObjectiveFn(pipeline, corpus, spec.objectives, spec.folds, worker.stop, worker.send)
            kept["study"] = open_study(spec)
        return run_trial(
            spec, kept["study"], job.number, kept["objective"],
            lambda step, accuracy: worker.send((job.number, step, accuracy)),
        )  # fmt: skip
