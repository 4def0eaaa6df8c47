"""The choice of a threshold as a picture: misses against false alarms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from digit_detector.evaluation.curves import Heard, thresholds_of
from digit_detector.files import write_atomically

_FEWEST = 0.3  # false alarms an hour that the axis begins with


def det_curve(heard: Heard, chosen: float, titles: dict[str, str], path: Path) -> None:
    """Write a PNG: digits missed against false alarms an hour of each kind of sound, with the chosen threshold."""
    import io

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.0), layout="constrained")
    axes = figure.subplots()
    steps = thresholds_of(heard)
    missed = [_missed(heard, threshold) for threshold in steps]
    for kind, colour in zip(heard.quiet, ("tab:blue", "tab:orange", "tab:green"), strict=False):
        alarms = [max(_FEWEST, heard.false_alarms(kind, threshold)) for threshold in steps]
        axes.plot(alarms, missed, color=colour, label=titles.get(kind, kind))
        at = max(_FEWEST, heard.false_alarms(kind, chosen))
        axes.plot([at], [_missed(heard, chosen)], "o", color=colour)
        axes.annotate(
            f"{heard.false_alarms(kind, chosen):.1f} an hour",
            (at, _missed(heard, chosen)),
            (6, 6),
            textcoords="offset points",
        )
    axes.set(xscale="log", yscale="log", xlabel="false alarms an hour", ylabel="digits missed or mistaken, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "25" else "")
    axes.set_title(f"Detection error trade-off; dots: the threshold of {chosen:.2f}")
    axes.grid(True, which="both", alpha=0.25)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    write_atomically(path, content.getvalue())


def _missed(heard: Heard, threshold: float) -> float:
    found = heard.score(threshold)
    return max(0.1, 100.0 * (found.substituted + found.deleted) / max(1, found.said))


def table(heard: Heard, thresholds: Sequence[float]) -> str:
    """The curve at some thresholds as lines of text."""
    kinds = list(heard.quiet)
    lines = ["threshold  right %  missed %  mistaken %  " + "  ".join(f"{kind}, false alarms/h" for kind in kinds)]
    for threshold in thresholds:
        found = heard.score(threshold)
        said = max(1, found.said)
        alarms = "  ".join(f"{heard.false_alarms(kind, threshold):{len(kind) + 16}.1f}" for kind in kinds)
        lines.append(
            f"{threshold:9.2f}  {100 * found.right / said:7.1f}  {100 * found.deleted / said:8.1f}"
            f"  {100 * found.substituted / said:10.1f}  {alarms}"
        )
    return "\n".join(lines)
