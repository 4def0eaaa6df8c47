"""What `digits tune` does: a search from its request to the best configuration and a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from digit_detector.cli.live_line import LiveLine
from digit_detector.cli.signals import StopSignals
from digit_detector.errors import TrainingError
from digit_detector.files import write_json
from ml_training.config import TrainConfig, to_dict
from ml_training.data.corpus import Corpus
from ml_training.data.dataset_loader import load_corpus
from ml_training.data.feature_cache import Cache, use_cache
from ml_training.pipelines import get_pipeline
from ml_training.pipelines.base import Pipeline
from ml_training.training.setup import cpu_threads
from ml_training.tuning.optuna_study import finished, open_study, optuna_module, values_of
from ml_training.tuning.request import COSTS, DIRECTIONS, QUALITIES, UNITS, TuneRequest
from ml_training.tuning.space import Choices, Range, checked_space, grid_size, with_values
from ml_training.tuning.worker import Task, work
from ml_training.utils.processes import JsonProcess, Said, end_all, next_words
from ml_training.utils.report_tuning import SearchPage, TrialRow, write_search_report

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

BEST = "best.json"
REPORT = "tuning_report.html"
PROCESS = "ml_training.tuning.worker"
Report = Callable[[str], None]
Search = Callable[[Task, Report], Any]  # to a study of Optuna


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
    elsewhere: Search | None = None,
) -> TuneOutcome:
    """Search until there are as many trials as were asked for; what is there already counts.

    `corpus` takes the place of the recordings that the request's config names, `pipeline` that of the registry's; both
    for one worker alone. `elsewhere` tries the trials in the place of this machine. Raises ConfigError where the output
    holds another search, DataError without usable recordings, TrainingError where no trial can be tried,
    MissingExtraError without Optuna, Interrupted after Ctrl-C or SIGTERM: the same request goes on.
    """
    optuna_module()
    config, began = request.config, time.perf_counter()
    own = corpus is not None or pipeline is not None
    with use_cache(Cache(report=say) if config.cache else None), StopSignals() as signals:
        corpus = load_corpus(config, report=say) if corpus is None else corpus
        pipeline = get_pipeline(config.pipeline) if pipeline is None else pipeline
        space = checked_space(request.space)
        trials = request.trials
        if request.sampler == "grid" and grid_size(space) < trials:
            trials = grid_size(space)
            say(f"the grid has {trials} points: so many trials")
        task = Task(
            config=to_dict(config), space=dict(request.space), trials=trials, sampler=request.sampler,
            pruner=request.pruner, objectives=request.objectives, folds=request.folds, seed=config.seed,
            data_hash=corpus.data_hash, output=request.output, storage=request.storage, workers=request.workers,
        )  # fmt: skip
        if elsewhere is not None:
            study = elsewhere(task, say)
            return _outcome(study, task, space, time.perf_counter() - began, corpus)
        study = open_study(task.plan(), task.storage, Path(task.output))
        there = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        said = f"{trials} trials of {config.pipeline} by {request.sampler}, pruned by {request.pruner}"
        say(f"{said}, {there} already there, {request.workers} at once, in {request.output}")
        display = _Display(trials, there, request.objectives, say)
        with contextlib.ExitStack() as stack:
            stack.callback(display.close)
            stack.callback(lambda: _write(study, task, space))
            if request.workers > 1 and not own:
                _in_processes(task, display)
            else:
                stack.enter_context(cpu_threads(config.threads))
                work(task, corpus, pipeline, signals, display.told)
        return _outcome(study, task, space, time.perf_counter() - began, corpus)


def _in_processes(task: Task, display: _Display) -> None:
    said: Said = Said()
    first = json.dumps(dataclasses.asdict(task))
    workers = {number: JsonProcess(PROCESS, first, number, said) for number in range(task.workers)}
    faults: list[str] = []
    done = 0
    try:
        while workers:
            number, words = next_words(said)
            if words is None:
                worker = workers.pop(number)
                if worker.position == 0:
                    worker.end()
                else:
                    faults.append(worker.last_words())
            elif "ended" in words:
                workers[number].position = 0
                done += 1
            elif "broken" in words:
                faults.append(words["broken"])
                workers[number].position = 0
            else:
                display.told(**words)
    finally:
        end_all(list(workers.values()))
    if not done:
        raise TrainingError(f"every worker ended early, the same command goes on: {'; '.join(dict.fromkeys(faults))}")
    for fault in faults:  # another took up what it had begun
        display.told(say=f"a worker ended early: {fault}")


class _Display:
    """A line for each trial that ends; on a terminal also a live one."""

    def __init__(self, trials: int, there: int, objectives: Sequence[str], say: Report) -> None:
        self._trials, self._ended, self._objectives, self._say = trials, there, objectives, say
        self._running: dict[int, str] = {}
        self._best: tuple[float, int] | None = None
        self._line = LiveLine()

    def told(self, **words: Any) -> None:
        number = words.get("trial", -1)
        if "say" in words:
            self._tell(words["say"])
        elif "step" in words:
            self._running[number] = f"{number} at {words['step']}, {100 * words['share']:.1f} %"
        elif "begun" in words:
            self._running[number] = f"{number}"
        else:
            self._ended += 1
            self._running.pop(number, None)
            self._tell(f"trial {number}: {self._ending(number, words)} ({self._ended} of {self._trials})")
        best = f"  best {100 * self._best[0]:.2f} % (trial {self._best[1]})" if self._best else ""
        share = self._ended / max(1, self._trials)
        bar = "█" * int(24 * share) + "░" * (24 - int(24 * share))
        self._line.show(f"{bar} {self._ended} of {self._trials}{best}  running: {'; '.join(self._running.values())}")

    def _ending(self, number: int, words: Mapping[str, Any]) -> str:
        if "pruned" in words:
            return f"given up after {words['pruned']}"
        if "failed" in words:
            return f"failed: {words['failed']}"
        if self._best is None or words["values"][0] > self._best[0]:
            self._best = (words["values"][0], number)
        return ", ".join(map(shown, self._objectives, words["values"]))

    def _tell(self, line: str) -> None:
        self._line.clear()
        self._say(line)

    def close(self) -> None:
        self._line.clear()


def shown(objective: str, value: float) -> str:
    """A value of an objective for people."""
    if objective in QUALITIES:
        return f"{100 * value:.2f} % right ({objective})"
    assert objective in COSTS
    return f"{value:.3f} {UNITS[objective]} {objective}"


# --- what came of it -----------------------------------------------------------------------------


def _write(
    study: optuna.Study, task: Task, space: Mapping[str, Choices | Range]
) -> tuple[FrozenTrial | None, list[FrozenTrial]]:
    """Write the configurations of the best trial and of the front; those trials."""
    done = finished(study.get_trials(deepcopy=False))
    if not done:
        return None, []
    folder = Path(task.output)
    best = max(done, key=lambda t: (t.values[0], *(-value for value in t.values[1:]), -t.number))
    write_json(folder / BEST, config_of(task, space, best))
    front = [] if len(task.objectives) == 1 else sorted(study.best_trials, key=lambda t: -t.values[0])
    there = {folder / f"pareto_{trial.number}.json" for trial in front}
    for path in set(folder.glob("pareto_*.json")) - there:  # a later trial is better at both
        path.unlink(missing_ok=True)
    for trial in front:
        write_json(folder / f"pareto_{trial.number}.json", config_of(task, space, trial))
    return best, front


def config_of(task: Task, space: Mapping[str, Choices | Range], trial: FrozenTrial) -> dict[str, Any]:
    """What train.py --config takes: the settings that are not defaults, and those of the trial."""
    plain = json.loads(json.dumps(to_dict(TrainConfig())))
    base = {k: v for k, v in json.loads(json.dumps(task.config)).items() if v != plain[k] or k == "pipeline"}
    return with_values(base, values_of(trial, dict(space)))


def _outcome(
    study: optuna.Study, task: Task, space: Mapping[str, Choices | Range], seconds: float, corpus: Corpus
) -> TuneOutcome:
    trials = study.get_trials(deepcopy=False)
    folder = Path(task.output)
    best, front = _write(study, task, space)
    states = [trial.state.name for trial in trials]
    epochs = sum(trial.user_attrs.get("epochs", 0) for trial in trials)
    most = sum(trial.user_attrs.get("most", 0) for trial in trials)
    ended = finished(trials)  # the last report of a trial that was given up is no value of it
    rows = [
        TrialRow(
            t.number, t.state.name.lower(), tuple(t.values) if t in ended else (), values_of(t, dict(space)),
            dict(t.intermediate_values), t.user_attrs.get("epochs", 0), t.user_attrs.get("fault", ""),
        )
        for t in trials
    ]  # fmt: skip
    page = SearchPage(
        pipeline=task.config["pipeline"], data=corpus.name, synthetic=corpus.synthetic, objectives=task.objectives,
        directions=tuple(DIRECTIONS[name] for name in task.objectives), sampler=task.sampler, pruner=task.pruner,
        seed=task.seed, rows=tuple(rows), space=dict(task.space), importances=_importances(study, len(task.objectives)),
        best=best.number if best else None, front=tuple(t.number for t in front), epochs=epochs, most_epochs=most,
        config=config_of(task, space, best) if best else {},
        logarithmic=tuple(name for name, values in space.items() if isinstance(values, Range) and values.log),
    )  # fmt: skip
    write_search_report(page, folder / REPORT)
    faults = tuple(dict.fromkeys(row.fault for row in rows if row.fault))
    return TuneOutcome(
        trials=len(trials), completed=states.count("COMPLETE"), pruned=states.count("PRUNED"),
        failed=states.count("FAIL"), best=folder / BEST if best else None, values=tuple(best.values) if best else (),
        settings=values_of(best, dict(space)) if best else {},
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
