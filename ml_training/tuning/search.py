"""A search: from its specification to the best configuration and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import ConfigError, TrainingError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.cross_validation import load_unchanged
from ml_training.evaluation.process_pool import CRASHED, JobProgress, Outcome, Worker, run_jobs
from ml_training.pipelines import get_pipeline
from ml_training.report.tuning import SearchResult, is_complete, write_search_report
from ml_training.training.seeding import cpu_threads
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import grid, import_optuna, parse_space, with_values
from ml_training.tuning.spec import QUALITIES, UNITS, SearchSpec
from ml_training.tuning.study import claim_trials, load_trial, open_study, read_values

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

BEST = "best.json"
REPORT = "tuning_report.html"
Report = Callable[[str], None]
Backend = Callable[[SearchSpec, Report], Any]  # returns a study of Optuna


def tune(spec: SearchSpec, say: Report = lambda line: None, *, backend: Backend | None = None) -> SearchResult:
    """Search until there are `spec.trials` trials, those of an earlier call included.

    `backend` runs the trials elsewhere and returns the study. Raises ConfigError if the output holds another search,
    DataError without usable recordings, TrainingError if no trial can be run, MissingExtraError without Optuna,
    Interrupted after Ctrl-C or SIGTERM: the same spec goes on.
    """
    config, began = TrainConfig(**spec.config), time.perf_counter()
    with use_cache(Cache() if config.cache else None), StopSignals() as signals:
        corpus = load_corpus(config, report=say)
        trials = spec.trials
        if spec.sampler == "grid":
            points = math.prod(map(len, grid(spec.space).values()))
            trials = min(trials, points)
            say(f"the grid has {points} points: {trials} trials")
        spec = dataclasses.replace(spec, trials=trials, data_hash=corpus.data_hash)
        if backend is not None:
            return _summarise(backend(spec, say), spec, time.perf_counter() - began, corpus)
        study = open_study(spec)
        existing = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        how = f"{trials} trials of {config.pipeline} by {spec.sampler}, pruned by {spec.pruner}"
        say(f"{how}, {existing} already done, {spec.workers} at once, in {spec.output}")
        with JobProgress(trials, say, completed=existing) as progress:
            run = _Run(spec, study, progress, existing)
            if spec.workers > 1:
                run.in_worker_processes(signals)
            else:
                pipeline = get_pipeline(config.pipeline)
                with cpu_threads(config.threads):
                    run.in_this_process(ObjectiveFn(pipeline, corpus, spec.objectives, spec.folds, signals, say))
        return _summarise(study, spec, time.perf_counter() - began, corpus)


def run_trial(
    spec: SearchSpec, study: optuna.Study, number: int, objective: ObjectiveFn, on_step: Callable[[int, float], None]
) -> None:
    """Train with the settings of trial `number` and record its end in the study.

    `on_step` gets each step (epoch or fold, from 1) and the accuracy there. Raises Interrupted, after a checkpoint that
    the trial continues from.
    """
    import optuna

    frozen = study.get_trials(deepcopy=False)[number]
    if frozen.state.is_finished():  # its process ended after the study knew
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
    settings = read_values(frozen.params, parse_space(spec.space))
    try:
        config = TrainConfig(**with_values(spec.config, settings))
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
    write_json(folder / "trial.json", {"number": number, "settings": settings})
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


class _Run:
    """The trials of this command, with a line for each that ends."""

    def __init__(self, spec: SearchSpec, study: optuna.Study, progress: JobProgress, ended: int) -> None:
        self._spec, self._study, self._progress, self._ended = spec, study, progress, ended
        self._locks: dict[int, FileLock] = {}

    def in_this_process(self, objective: ObjectiveFn) -> None:
        """Run the trials one after another in this process."""
        for _, number in self._jobs():
            run_trial(self._spec, self._study, number, objective, partial(self._show_step, number))
            self._end(number)

    def in_worker_processes(self, signals: StopSignals) -> None:
        """Run the trials in worker processes."""

        def end(outcome: Outcome[tuple[SearchSpec, int]]) -> None:
            number = outcome.job[1]
            if outcome.error == CRASHED:
                trial = load_trial(self._study, number)
                trial.set_user_attr("fault", CRASHED)
                self._study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
            elif outcome.error is not None:
                if signals.signum is None:
                    raise TrainingError(f"trial {number}: {outcome.error}; the same command goes on")
                return
            self._end(number)

        def show(message: str | tuple[int, int, float]) -> None:
            if isinstance(message, str):
                self._progress.report(message)
            else:
                self._show_step(*message)

        run_jobs(run_trial_in_worker, self._jobs(), self._spec.workers, signals, show, end)

    def _jobs(self) -> Iterator[tuple[SearchSpec, int]]:
        for number in claim_trials(self._study, self._spec, self._locks):
            self._progress.update(number, str(number))
            yield self._spec, number

    def _show_step(self, number: int, step: int, accuracy: float) -> None:
        self._progress.update(number, f"{number} at {step}, {100 * accuracy:.1f} %")

    def _end(self, number: int) -> None:
        self._locks.pop(number).release()
        self._ended += 1
        self._progress.update(number, None, 1)
        trial = self._study.get_trials(deepcopy=False)[number]
        how = {
            "PRUNED": f"pruned after {len(trial.intermediate_values)}",
            "FAIL": f"failed: {trial.user_attrs.get('fault', '')}",
            "COMPLETE": ", ".join(map(format_value, self._spec.objectives, trial.values or ())),
        }[trial.state.name]  # fmt: skip
        self._progress.report(f"trial {number}: {how} ({self._ended} of {self._spec.trials})")
        _write_configs(self._study, self._spec)


def format_value(objective: str, value: float) -> str:
    """A value of an objective with its unit."""
    if objective in QUALITIES:
        return f"{100 * value:.2f} % right ({objective})"
    return f"{value:.3f} {UNITS[objective]} {objective}"


# --- results -------------------------------------------------------------------------------------


def _write_configs(study: optuna.Study, spec: SearchSpec) -> tuple[FrozenTrial | None, list[FrozenTrial]]:
    """Write the configurations of the best trial and of the Pareto front; returns these trials."""
    front = study.best_trials if len(spec.objectives) > 1 else []
    completed = [t for t in study.get_trials(deepcopy=False) if is_complete(t)]
    best = max(completed, key=lambda t: (t.values[0], *(-v for v in t.values[1:]), -t.number), default=None)
    for path in spec.folder.glob("pareto_*.json"):  # a later trial may be better in both
        path.unlink(missing_ok=True)
    for trial in front:
        write_json(spec.folder / f"pareto_{trial.number}.json", trial_config(spec, trial))
    if best:
        write_json(spec.folder / BEST, trial_config(spec, best))
    return best, front


def _summarise(study: optuna.Study, spec: SearchSpec, seconds: float, corpus: Corpus) -> SearchResult:
    """Write configurations and report."""
    best, front = _write_configs(study, spec)
    result = SearchResult(
        spec, corpus.name, corpus.synthetic, tuple(study.get_trials(deepcopy=False)), best, tuple(front),
        trial_config(spec, best) if best else {}, _importances(study), seconds,
    )  # fmt: skip
    write_search_report(result, spec.folder / REPORT)
    return result


def trial_config(spec: SearchSpec, trial: FrozenTrial) -> dict[str, Any]:
    """What train.py --config takes: the settings that are not defaults, and those of the trial."""
    plain, own = (json.loads(json.dumps(values)) for values in (to_dict(TrainConfig()), spec.config))
    base = {name: value for name, value in own.items() if value != plain[name] or name == "pipeline"}
    return with_values(base, read_values(trial.params, parse_space(spec.space)))


def _importances(study: optuna.Study) -> dict[str, float]:
    """Importance of each setting for the first objective, by PED-ANOVA; none of too few trials."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    target = None if len(study.directions) == 1 else (lambda trial: trial.values[0])
    with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target)
        return {name: float(share) for name, share in shares.items()}
    return {}
