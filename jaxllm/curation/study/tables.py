"""Tables and curves of a dose study: differences from the clean arm of the same seed, effect sizes, trends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.curation.effects import bootstrap_g, jonckheere, slope
from jaxllm.curation.study.junk import DoseArm
from jaxllm.files import aside
from jaxllm.studies import Interval, mean_interval, paired_interval

CLEAN = "clean"


def values_by_dose(records: Sequence[Mapping[str, Any]], arms: Mapping[str, DoseArm], kind: str,
                   metric: str) -> dict[float, dict[int, float]]:
    """Values of a metric by dose and seed, the clean arm as dose 0; seeds without a clean value are left out."""
    out: dict[float, dict[int, float]] = {}
    for name, arm in sorted(arms.items(), key=lambda item: item[1].dose):
        if arm.kind in (kind, CLEAN):
            found = {r["seed"]: float(r[metric]) for r in records if r["arm"] == name and r.get(metric) is not None}
            out[arm.dose] = {seed: v for seed, v in sorted(found.items()) if math.isfinite(v)}
    clean = out.get(0.0, {})
    return {dose: {seed: v for seed, v in found.items() if seed in clean} for dose, found in out.items()}


def dose_table(records: Sequence[Mapping[str, Any]], arms: Mapping[str, DoseArm], kinds: Sequence[str],
               metrics: Mapping[str, str]) -> str:
    """Differences from the clean arm of the same seed, as Markdown, a row a metric and kind.

    Columns are the clean mean, the difference at each dose with its 95 % t interval over seeds, paired Hedges' g of the
    highest dose with a 90 % bootstrap interval, the slope from dose 0 to 1 with a 95 % interval, and Jonckheere's p on
    values less their seed's mean. A dash stands for what too few seeds cannot give.

    Args:
      records: of `run_study`.
      arms: by name.
      kinds: of junk.
      metrics: by their names in records, how they are called in the table.
    """
    doses = sorted({arm.dose for arm in arms.values() if arm.dose})
    columns = ["metric", "junk", "clean", *(f"{d:g}" for d in doses), f"g at {doses[-1]:g}", "slope", "trend p",
               "seeds"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for metric, label in metrics.items():
        for kind in kinds:
            found = values_by_dose(records, arms, kind, metric)
            if not found.get(0.0):
                continue
            cells = [label, kind, _number(mean_interval(list(found[0.0].values())).value)]
            cells += [_interval(difference(found, dose)) for dose in doses]
            lines.append(f"| {' | '.join(cells + _effects(found, doses))} |")
    return "\n".join(lines) + "\n"


def difference(found: Mapping[float, Mapping[int, float]], dose: float) -> Interval | None:
    """Mean difference from dose 0 over the seeds of both, with its 95 % t interval; None without any."""
    seeds = list(found.get(dose, {}))
    return paired_interval([found[dose][s] for s in seeds], [found[0.0][s] for s in seeds]) if seeds else None


def _effects(found: Mapping[float, Mapping[int, float]], doses: Sequence[float]) -> list[str]:
    """Hedges' g, slope, p of the trend, seeds."""
    top = list(found[doses[-1]])
    g = line = p = "-"
    if len(top) >= 3:
        effect = bootstrap_g([found[doses[-1]][s] for s in top], [found[0.0][s] for s in top])
        g = f"{_number(effect.value)} ({_number(effect.low)} to {_number(effect.high)})"
    # Seeds whose doses are all there; others would mix seeds with doses.
    whole = [seed for seed in top if all(seed in found.get(d, {}) for d in doses)]
    if len(whole) >= 2:
        levels = (0.0, *doses)
        effect = slope(*zip(*[(d, found[d][seed], seed) for d in levels for seed in whole], strict=True))
        line = f"{_signed(effect.value)} ({_signed(effect.low)} to {_signed(effect.high)})"
        middle = {seed: sum(found[d][seed] for d in levels) / len(levels) for seed in whole}
        p = f"{jonckheere([[found[d][seed] - middle[seed] for seed in whole] for d in levels]).p:.4f}"
    return [g, line, p, str(len(top))]


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _interval(found: Interval | None) -> str:
    if found is None:
        return "-"
    if found.n == 1:
        return _signed(found.value)
    return f"{_signed(found.value)} ({_signed(found.low)} to {_signed(found.high)})"


def plot_doses(path: str | Path, records: Sequence[Mapping[str, Any]], arms: Mapping[str, DoseArm],
               kinds: Sequence[str], metrics: Mapping[str, str], across: int = 4) -> None:
    """Differences from the clean arm of the same seed over doses, a panel a metric, a line a kind, 95 % t intervals.

    Args:
      path: PNG to write.
      records, arms, kinds, metrics: as for `dose_table`; metrics that no record holds are left out.
      across: panels in a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {m: label for m, label in metrics.items() if any(r.get(m) is not None for r in records)}
    if not shown:
        return
    down = -(-len(shown) // across)
    figure, axes = plt.subplots(down, across, squeeze=False, figsize=(3 * across, 2.4 * down), layout="constrained")
    for axis, (metric, label) in zip(axes.flat, shown.items(), strict=False):
        for number, kind in enumerate(kinds):
            found = values_by_dose(records, arms, kind, metric)
            points = [(d + 0.012 * (number - 1), i) for d in found if (i := difference(found, d)) is not None]
            if not points:
                continue
            # A single seed has a value and no interval.
            bars = [[0.0 if i.n == 1 else side for side in (i.value - i.low, i.high - i.value)] for _, i in points]
            axis.errorbar([d for d, _ in points], [i.value for _, i in points], yerr=list(zip(*bars, strict=True)),
                          label=kind, marker="o", markersize=3, capsize=2, linewidth=1)
        axis.axhline(0, color="black", linewidth=0.5)
        axis.set_title(label, fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(shown):]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("share of junk")
    axes[0, 0].legend(fontsize=8, frameon=False)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)
