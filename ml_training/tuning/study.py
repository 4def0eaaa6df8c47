"""The Optuna study of a search: storage, sampler, pruner, and the claim of this process on a trial."""

from __future__ import annotations

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from digit_detector.errors import ConfigError, MissingExtraError, TrainingError
from digit_detector.files import write_json
from ml_training.tuning.space import Choices, Space, Value, parse_space
from ml_training.tuning.spec import SearchSpec

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial, Trial

STUDY = "digits"
JOURNAL = "journal.jsonl"
LOCK_TIMEOUT = 60.0  # seconds
FINGERPRINT = "plan"  # name of the attribute that holds what a study is of


def import_optuna() -> Any:
    """Optuna, quiet. Raises MissingExtraError without it."""
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError("a search", "tune") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(spec: SearchSpec) -> optuna.Study:
    """The study at the database's address, or in the journal of the output folder; a new one if there is none.

    Raises ConfigError if the study there has another fingerprint, TrainingError if it cannot be opened.
    """
    import_optuna()
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            storage = optuna.storages.get_storage(spec.storage) if spec.storage else open_journal(spec.folder)
            study = optuna.create_study(
                storage=storage, study_name=STUDY, directions=cast(Any, list(spec.directions)), load_if_exists=True,
                pruner=make_pruner(spec.pruner),
            )  # fmt: skip
        except (OSError, ImportError, TrainingError) as error:
            raise TrainingError(f"cannot open the study in {spec.storage or spec.folder}: {error}") from error
        except Exception as error:  # a database's own errors share no base, nor do those of a journal's lines
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if spec.storage:
                raise TrainingError(f"cannot open the study at {spec.storage}: {reason}") from error
            path = spec.folder / JOURNAL
            raise TrainingError(
                f"{path} is damaged ({reason}): put back a copy of it, or begin anew in another --output"
            ) from error
    with FileLock(spec.folder / "study.lock", LOCK_TIMEOUT):
        existing = study.user_attrs.get(FINGERPRINT)
        if existing is None:
            study.set_user_attr(FINGERPRINT, spec.fingerprint())
        else:
            _check_same(existing, spec, f"database {spec.storage!r}" if spec.storage else str(spec.folder))
    return study


def check_fingerprint(spec: SearchSpec) -> None:
    """The same check for a search whose trials are kept elsewhere. Raises ConfigError."""
    path = spec.folder / "plan.json"
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        write_json(path, spec.fingerprint())
    else:
        _check_same(existing, spec, str(spec.folder))


def _check_same(existing: Mapping[str, Any], spec: SearchSpec, where: str) -> None:
    def shorten(value: Any) -> str:
        return json.dumps(value)[:60]

    now, flag = spec.fingerprint(), "--storage" if spec.storage else "--output"
    faults = [
        f"{name} was {shorten(existing.get(name))}, is {shorten(now.get(name))}: another {flag} keeps both"
        for name in sorted(existing.keys() | now.keys())
        if existing.get(name) != now.get(name)
    ]
    if faults:
        raise ConfigError(faults, f"a search in {where} that is of another plan")


def open_journal(folder: Path) -> optuna.storages.JournalStorage:
    """Optuna's journal in `folder`, under a lock of the system, which ends with the process that holds it."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / JOURNAL

    class Lock:
        def acquire(self) -> bool:
            self._stack = contextlib.ExitStack()
            self._stack.enter_context(FileLock(folder / "journal.lock", LOCK_TIMEOUT))
            _drop_partial_line(path)
            return True

        def release(self) -> None:
            self._stack.close()

    folder.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, Lock())))


def _drop_partial_line(path: Path) -> None:
    """Remove what a killed process or a full disk left behind the last complete line."""
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        if file.read(1) not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


# --- samplers and pruners ------------------------------------------------------------------------


def make_sampler(spec: SearchSpec, number: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for trial `number`: seeded by it, so that a restarted search does not draw its values again."""
    import numpy as np
    import optuna

    if spec.sampler == "grid":
        space = {
            name: list(values.to_json() if isinstance(values, Choices) else values.grid())
            for name, values in parse_space(spec.space).items()
        }
        sampler = optuna.samplers.GridSampler(space, seed=spec.seed)
        cast(Any, sampler).after_trial = _continue
        return sampler
    seed = int(np.random.SeedSequence([spec.seed, number]).generate_state(1)[0])
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=spec.workers > 1)


