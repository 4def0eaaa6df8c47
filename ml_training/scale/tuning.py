"""A search whose trials run on many machines: Ray Tune starts them, Optuna samples their settings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from digit_detector.errors import ClusterError, ConfigError
from ml_training.config import TrainConfig, to_dict
from ml_training.scale.cluster import MAX_FAILURES, last_line, quiet, ray_cluster
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import Space, import_optuna, parse_space, with_values
from ml_training.tuning.spec import DIRECTIONS, SearchSpec
from ml_training.tuning.study import STUDY, check_fingerprint, make_sampler, suggest

_METRIC = "value"


def search_on_cluster(address: str, spec: SearchSpec, say: Callable[[str], None]) -> Any:
    """The Optuna study of a search whose trials Ray Tune ran, `spec.workers` at once.

    Every machine has to see the output folder: a trial whose machine is lost continues elsewhere from its checkpoint
    there, and the same command continues a search that was stopped. Raises ConfigError, or ClusterError where the
    cluster is missing, too small, or gave up.
    """
    if len(spec.objectives) > 1:
        raise ConfigError(["objective: expected one with --engine ray: validation, cv or loso"])
    if spec.storage:
        raise ConfigError(["storage: Ray keeps its own, leave --storage out with --engine ray"])
    space, folder = parse_space(spec.space), Path(spec.output).absolute()
    threads = max(1, int(spec.config["threads"]))
    import_optuna()
    with ray_cluster(address, spec.workers * threads, threads):
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch

        quiet("ray.tune")
        check_fingerprint(spec)
        search = OptunaSearch(space=partial(_sample, space), metric=_METRIC, mode="max", sampler=make_sampler(spec, 0))
        parameters = {"spec": dataclasses.asdict(spec), "folder": str(folder)}
        trainable = tune.with_resources(tune.with_parameters(run_trial, **parameters), {"cpu": threads})
        path = str(folder / "ray")
        if tune.Tuner.can_restore(path):
            say(f"continuing the search in {path}")
            tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True, resume_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=ConcurrencyLimiter(search, max_concurrent=spec.workers), num_samples=spec.trials,
                    scheduler=_scheduler(spec.pruner), metric=_METRIC, mode="max",
                ),
                run_config=tune.RunConfig(
                    name="ray", storage_path=str(folder), verbose=0,
                    failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                ),
            )  # fmt: skip
        try:
            results = tuner.fit()
        except Exception as error:
            raise ClusterError(f"the cluster gave the search up: {last_line(error)}") from error
        return _study(results, spec, space)


def _sample(space: Space, trial: Any) -> dict[str, str]:
    """Sampled settings as one text: names with dots mean something to Ray."""
    return {"values": json.dumps(suggest(trial, space))}


def _scheduler(pruner: str) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if pruner == "median":
        return MedianStoppingRule(time_attr="step", grace_period=1, min_samples_required=5)
    if pruner == "halving":
        return AsyncHyperBandScheduler(time_attr="step", grace_period=1, reduction_factor=3, max_t=1000)
    return FIFOScheduler()


def run_trial(config: dict[str, Any], spec: dict[str, Any], folder: str) -> None:
    """Train with sampled settings in a process of Ray's, and report the objective of each step and of the end."""
    from ray import tune

    from digit_detector.cli.signals import StopSignals
    from ml_training.data.dataset_loader import load_corpus
    from ml_training.data.feature_cache import Cache, use_cache
    from ml_training.pipelines import get_pipeline
    from ml_training.training.seeding import cpu_threads

    base = TrainConfig(**spec["config"])
    trained = TrainConfig(**with_values(to_dict(base), json.loads(config["values"])))
    trial_folder = Path(folder) / "trials" / tune.get_context().get_trial_id()
    last_step = 0

    def report(step: int, value: float) -> None:
        nonlocal last_step
        last_step = step
        tune.report({_METRIC: value, "step": step})

    with use_cache(Cache() if base.cache else None), cpu_threads(base.threads), StopSignals(unit=None) as stop:
        corpus = load_corpus(base, report=lambda line: None)
        if corpus.data_hash != spec["data_hash"]:
            raise ClusterError(f"{corpus.name} differs from that of the machine where the search was started")
        pipeline = get_pipeline(base.pipeline)
        objective = ObjectiveFn(pipeline, corpus, spec["objectives"], spec["folds"], stop, lambda line: None)
        result = objective(dataclasses.replace(trained, keep_checkpoints="1"), trial_folder, report)
    tune.report({_METRIC: result.values[0], "step": last_step + 1, "ended": True, "epochs": result.epochs})
    for path in trial_folder.rglob("*.pt"):
        path.unlink(missing_ok=True)


def _study(results: Any, spec: SearchSpec, space: Space) -> Any:
    """Ray's results as an Optuna study in memory."""
    import optuna

    study = optuna.create_study(study_name=STUDY, directions=[cast(Any, DIRECTIONS[spec.objectives[0]])])
    for result in results:
        values = json.loads(result.config["values"])
        study.enqueue_trial({n: json.dumps(v) if hasattr(space[n], "choices") else v for n, v in values.items()})
        trial = study.ask()
        suggest(trial, space)
        frame, last = result.metrics_dataframe, result.metrics or {}
        # A trial that was started again reports its steps again.
        rows = [] if frame is None else frame.to_dict("records")
        steps = {int(row["step"]): float(row[_METRIC]) for row in rows if row.get("ended") is not True}
        for step, value in steps.items():
            trial.report(value, step)
        has_ended = last.get("ended") is True
        trial.set_user_attr("epochs", int(last["epochs"]) if has_ended else len(steps))
        trial.set_user_attr("most", _max_epochs(spec, values))
        if has_ended:
            study.tell(trial, float(last[_METRIC]))
        elif result.error is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr("fault", last_line(result.error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return study


def _max_epochs(spec: SearchSpec, values: dict[str, Any]) -> int:
    """Epochs of a trial that is not pruned."""
    from ml_training.pipelines import get_pipeline

    config = TrainConfig(**with_values(spec.config, values))
    pipeline = get_pipeline(config.pipeline)
    epochs = config.resolve(pipeline.name, pipeline.recipe).epochs or 0
    return epochs * (1 if spec.objectives[0] == "validation" else spec.folds)
