"""HTML report of a hyperparameter search, and its plots as PNG files."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ml_training.report.page import write_page
from ml_training.report.table import Table, percent, plural
from ml_training.report.tables import pipeline_title
from ml_training.utils.visualization import COLOURS, MUTED, drawable, dress, new_figure, note, save, set_rows

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ml_training.tuning.spec import SearchSpec

MAX_ROWS = 200  # of the table of trials
COLUMNS = 3  # of the slice plot
STATES = {"COMPLETE": "completed", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
UNITS = {  # after the value of an objective
    "validation": "of the validation clips right", "cv": "of the clips right in cross-validation",
    "loso": "of the clips right, of speakers left out", "latency": "ms for one clip", "size": "kB",
}  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """What a search led to; trials are Optuna's, their user attributes are epochs, most (epochs) and fault."""

    spec: SearchSpec
    data: str
    synthetic: bool
    trials: tuple[FrozenTrial, ...]
    best: FrozenTrial | None
    front: tuple[FrozenTrial, ...]  # Pareto front of two objectives
    config: Mapping[str, Any]  # of the best trial, as --config reads it
    importances: Mapping[str, float]
    seconds: float = 0.0

    def count(self, state: str) -> int:
        """Number of trials in a state: COMPLETE, PRUNED, FAIL or RUNNING."""
        return sum(trial.state.name == state for trial in self.trials)

    @property
    def epochs(self) -> str:
        """Epochs that were trained, of those without pruning."""
        done, most = (sum(trial.user_attrs.get(name, 0) for trial in self.trials) for name in ("epochs", "most"))
        return f"{done} of {most}, {percent(1 - done / most if most else 0.0, 0)} saved"


def write_search_report(search: SearchResult, path: Path) -> None:
    """Write page and plots. Raises MissingExtraError without jinja2 or matplotlib, TrainingError."""
    spec, best = search.spec, search.best
    values = zip(_values(search, best), spec.objectives, strict=False)
    reached = [f"{value} {UNITS.get(name, name)}" for value, name in values]
    how = f"objective {' and '.join(spec.objectives)}; sampler {spec.sampler}, pruner {spec.pruner}; seed {spec.seed}"
    trials = plural(len(search.trials), "trial")
    plots = plot_search(search, path.parent / "plots")
    write_page(
        path, "tuning.html", search=search, best=best, reached=reached, title=pipeline_title(spec.config["pipeline"]),
        headline=f"{reached[0]}: the best of {trials}" if best else f"None of {trials} was completed",
        facts=[*((STATES[state], search.count(state)) for state in STATES), ("epochs", search.epochs), ("search", how)],
        settings=_settings(search), trials=_trials(search), config=json.dumps(search.config, indent=2),
        space=json.dumps(spec.space, indent=2),
        plots=[(title, base64.b64encode(plot.read_bytes()).decode()) for title, plot in plots],
    )  # fmt: skip


def _values(search: SearchResult, trial: FrozenTrial | None) -> list[str]:
    pairs = zip(search.spec.directions, trial.values, strict=True) if trial is not None and is_complete(trial) else ()
    return [percent(value, 2) if direction == "maximize" else f"{value:.3g}" for direction, value in pairs]


def is_complete(trial: FrozenTrial) -> bool:
    """Whether it has values; the last report of a pruned trial is not its value."""
    return trial.state.name == "COMPLETE" and all(map(np.isfinite, trial.values))


def _settings(search: SearchResult) -> Table:
    """The settings of the best trial, with what was searched."""
    rows = []
    for name in sorted(search.spec.space, key=lambda name: -search.importances.get(name, 0.0)):
        value = _short(search.best.params.get(name)) if search.best else "-"
        importance = percent(search.importances[name], 0) if name in search.importances else "-"
        rows.append((name, value, _range(search.spec.space[name]), importance))
    head = ("setting", "best value", "searched", "importance")
    return Table("Settings of the best trial, the most important first", head, tuple(rows))


def _range(values: Any) -> str:
    if isinstance(values, Mapping):
        scale = f", {values['scale']} scale" if "scale" in values else ""
        return f"{_short(values['from'])} to {_short(values['to'])}{scale}"
    return ", ".join(_short(json.dumps(value)) for value in values)


def _trials(search: SearchResult) -> Table:
    names = list(search.spec.space)
    ranked = sorted(search.trials, key=lambda t: (-t.values[0] if is_complete(t) else 1.0, t.number))
    rows = []
    for trial in ranked[:MAX_ROWS]:
        fault, epochs = trial.user_attrs.get("fault"), trial.user_attrs.get("epochs", 0)
        state = STATES[trial.state.name] + (f": {fault}" if fault else "")
        values = _values(search, trial) or [state, *["-"] * (len(search.spec.objectives) - 1)]
        rows.append((str(trial.number), *values, str(epochs), *(_short(trial.params.get(name)) for name in names)))
    title = "Trials, the best first" + (f"; {MAX_ROWS} of {len(ranked)}" if len(ranked) > MAX_ROWS else "")
    return Table(title, ("trial", *search.spec.objectives, "epochs", *names), tuple(rows))


def _short(value: Any) -> str:
    """A parameter: a number, or the JSON text of a category."""
    return "-" if value is None else value.strip('"') if isinstance(value, str) else f"{value:.4g}"


# --- plots ---------------------------------------------------------------------------------------