def _continue(*args: Any, **kwargs: Any) -> None:
    """In the place of GridSampler.after_trial, which stops `study.optimize`; searches here end by themselves."""


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3, min_early_stopping_rate=0)
    return optuna.pruners.NopPruner()


def suggest(trial: Trial, space: Space) -> dict[str, Value]:
    """Sampled values of the settings; of a trial that has some already, those."""
    found: dict[str, Value] = {}
    for name, values in space.items():
        if isinstance(values, Choices):
            found[name] = json.loads(trial.suggest_categorical(name, values.to_json()))
        elif values.whole:
            low, high, step = int(values.low), int(values.high), int(values.step or 1)
            found[name] = trial.suggest_int(name, low, high, log=values.log, step=step)
        else:
            found[name] = trial.suggest_float(name, values.low, values.high, log=values.log, step=values.step)
    return found


def read_values(trial: FrozenTrial, space: Space) -> dict[str, Value]:
    """The values of the settings of a trial that was read."""
    return {
        name: json.loads(value) if isinstance(space[name], Choices) else value
        for name, value in trial.params.items()
        if name in space
    }


def select_completed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state.name == "COMPLETE" and t.values and all(map(math.isfinite, t.values))]


# --- claims --------------------------------------------------------------------------------------


def load_trial(study: optuna.Study, number: int) -> Trial:
    """A trial of the study that can be reported to."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


class TrialClaims:
    """Iterates over the numbers of trials to run, until there are as many as the search wants.

    Unfinished trials of ended processes come before new ones. Each is locked against other commands until `release`.
    Of a study in a database only trials begun in this folder are continued: another machine may work on the others.
    """

    def __init__(self, study: optuna.Study, spec: SearchSpec) -> None:
        self._study, self._spec, self._space = study, spec, parse_space(spec.space)
        self._held: dict[int, contextlib.ExitStack] = {}

    def __iter__(self) -> Iterator[int]:
        while (number := self.claim_trial()) is not None:
            yield number

    def claim_trial(self) -> int | None:
        with FileLock(self._spec.folder / "study.lock", LOCK_TIMEOUT):
            trials = self._study.get_trials(deepcopy=False)
            for frozen in trials:
                if frozen.state.name == "RUNNING" and frozen.number not in self._held and self._continue(frozen):
                    return frozen.number
            if len(trials) >= self._spec.trials:
                return None
            self._study.sampler = make_sampler(self._spec, len(trials))
            trial = self._study.ask()
            self._lock(trial.number)
            suggest(trial, self._space)
            return trial.number

    def _continue(self, frozen: FrozenTrial) -> bool:
        if self._spec.storage and not self._spec.trial_folder(frozen.number).exists():
            return False
        try:
            self._lock(frozen.number, timeout=0.0)
        except Timeout:  # another command works on it
            return False
        if len(frozen.params) < len(self._space):  # its process ended while it was sampled
            self._study.sampler = make_sampler(self._spec, frozen.number)
            self._study.sampler.before_trial(self._study, frozen)
            suggest(load_trial(self._study, frozen.number), self._space)
        return True

    def _lock(self, number: int, timeout: float = LOCK_TIMEOUT) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(FileLock(self._spec.trial_folder(number) / "held.lock", timeout))
            self._held[number] = stack.pop_all()

    def release(self, number: int) -> None:
        self._held.pop(number).close()

    def close(self) -> None:
        for number in list(self._held):
            self.release(number)
