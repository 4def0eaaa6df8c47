"""Optuna's studies so that a killed search goes on as if nothing had been: what a trial tries follows from its number.

Samplers are made anew for each value, seeded by study, trial and setting, and pruners judge by what is in the storage;
of what a process had in memory nothing is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from digit_detector.errors import ConfigError, MissingExtraError, TrainingError
from digit_detector.files import write_json
from ml_training.tuning.space import Choices, Space, Value, grid
from ml_training.utils.locks import locked

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

SAMPLERS = ("tpe", "random", "grid")
PRUNERS = ("median", "halving", "none")
STUDY = "digits"
JOURNAL = "journal.jsonl"
PLAN = "plan"  # name of the attribute that says what a study is of
_HALVING = {"min_resource": 1, "reduction_factor": 3, "min_early_stopping_rate": 0}
_MEDIAN = {"n_startup_trials": 5, "n_warmup_steps": 1}
_RUNG = "completed_rung_"


def optuna_module() -> Any:
    """Optuna, quiet. Raises MissingExtraError without it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a search", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@dataclass(frozen=True)
class Plan:
    """Everything that decides what the trials of a study are."""

    space: Space
    declared: Mapping[str, Any]  # the space as the file says it
    sampler: str
    pruner: str
    directions: tuple[str, ...]
    seed: int
    told: Mapping[str, Any]  # what else has to be the same to go on: settings, objectives, data
    workers: int = 1

    def to_dict(self) -> dict[str, Any]:
        values = {"space": self.declared, "sampler": self.sampler, "pruner": self.pruner, "seed": self.seed}
        plain: dict[str, Any] = json.loads(json.dumps({**values, **self.told}))
        return plain


def seed_of(*words: object) -> int:
    """32 bits that follow from some words."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4], "big")


def open_study(plan: Plan, place: str, folder: Path) -> optuna.Study:
    """The study at a database's address, or in the journal of `folder`; a new one where there is none.

    Raises ConfigError where the one that is there has another plan, TrainingError where it cannot be opened.
    """
    optuna_module()
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            storage = optuna.storages.get_storage(place) if place else _journal(folder)
            study = optuna.create_study(
                storage=storage, study_name=STUDY, directions=cast(Any, list(plan.directions)), load_if_exists=True,
                sampler=trial_sampler(plan), pruner=_pruner(plan.pruner),
            )  # fmt: skip
        except (OSError, ImportError, TrainingError) as error:
            raise TrainingError(f"cannot open the study in {place or folder}: {error}") from error
        except Exception as error:  # a database's own errors share no base, nor do those of a journal's lines
            told = next(iter(str(error).splitlines()), type(error).__name__)
            if place:
                raise TrainingError(f"cannot open the study at {place}: {told}") from error
            raise TrainingError(
                f"{folder / JOURNAL} is damaged ({told}): put back a copy of it, or begin anew in another --output"
            ) from error
    with locked(folder / "study.lock"):
        there = study.user_attrs.get(PLAN)
        if there is None:
            study.set_user_attr(PLAN, plan.to_dict())
        elif there != plan.to_dict():
            where = f"database {place!r}" if place else folder
            keeps = "--storage" if place else "--output"
            raise ConfigError(
                _differences(there, plan.to_dict(), keeps), f"a search in {where} that is of another plan"
            )
    return study


def check_plan(plan: Plan, folder: Path) -> None:
    """The same check for a search whose trials are kept elsewhere: its plan lies in `folder`. Raises ConfigError."""
    path = folder / "plan.json"
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        write_json(path, plan.to_dict())
        return
    if there != plan.to_dict():
        raise ConfigError(_differences(there, plan.to_dict()), f"a search in {folder} that is of another plan")


def _differences(then: Mapping[str, Any], now: Mapping[str, Any], keeps: str = "--output") -> list[str]:
    def shown(value: Any) -> str:
        return json.dumps(value)[:60]

    names = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
    return [
        f"{name} was {shown(then.get(name))}, is {shown(now.get(name))}: another {keeps} keeps both" for name in names
    ]


def _journal(folder: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL
    lock_path = folder / "journal.lock"

    class Lock:
        """The system's, which ends with the process that holds it; Optuna's own outlives it by half a minute."""

        def acquire(self) -> bool:
            self._stack = contextlib.ExitStack()
            self._stack.enter_context(locked(lock_path))
            _mend(path)
            return True

        def release(self) -> None:
            self._stack.close()

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, Lock())))


def _mend(path: Path) -> None:
    """Take off the half of a line that a killed process may have left at the end; under the lock."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        end = file.seek(0, 2)
        if not end:
            return
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


