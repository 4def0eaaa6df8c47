"""The Optuna study of a search: storage, sampler, pruner, and the trials that this command runs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from filelock import FileLock, Timeout

from digit_detector.errors import ConfigError, TrainingError
from digit_detector.files import write_json
from ml_training.tuning.space import Space, grid, import_optuna, parse_space
from ml_training.tuning.spec import SearchSpec

if TYPE_CHECKING:
    import optuna
    from optuna import Study
    from optuna.trial import Trial

STUDY = "digits"
JOURNAL = "journal.jsonl"
FINGERPRINT = "plan"  # name of the attribute of the study that says what was searched


def open_study(spec: SearchSpec) -> Study:
    """The study in the database or in the journal of the output folder; a new one if neither has it.

    Raises ConfigError if that study has another fingerprint, TrainingError if it cannot be opened.
    """
    optuna = import_optuna()
    try:
        study = optuna.create_study(
            storage=optuna.storages.get_storage(spec.storage) if spec.storage else open_journal(spec.folder),
            study_name=STUDY, directions=list(spec.directions), load_if_exists=True, pruner=make_pruner(spec.pruner),
        )  # fmt: skip
    except Exception as error:  # a database's own errors share no base, nor do those of a journal's lines
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        where = spec.storage or f"{spec.folder / JOURNAL} (if it is damaged, restore a copy or choose another --output)"
        raise TrainingError(f"cannot open the study in {where}: {reason}") from error
    with FileLock(spec.folder / "study.lock"):
        existing = study.user_attrs.get(FINGERPRINT)
        if existing is None:
            study.set_user_attr(FINGERPRINT, spec.fingerprint())
        else:
            _check_same(existing, spec)
    return cast("Study", study)


def check_fingerprint(spec: SearchSpec) -> None:
    """The same check for a search whose trials are kept by Ray. Raises ConfigError."""
    path = spec.folder / "plan.json"
    try:
        existing = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        write_json(path, spec.fingerprint())
    else:
        _check_same(existing, spec)


def _check_same(existing: Mapping[str, Any], spec: SearchSpec) -> None:
    now, flag = spec.fingerprint(), "--storage" if spec.storage else "--output"
    faults = [
        f"{name} was {json.dumps(existing.get(name))[:60]}, is {json.dumps(now.get(name))[:60]}: choose another {flag}"
        for name in sorted(existing.keys() | now.keys())
        if existing.get(name) != now.get(name)
    ]
    if faults:
        raise ConfigError(faults, f"{spec.storage or spec.output} holds another search")


def open_journal(folder: Path) -> optuna.storages.JournalStorage:
    """Optuna's journal in `folder`, under a lock that ends with the process that holds it."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    path, lock = folder / JOURNAL, FileLock(folder / "journal.lock")
    with lock, contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        # Optuna cannot read a line that a full disk or a killed process left incomplete.
        file.truncate(file.read().rfind(b"\n") + 1)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=cast(Any, lock)))


def make_sampler(spec: SearchSpec, number: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler for trial `number`: seeded by it, so that a restarted search does not draw its values again."""
    import numpy as np
    import optuna

    seed = int(np.random.SeedSequence([spec.seed, number]).generate_state(1)[0])
    if spec.sampler == "grid":
        sampler = optuna.samplers.GridSampler(grid(spec.space), seed=spec.seed)
        cast(Any, sampler).after_trial = lambda *args: None  # it would stop `study.optimize`, which does not run
        return sampler
    if spec.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=spec.workers > 1)


def make_pruner(name: str) -> optuna.pruners.BasePruner:
    import optuna

    if name == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3, min_early_stopping_rate=0)
    return optuna.pruners.NopPruner()


def suggest(trial: Trial, space: Space) -> dict[str, Any]:
    """Sample the settings, but for those that the trial has already; returns their values."""
    for name, values in space.items():
        d: Any = values
        if hasattr(d, "choices"):
            trial.suggest_categorical(name, d.choices)
        else:
            sample = trial.suggest_int if isinstance(d.step, int) else trial.suggest_float
            sample(name, d.low, d.high, log=d.log, step=d.step)
    return read_values(trial.params, space)


def read_values(params: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The settings of a trial with these parameters."""
    known = {name: value for name, value in params.items() if name in space}
    return {name: json.loads(value) if hasattr(space[name], "choices") else value for name, value in known.items()}


def load_trial(study: Study, number: int) -> Trial:
    """A trial of the study that can be reported to."""
    from optuna.trial import Trial

    return Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)


def claim_trials(study: Study, spec: SearchSpec, locks: dict[int, FileLock]) -> Iterator[int]:
    """Numbers of trials to run: unfinished ones of ended processes, then new ones until there are spec.trials.

    Each is locked against other commands, in `locks`, until the caller releases it. Of a study in a database only
    trials begun in this folder are continued: another machine may work on the others.
    """
    space = parse_space(spec.space)
    while True:
        with FileLock(spec.folder / "study.lock"):
            trials = study.get_trials(deepcopy=False)
            unfinished = [t.number for t in trials if t.state.name == "RUNNING" and t.number not in locks]
            own = [n for n in unfinished if not spec.storage or spec.trial_folder(n).exists()]
            number = next((n for n in own if _lock(spec, n, locks)), None)
            if number is None:
                if len(trials) >= spec.trials:
                    return
                study.sampler = make_sampler(spec, len(trials))
                number = study.ask().number
                _lock(spec, number, locks)
            else:
                study.sampler = make_sampler(spec, number)
            suggest(load_trial(study, number), space)  # a killed process may have sampled a part
        yield number


def _lock(spec: SearchSpec, number: int, locks: dict[int, FileLock]) -> bool:
    folder = spec.trial_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "held.lock")
    with contextlib.suppress(Timeout):  # another command works on it
        lock.acquire(timeout=0)
        locks[number] = lock
    return number in locks
