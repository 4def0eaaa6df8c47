"""A search whose trials run on many machines: Ray Tune hands them out, Optuna says what is tried."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from digit_detector.errors import ClusterError, ConfigError
from ml_training.config import TrainConfig, to_dict
from ml_training.scale.cluster import cluster, cores_of, quiet
from ml_training.tuning.objective import ObjectiveFn
from ml_training.tuning.space import Choices, Space, parse_space, with_values
from ml_training.tuning.spec import DIRECTIONS, QUALITIES, SearchSpec
from ml_training.tuning.study import STUDY, check_fingerprint, import_optuna, make_sampler, suggest

MAX_FAILURES = 8
_METRIC = "value"


def search_on_cluster(address: str, spec: SearchSpec, say: Callable[[str], None]) -> Any:
    """The Optuna study of a search whose trials Ray Tune ran, `spec.workers` at once.

    The output folder has to be one that every machine sees: a trial whose machine is lost goes on elsewhere from its
    checkpoint there, and a search that was stopped goes on with the trials that were not finished. Raises ConfigError
    for what Ray's trials cannot be, ClusterError where the cluster is not there or gave up.
    """
    if len(spec.objectives) > 1:
        raise ConfigError(["objective: with --engine ray one alone, name validation, cv or loso"])
    if spec.storage:
        raise ConfigError(["storage: Ray keeps its own, leave --storage out with --engine ray"])
    space = parse_space(spec.space)
    threads = max(1, int(spec.config["threads"]))
    folder = Path(spec.output).absolute()
    import_optuna()
    with cluster(address, spec.workers * threads) as ray:
        from ray import tune
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch

        quiet("ray.tune")
        cores = cores_of(ray)
        if cores < threads:
            raise ClusterError(f"the cluster has {cores} cores, a trial of {threads} threads needs as many")
        check_fingerprint(spec)
        search = OptunaSearch(
            space=_Proposal(space), metric=_METRIC, mode="max",
            sampler=make_sampler(spec, 0),
        )  # fmt: skip
        trainable = tune.with_resources(
            tune.with_parameters(try_one, spec=dataclasses.asdict(spec), folder=str(folder)), {"cpu": threads}
        )
        place = folder / "ray"
        again = tune.Tuner.can_restore(str(place))  # before a new one leaves its traces there
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(search, max_concurrent=spec.workers), num_samples=spec.trials,
                scheduler=_scheduler(tune, spec.pruner), metric=_METRIC, mode="max",
            ),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(folder), verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )  # fmt: skip
        if again:
            say(f"going on with the search in {place}")
            tuner = tune.Tuner.restore(str(place), trainable, resume_unfinished=True, resume_errored=True)
        try:
            results = tuner.fit()
        except Exception as error:
            raise ClusterError(f"the cluster gave the search up: {str(error).splitlines()[-1][:300]}") from error
        return _study(results, spec, space)


def _scheduler(tune: Any, pruner: str) -> Any:
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if pruner == "median":
        return MedianStoppingRule(time_attr="step", grace_period=1, min_samples_required=5)
    if pruner == "halving":
        return AsyncHyperBandScheduler(time_attr="step", grace_period=1, reduction_factor=3, max_t=1000)
    return FIFOScheduler()


@dataclass(frozen=True)
class _Proposal:
    """What is tried next, as Ray knows it: one text, because names with dots mean something to it."""

    space: Space

    def __call__(self, trial: Any) -> dict[str, str]:
        return {"values": json.dumps(suggest(trial, self.space))}


def try_one(config: dict[str, Any], spec: dict[str, Any], folder: str) -> None:
    """A trial, in a process of Ray's."""
    from ray import tune

    from digit_detector.cli.signals import StopSignals
    from ml_training.data.dataset_loader import load_corpus
    from ml_training.data.feature_cache import Cache, use_cache
    from ml_training.pipelines import get_pipeline
    from ml_training.training.seeding import cpu_threads

    base = TrainConfig(**spec["config"])
    values = json.loads(config["values"])
    trained = TrainConfig(**with_values(to_dict(base), values))
    place = Path(folder) / "trials" / tune.get_context().get_trial_id()
    reported: list[int] = []

    def report(step: int, share: float) -> None:
        reported.append(step)
        tune.report({_METRIC: share, "step": step})

    with use_cache(Cache() if base.cache else None), cpu_threads(base.threads), StopSignals(unit=None) as stop:
        corpus = load_corpus(base, report=lambda line: None)
        if corpus.data_hash != spec["data_hash"]:
            raise ClusterError(f"{corpus.name} is not here what it is where the search was started")
        objective = ObjectiveFn(
            get_pipeline(base.pipeline), corpus, spec["objectives"], spec["folds"], stop, lambda line: None
        )
        result = objective(dataclasses.replace(trained, keep_checkpoints="1"), place, report)
    tune.report(
        {
            _METRIC: result.values[0],
            "step": (reported[-1] if reported else 0) + 1,
            "ended": True,
            "epochs": result.epochs,
        }
    )
    for path in place.rglob("*.pt"):
        path.unlink(missing_ok=True)


def _study(results: Any, spec: SearchSpec, space: Space) -> Any:
    """The results of Ray's trials as a study, in memory."""
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def distribution(name: str) -> BaseDistribution:
        values = space[name]
        if isinstance(values, Choices):
            return CategoricalDistribution(values.to_json())
        if values.whole:
            return IntDistribution(int(values.low), int(values.high), log=values.log, step=int(values.step or 1))
        return FloatDistribution(values.low, values.high, log=values.log, step=values.step)

    study = optuna.create_study(study_name=STUDY, directions=[cast(Any, DIRECTIONS[spec.objectives[0]])])
    kinds = {name: distribution(name) for name in space}
    for result in results:
        values = json.loads(result.config["values"])
        params = {n: json.dumps(v) if isinstance(space[n], Choices) else v for n, v in values.items()}
        frame = result.metrics_dataframe
        rows = [] if frame is None else frame.to_dict("records")
        # A trial that was started again tells its steps again.
        steps = {int(row["step"]): float(row[_METRIC]) for row in rows if row.get("ended") is not True}
        last = result.metrics or {}
        ended = last.get("ended") is True
        fault = "" if result.error is None else str(result.error).splitlines()[-1]
        epochs = int(last["epochs"]) if ended else len(steps)
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[_state(ended, fault)], params=params, distributions=kinds,
                values=[float(last[_METRIC])] if ended else None, intermediate_values=steps,
                user_attrs={"epochs": epochs, "most": _most(spec, values), **({"fault": fault} if fault else {})},
            )
        )  # fmt: skip
    return study


def _state(ended: bool, fault: str) -> str:
    return "COMPLETE" if ended else "FAIL" if fault else "PRUNED"


def _most(spec: SearchSpec, values: dict[str, Any]) -> int:
    """Epochs that a trial takes which nobody gives up; of folds they are counted when it has ended."""
    from ml_training.pipelines import get_pipeline

    assert spec.objectives[0] in QUALITIES
    config = TrainConfig(**with_values(spec.config, values))
    pipeline = get_pipeline(config.pipeline)
    epochs = config.resolved(pipeline.name, pipeline.recipe).epochs or 0
    return epochs * (1 if spec.objectives[0] == "validation" else spec.folds)