# --- what is tried -------------------------------------------------------------------------------


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """The values of a trial; of one that was begun, those it has."""
    found: dict[str, Value] = {}
    for name, values in space.items():
        if isinstance(values, Choices):
            found[name] = json.loads(trial.suggest_categorical(name, values.words()))
        elif values.whole:
            step = None if values.step is None else int(values.step)
            low, high = int(values.low), int(values.high)
            found[name] = (
                trial.suggest_int(name, low, high, log=values.log) if step is None
                else trial.suggest_int(name, low, high, step=step)
            )  # fmt: skip
        else:
            found[name] = trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
    return found


def values_of(trial: FrozenTrial, space: Space) -> dict[str, Value]:
    """The same of a trial that was read."""
    return {
        name: json.loads(value) if isinstance(space[name], Choices) else value
        for name, value in trial.params.items()
        if name in space
    }


def trial_sampler(plan: Plan) -> optuna.samplers.BaseSampler:
    """What proposes a trial, by its number and by what the study holds."""
    import optuna

    if plan.sampler == "grid":
        points = list(grid(plan.space))

        class Grid(optuna.samplers.BaseSampler):
            def __reduce__(self) -> tuple[Any, ...]:  # Ray keeps it on disk
                return trial_sampler, (plan,)

            def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
                return {}

            def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
                return {}

            def sample_independent(
                self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
            ) -> Any:
                value = points[trial.number % len(points)][param_name]
                return json.dumps(value) if isinstance(plan.space[param_name], Choices) else value

        return Grid()

    def fresh(*words: object) -> optuna.samplers.BaseSampler:
        seed = seed_of(plan.seed, *words)
        if plan.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=plan.workers > 1)

    class Seeded(optuna.samplers.BaseSampler):
        def __reduce__(self) -> tuple[Any, ...]:
            return trial_sampler, (plan,)

        def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return fresh(trial.number).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: FrozenTrial, search_space: Any) -> dict[str, Any]:
            return fresh(trial.number).sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Any, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            sampler = fresh(trial.number, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return Seeded()


# --- what is given up ----------------------------------------------------------------------------


def _pruner(name: str) -> optuna.pruners.BasePruner:
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner(**_MEDIAN)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(**_HALVING)
    return optuna.pruners.NopPruner()


def hopeless(study: optuna.Study, number: int) -> bool:
    """Whether the pruner gives a trial up after its last report; asked twice of the same one, it says the same."""
    trial = study.get_trials(deepcopy=True)[number]
    step = trial.last_step
    if step is None:
        return False
    # What this very judgement may have left, before it was cut off, would be taken for an earlier one.
    for name in [name for name in trial.system_attrs if name.startswith(_RUNG)]:
        rung = int(name.removeprefix(_RUNG))
        if (
            _HALVING["min_resource"] * _HALVING["reduction_factor"] ** (_HALVING["min_early_stopping_rate"] + rung)
            == step
        ):
            del trial.system_attrs[name]
    return study.pruner.prune(study, trial)


# --- whose turn it is ----------------------------------------------------------------------------


@contextlib.contextmanager
def next_trial(study: optuna.Study, plan: Plan, most: int, folder: Path, remote: bool) -> Iterator[Trial | None]:
    """A trial to work on, held against others until it is left: one that a killed process left, or a new one.

    None where there are as many as were asked for. Of a study at an address (`remote`) only trials begun in this folder
    are taken up: nobody can tell whether another machine still works on the others.
    """
    from optuna.trial import Trial, TrialState

    with contextlib.ExitStack() as held:
        found: Trial | None = None
        with locked(folder / "study.lock"):
            trials = study.get_trials(deepcopy=False)
            for frozen in trials:
                path = trial_folder(folder, frozen.number)
                if frozen.state is not TrialState.RUNNING or (remote and not path.exists()):
                    continue
                with contextlib.suppress(TrainingError):  # somebody works on it
                    held.enter_context(locked(path / "held.lock", patience=0.0))
                    found = Trial(study, frozen._trial_id)
                    break
            if found is None and len(trials) < most:
                found = study.ask()
                held.enter_context(locked(trial_folder(folder, found.number) / "held.lock"))
            if found is not None:
                suggest(found, plan.space)
        yield found


def trial_folder(folder: Path, number: int) -> Path:
    return folder / "trials" / f"{number:05}"


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those that were tried to the end."""
    return [t for t in trials if t.state.name == "COMPLETE" and t.values and all(map(math.isfinite, t.values))]
