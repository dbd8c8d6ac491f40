"""Tables and plots of measured cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.files import aside
from jaxllm.studies.intervals import Interval, mean_interval


def summarize(records: Sequence[Mapping[str, Any]], metric: str, level: float = 0.95) -> dict[str, Interval]:
    """Mean of `metric` with its interval over seeds, by arm, in order of first appearance."""
    values: dict[str, list[float]] = {}
    for record in records:
        if metric in record and record[metric] is not None:
            values.setdefault(record["arm"], []).append(float(record[metric]))
    return {arm: mean_interval(found, level) for arm, found in values.items()}


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """A rich table; the first column is left-aligned text, the others right-aligned."""
    from rich.table import Table

    out = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for row in rows:
        out.add_row(*(show(cell) for cell in row))
    return out


def show(value: Any) -> str:
    """Short text of a number, an interval or None (a dash)."""
    if value is None:
        return "-"
    if isinstance(value, Interval) and value.n == 1:
        return show(value.value)
    if isinstance(value, Interval):
        return f"{show(value.value)} [{show(value.low)}, {show(value.high)}]"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or value == int(value) and abs(value) < 1e6:
        return f"{int(value)}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


def console() -> Any:
    """A rich console that is as wide as its terminal, and wide enough for tables where there is none."""
    from rich.console import Console

    found = Console()
    return found if found.is_terminal else Console(width=max(found.width, 160))


def plot_arms(path: str | Path, summary: Mapping[str, Interval], ylabel: str, title: str) -> None:
    """Means with intervals, one point an arm, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(1.5 + 1.1 * len(summary), 3.2))
    for i, interval in enumerate(summary.values()):
        axes.errorbar([i], [interval.value], yerr=[[interval.value - interval.low], [interval.high - interval.value]],
                      fmt="o", color="black", capsize=3)
    axes.set_xticks(range(len(summary)), list(summary), rotation=20, ha="right")
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
    plt.close(figure)


def plot_curves(path: str | Path, records: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> None:
    """Metrics over steps as a picture, one panel a label; a metric that no record holds is left out.

    Args:
      path: PNG to write.
      records: lines of a run's `metrics.jsonl`, each with its `step`.
      panels: metric names by the label of the axis they share.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    found = {label: [n for n in names if any(n in r for r in records)] for label, names in panels.items()}
    found = {label: names for label, names in found.items() if names}
    if not found:
        return
    figure, axes = plt.subplots(len(found), 1, sharex=True, squeeze=False, figsize=(7, 0.8 + 1.8 * len(found)),
                                layout="constrained")
    for axis, (label, names) in zip(axes[:, 0], found.items(), strict=True):
        for name in names:
            points = [(r["step"], r[name]) for r in records if name in r]
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1, marker="." if len(points) < 12 else None)
        axis.set_ylabel(label)
        axis.legend(fontsize=8, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1, 0].set_xlabel("step")
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
