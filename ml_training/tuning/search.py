"""A search: from its request to the best configuration and a report."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digit_detector.cli.signals import StopSignals
from digit_detector.errors import TrainingError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.evaluation.job_progress import JobProgress
from ml_training.evaluation.process_pool import CRASHED, Outcome, run_jobs
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import Pipeline
from ml_training.report.tuning import SearchPage, TrialRow, write_search_report
from ml_training.training.seeding import cpu_threads
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import Choices, Range, grid_size, parse_space, with_values
from ml_training.tuning.spec import COSTS, QUALITIES, UNITS, SearchSpec, TuneRequest
from ml_training.tuning.study import (
    TrialClaims,
    import_optuna,
    load_trial,
    open_study,
    read_values,
    select_completed,
)  # fmt: skip
from ml_training.tuning.trial import TrialEnd, TrialJob, run_trial, run_trial_in_worker

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

BEST = "best.json"
REPORT = "tuning_report.html"
Report = Callable[[str], None]
Backend = Callable[[SearchSpec, Report], Any]  # returns a study of Optuna


@dataclass(frozen=True)
class TuneOutcome:
    """What a search led to."""

    trials: int
    completed: int
    pruned: int
    failed: int
    best: Path | None  # configuration of the best trial; None where none was completed
    values: tuple[float, ...]  # of it
    settings: Mapping[str, Any]  # its values of what was searched
    front: tuple[Path, ...]  # configurations of the Pareto front, of two objectives
    epochs: int
    most_epochs: int  # that all trials had taken without pruning
    seconds: float
    report: Path
    faults: tuple[str, ...] = field(default=())


def tune(
    request: TuneRequest,
    say: Report = lambda line: None,
    *,
    corpus: Corpus | None = None,
    pipeline: Pipeline | None = None,
    backend: Backend | None = None,
) -> TuneOutcome:
    """Search until there are as many trials as were asked for; what is there already counts.

    `corpus` takes the place of the recordings that the request's config names, `pipeline` that of the registry's; both
    for one worker alone. `backend` runs the trials elsewhere and returns the study. Raises ConfigError where the output
    holds another search, DataError without usable recordings, TrainingError where no trial can be tried,
    MissingExtraError without Optuna, Interrupted after Ctrl-C or SIGTERM: the same request goes on.
    """
    import_optuna()
    config, began = request.config, time.perf_counter()
    own = corpus is not None or pipeline is not None
    with use_cache(Cache(report=say) if config.cache else None), StopSignals() as signals:
        corpus = load_corpus(config, report=say) if corpus is None else corpus
        pipeline = get_pipeline(config.pipeline) if pipeline is None else pipeline
        space = parse_space(request.space)
        trials = request.trials
        if request.sampler == "grid" and grid_size(space) < trials:
            trials = grid_size(space)
            say(f"the grid has {trials} points: so many trials")
        spec = SearchSpec(
            config=to_dict(config), space=dict(request.space), trials=trials, sampler=request.sampler,
            pruner=request.pruner, objectives=request.objectives, folds=request.folds, seed=config.seed,
            data_hash=corpus.data_hash, output=request.output, storage=request.storage, workers=request.workers,
        )  # fmt: skip
        if backend is not None:
            study = backend(spec, say)
            return _summarise(study, spec, space, time.perf_counter() - began, corpus)
        study = open_study(spec)
        existing = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        how = f"{trials} trials of {config.pipeline} by {request.sampler}, pruned by {request.pruner}"
        say(f"{how}, {existing} already there, {request.workers} at once, in {request.output}")
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(JobProgress(trials, say, completed=existing))
            stack.callback(lambda: _write_configs(study, spec, space))
            claims = stack.enter_context(contextlib.closing(TrialClaims(study, spec)))
            lines = _TrialLines(spec, existing, progress)
            if request.workers > 1 and not own:
                _run_in_processes(spec, study, claims, signals, lines)
            else:
                stack.enter_context(cpu_threads(config.threads))
                objective = ObjectiveFn(pipeline, corpus, spec.objectives, spec.folds, signals, say)
                for number in claims:
                    lines.show_step(number)
                    lines.end(number, run_trial(spec, study, number, objective, partial(lines.show_step, number)))
                    claims.release(number)
        return _summarise(study, spec, space, time.perf_counter() - began, corpus)


def _run_in_processes(
    spec: SearchSpec, study: optuna.Study, claims: TrialClaims, signals: StopSignals, lines: _TrialLines
) -> None:
    def start() -> Iterator[TrialJob]:
        for number in claims:
            lines.show_step(number)
            yield TrialJob(spec, number)

    def end(outcome: Outcome[TrialJob]) -> None:
        number, result = outcome.job.number, outcome.result
        if outcome.error == CRASHED:
            trial = load_trial(study, number)
            trial.set_user_attr("fault", CRASHED)
            study.tell(trial, state=import_optuna().trial.TrialState.FAIL)
            result = TrialEnd("FAIL", fault=CRASHED)
        elif outcome.error is not None and signals.signum is None:
            raise TrainingError(f"trial {number}: {outcome.error}; the same command goes on")
        if result is not None:
            lines.end(number, result)
        claims.release(number)

    run_jobs(run_trial_in_worker, start(), spec.workers, signals, lines.show, end)


class _TrialLines:
    """A line for each trial that ends, and the progress of those that run."""

    def __init__(self, spec: SearchSpec, ended: int, progress: JobProgress) -> None:
        self._spec, self._ended, self._progress = spec, ended, progress

    def show(self, message: str | tuple[int, int, float]) -> None:
        """Show a message of a worker process."""
        if isinstance(message, str):
            self._progress.report(message)
        else:
            self.show_step(*message)

    def show_step(self, number: int, step: int = 0, accuracy: float = 0.0) -> None:
        self._progress.update(number, f"{number} at {step}, {100 * accuracy:.1f} %" if step else str(number))

    def end(self, number: int, end: TrialEnd) -> None:
        self._ended += 1
        self._progress.update(number, None, 1)
        how = {
            "PRUNED": f"given up after {end.steps}", "FAIL": f"failed: {end.fault}",
            "COMPLETE": ", ".join(map(format_value, self._spec.objectives, end.values)),
        }[end.state]  # fmt: skip
        self._progress.report(f"trial {number}: {how} ({self._ended} of {self._spec.trials})")


def format_value(objective: str, value: float) -> str:
    """A value of an objective with its unit."""
    if objective in QUALITIES:
        return f"{100 * value:.2f} % right ({objective})"
    assert objective in COSTS
    return f"{value:.3f} {UNITS[objective]} {objective}"


# --- what came of it -----------------------------------------------------------------------------


def _write_configs(
    study: optuna.Study, spec: SearchSpec, space: Mapping[str, Choices | Range]
) -> tuple[FrozenTrial | None, list[FrozenTrial]]:
    """Write the configurations of the best trial and of the front; those trials."""
    done = select_completed(study.get_trials(deepcopy=False))
    if not done:
        return None, []
    folder = spec.folder
    best = max(done, key=lambda t: (t.values[0], *(-value for value in t.values[1:]), -t.number))
    write_json(folder / BEST, trial_config(spec, space, best))
    front = [] if len(spec.objectives) == 1 else sorted(study.best_trials, key=lambda t: -t.values[0])
    there = {folder / f"pareto_{trial.number}.json" for trial in front}
    for path in set(folder.glob("pareto_*.json")) - there:  # a later trial is better at both
        path.unlink(missing_ok=True)
    for trial in front:
        write_json(folder / f"pareto_{trial.number}.json", trial_config(spec, space, trial))
    return best, front


def trial_config(spec: SearchSpec, space: Mapping[str, Choices | Range], trial: FrozenTrial) -> dict[str, Any]:
    """What train.py --config takes: the settings that are not defaults, and those of the trial."""
    plain = json.loads(json.dumps(to_dict(TrainConfig())))
    base = {k: v for k, v in json.loads(json.dumps(spec.config)).items() if v != plain[k] or k == "pipeline"}
    return with_values(base, read_values(trial, dict(space)))


def _summarise(
    study: optuna.Study, spec: SearchSpec, space: Mapping[str, Choices | Range], seconds: float, corpus: Corpus
) -> TuneOutcome:
    trials = study.get_trials(deepcopy=False)
    folder = spec.folder
    best, front = _write_configs(study, spec, space)
    states = [trial.state.name for trial in trials]
    epochs = sum(trial.user_attrs.get("epochs", 0) for trial in trials)
    most = sum(trial.user_attrs.get("most", 0) for trial in trials)
    ended = select_completed(trials)  # the last report of a trial that was given up is no value of it
    rows = [
        TrialRow(
            t.number, t.state.name.lower(), tuple(t.values) if t in ended else (), read_values(t, dict(space)),
            dict(t.intermediate_values), t.user_attrs.get("epochs", 0), t.user_attrs.get("fault", ""),
        )
        for t in trials
    ]  # fmt: skip
    page = SearchPage(
        pipeline=spec.config["pipeline"], data=corpus.name, synthetic=corpus.synthetic, objectives=spec.objectives,
        directions=spec.directions, sampler=spec.sampler, pruner=spec.pruner,
        seed=spec.seed, rows=tuple(rows), space=dict(spec.space), importances=_importances(study, len(spec.objectives)),
        best=best.number if best else None, front=tuple(t.number for t in front), epochs=epochs, most_epochs=most,
        config=trial_config(spec, space, best) if best else {},
        logarithmic=tuple(name for name, values in space.items() if isinstance(values, Range) and values.log),
    )  # fmt: skip
    write_search_report(page, folder / REPORT)
    faults = tuple(dict.fromkeys(row.fault for row in rows if row.fault))
    return TuneOutcome(
        trials=len(trials), completed=states.count("COMPLETE"), pruned=states.count("PRUNED"),
        failed=states.count("FAIL"), best=folder / BEST if best else None, values=tuple(best.values) if best else (),
        settings=read_values(best, dict(space)) if best else {},
        front=tuple(folder / f"pareto_{t.number}.json" for t in front), epochs=epochs, most_epochs=most,
        seconds=seconds, report=folder / REPORT, faults=faults,
    )  # fmt: skip


def _importances(study: optuna.Study, objectives: int) -> dict[str, float]:
    """How much each setting decides the first objective, by PED-ANOVA; none where too few trials tell."""
    import warnings

    import optuna

    target = None if objectives == 1 else (lambda trial: trial.values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(ValueError, RuntimeError):
            found = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(), target=target
            )
            return {name: float(share) for name, share in found.items()}
    return {}