def plot_search(search: SearchResult, folder: Path) -> list[tuple[str, Path]]:
    """Plot history, intermediate values, importance, slices and the Pareto front, as far as there are any."""
    plots = [("History", _history), ("Intermediate values", _intermediate_values)]
    if search.importances:
        plots.append(("Importance", _importance))
    if any(map(is_complete, search.trials)):
        plots.append(("Slices", _slices))
        if len(search.spec.objectives) > 1:
            plots.append(("Pareto front", _front))
    paths = []
    for title, draw in plots:
        paths.append((title, folder / f"{title.lower().replace(' ', '_')}.png"))
        save(draw(search), paths[-1][1])
    return paths


def _axis(search: SearchResult, which: int = 0) -> str:
    name, direction = search.spec.objectives[which], search.spec.directions[which]
    return f"Clips right, % ({name})" if direction == "maximize" else name


def _history(search: SearchResult) -> Any:
    """The value of each trial (of pruned trials the last one reported) and the best so far."""
    figure = new_figure(8.4, 3.8, "History")
    axes = figure.subplots()
    pruned = [t for t in search.trials if t.intermediate_values and not is_complete(t)]
    last = [100 * t.intermediate_values[max(t.intermediate_values)] for t in pruned]
    axes.plot([t.number for t in pruned], last, "x", color=MUTED, ms=5, alpha=0.7, label="pruned")
    done = list(filter(is_complete, search.trials))
    if done:
        ends = np.array([100 * t.values[0] for t in done])
        axes.plot([t.number for t in done], ends, "o", color=COLOURS[0], ms=6, alpha=0.85, label="completed")
        numbers, best = [*(t.number for t in done), search.trials[-1].number], np.maximum.accumulate(ends)
        axes.step(numbers, [*best, best[-1]], where="post", color=COLOURS[1], lw=1.6, label="best so far")
        low, high = min(np.percentile(ends, 10), min(ends[-20:])), max(ends)  # bad trials must not squeeze the others
        axes.set_ylim(low - 0.15 * (high - low) - 1, high + 0.1 * (high - low) + 0.5)
    dress(axes, _axis(search), "Trial", grid="y", legend="lower right")
    return figure


def _intermediate_values(search: SearchResult) -> Any:
    figure = new_figure(8.4, 3.8, "Intermediate values")
    axes = figure.subplots()
    for trial in search.trials:
        steps, is_best = trial.intermediate_values, trial == search.best
        axes.plot(
            list(steps), [100 * share for share in steps.values()], "-" if len(steps) > 1 else "o", ms=3,
            color=COLOURS[1] if is_best else COLOURS[0] if is_complete(trial) else MUTED,
            lw=2.4 if is_best else 1.0, alpha=1.0 if is_best else 0.45, zorder=3 if is_best else 2,
        )  # fmt: skip
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    step = "Epoch" if search.spec.objectives[0] == "validation" else "Fold"
    dress(axes, f"{_axis(search)}; grey: pruned, thick: the best", step, grid="y")
    return figure


def _importance(search: SearchResult) -> Any:
    names = sorted(search.importances, key=lambda name: -search.importances[name])
    figure = new_figure(8.4, 1.5 + 0.32 * len(names), "Importance")
    axes = figure.subplots()
    bars = axes.barh(
        range(len(names)), [100 * search.importances[name] for name in names], color=COLOURS[0], height=0.6
    )
    axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=9)
    dress(axes, "Share in whether a trial is among the better ones, % (PED-ANOVA)")
    set_rows(axes, names)
    return figure


def _slices(search: SearchResult) -> Any:
    """The value of every completed trial against each setting."""
    space, done = search.spec.space, list(filter(is_complete, search.trials))
    lines = -(-len(space) // COLUMNS)
    figure = new_figure(10.2, 0.9 + 2.5 * lines, f"Slices: {_axis(search)}; darker is later")
    panels = list(figure.subplots(lines, COLUMNS, squeeze=False).flat)
    last = max(1, *(trial.number for trial in done))
    for axes, (name, searched) in zip(panels, space.items(), strict=False):
        kinds = None if isinstance(searched, Mapping) else [json.dumps(value) for value in searched]
        for trial in done:
            value = trial.params[name]
            place, alpha = kinds.index(value) if kinds else value, 0.25 + 0.7 * trial.number / last
            axes.plot(place, 100 * trial.values[0], "o", ms=5, color=COLOURS[0], alpha=alpha)
        if kinds:
            axes.set_xticks(range(len(kinds)), [drawable(_short(kind)) for kind in kinds], parse_math=False)
        elif searched.get("scale") == "log":
            axes.set_xscale("log")
            marks = np.geomspace(searched["from"], searched["to"], 4)
            axes.set_xticks(marks, [f"{mark:.2g}" for mark in marks])
            axes.set_xticks([], minor=True)
        dress(axes, name, grid="y")
    for axes in panels[len(space) :]:
        axes.set_visible(False)
    return figure


def _front(search: SearchResult) -> Any:
    """Both objectives of all trials; the trials that no other beats in both are joined."""
    figure = new_figure(8.4, 4.4, "Pareto front")
    axes = figure.subplots()
    done, front = ([(t.values[1], 100 * t.values[0], t.number) for t in trials if is_complete(t)]
                   for trials in (search.trials, search.front))  # fmt: skip
    axes.plot([x for x, _, _ in done], [y for _, y, _ in done], "o", color=MUTED, ms=5, alpha=0.7)
    front.sort()
    axes.plot([x for x, _, _ in front], [y for _, y, _ in front], "o-", color=COLOURS[1], lw=1.6, ms=7)
    for x, y, number in front:
        note(axes, str(number), (x, y), (5, 5))
    dress(axes, f"{_axis(search)}; numbers: trials that no other beats in both", _axis(search, 1), grid="y")
    return figure
