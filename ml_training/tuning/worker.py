"""Trials, one after the other, until there are as many as were asked for; in this process or as one of several.

As a process, `python -m ml_training.tuning.worker`, it is told its task in one line of JSON and tells of each trial.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, DigitError, Interrupted, TrainingError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import Pipeline
from ml_training.training.setup import cpu_threads
from ml_training.tuning.objectives import Judge, Pruned
from ml_training.tuning.optuna_study import Plan, hopeless, next_trial, open_study, suggest, trial_folder
from ml_training.tuning.request import DIRECTIONS
from ml_training.tuning.space import checked_space, with_values
from ml_training.utils.processes import tell_parent, words_from_parent

if TYPE_CHECKING:
    import optuna
    from optuna.trial import Trial

Tell = Callable[..., None]


@dataclass(frozen=True)
class Task:
    """What a search is, as plain values: the same for every worker on it."""

    config: Mapping[str, Any]  # settings that all trials share
    space: Mapping[str, Any]  # as declared
    trials: int
    sampler: str
    pruner: str
    objectives: tuple[str, ...]
    folds: int
    seed: int
    data_hash: str
    output: str
    storage: str  # address of a database, or "" for a journal in `output`
    workers: int

    def plan(self) -> Plan:
        from ml_training.evaluation.folds import PER_FOLD
        from ml_training.training.checkpoint import FREE_SETTINGS

        deciding = {k: v for k, v in self.config.items() if k not in FREE_SETTINGS and k not in PER_FOLD}
        told = {
            "settings": deciding, "objectives": list(self.objectives), "data_hash": self.data_hash,
            "folds": self.folds if self.objectives[0] == "cv" else None,
        }  # fmt: skip
        directions = tuple(DIRECTIONS[name] for name in self.objectives)
        return Plan(
            checked_space(self.space), self.space, self.sampler, self.pruner, directions, self.seed, told, self.workers
        )


def task_of(values: Mapping[str, Any]) -> Task:
    """The task that JSON gave back."""
    return Task(**{**values, "objectives": tuple(values["objectives"])})


def work(task: Task, corpus: Corpus, pipeline: Pipeline, stop: StopSignals, tell: Tell) -> None:
    """Take trials until there are enough. `tell` hears of each: begun, epochs and how it ended.

    Raises Interrupted, after a checkpoint that the trial goes on from, and what open_study raises.
    """
    plan, folder = task.plan(), Path(task.output)
    study = open_study(plan, task.storage, folder)
    base = TrainConfig(**task.config)
    judge = Judge(pipeline, corpus, task.objectives, task.folds, (base.seed,), stop, lambda line: tell(say=line))
    while True:
        with next_trial(study, plan, task.trials, folder, bool(task.storage)) as trial:
            if trial is None:
                return
            _try(study, plan, trial, judge, base, trial_folder(folder, trial.number), tell)


def _try(
    study: optuna.Study, plan: Plan, trial: Trial, judge: Judge, base: TrainConfig, folder: Path, tell: Tell
) -> None:
    from optuna.trial import TrialState

    number, values = trial.number, suggest(trial, plan.space)
    reported = dict(study.get_trials(deepcopy=False)[number].intermediate_values)
    tell(trial=number, begun=values)
    steps = 0

    def report(step: int, share: float) -> None:
        nonlocal steps
        steps = step
        tell(trial=number, step=step, share=share)
        if len(plan.directions) > 1:
            return
        if step in reported and step < max(reported):  # decided before a restart
            return
        if step not in reported:
            trial.report(share, step)
        if hopeless(study, number):
            raise Pruned

    try:
        config = TrainConfig(**with_values(to_dict(base), values))
        trial.set_user_attr("most", judge.epochs(config))
        judged = judge.judge(dataclasses.replace(config, keep_checkpoints="1"), folder, report)
    except Pruned:
        trial.set_user_attr("epochs", _trained(judge, config, steps))
        study.tell(trial, state=TrialState.PRUNED)
        tell(trial=number, pruned=steps)
    except (ConfigError, TrainingError) as error:
        trial.set_user_attr("fault", str(error))
        trial.set_user_attr("epochs", steps)
        study.tell(trial, state=TrialState.FAIL)
        tell(trial=number, failed=str(error))
    else:
        for name, value in {"epochs": judged.epochs, **judged.details}.items():
            trial.set_user_attr(name, value)
        study.tell(trial, list(judged.values))
        tell(trial=number, values=judged.values)
    write_json(folder / "trial.json", {"number": number, "settings": values})
    for path in folder.rglob("*.pt"):  # a trial that has ended is not gone on with
        path.unlink(missing_ok=True)


def _trained(judge: Judge, config: TrainConfig, steps: int) -> int:
    """Epochs that a trial which was given up has taken."""
    if judge.objectives[0] == "validation":
        return steps
    own = config.resolved(judge.pipeline.name, judge.pipeline.recipe)
    return steps * (own.epochs or 0)


def main() -> int:
    lines = words_from_parent()
    with StopSignals() as signals:
        try:
            task = task_of(json.loads(lines.get()))
            config = TrainConfig(**task.config)
            with use_cache(Cache() if config.cache else None), cpu_threads(config.threads):
                corpus = load_corpus(config, report=lambda line: None)
                if corpus.data_hash != task.data_hash:
                    raise TrainingError(f"{corpus.name} changed: start again when nobody writes there")
                work(task, corpus, get_pipeline(config.pipeline), signals, tell_parent)
            tell_parent(ended=True)
        except Interrupted as stop:
            return stop.exit_code
        except DigitError as error:
            tell_parent(broken=str(error))
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
