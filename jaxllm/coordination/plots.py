"""One page of plots of a study: trajectories, measures against nulls, arms with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.coordination.records import Game
from jaxllm.files import aside

SHOWN = ("practical", "broja", "i3")


def draw(games: Sequence[Game], report: dict[str, Any], path: str | Path) -> None:
    """Write the page as PNG.

    Args:
      games: that were analysed.
      report: of `analyse`.
      path: of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    arms = list(report["arms"])
    columns = min(max(3, len(arms)), 5)
    above = -(-len(arms) // columns)  # rows of trajectories
    figure, axes = plt.subplots(above + 2, columns, figsize=(3.1 * columns, 2.8 * (above + 2)), layout="constrained",
                                squeeze=False)
    for axis, arm in zip(axes[:above].flat, arms, strict=False):
        _trajectory(axis, arm, [g for g in games if g.arm == arm])
    measures = [m for m in SHOWN if any(m in by for a in report["arms"].values() for by in a.get("nulls", {}).values())]
    for axis, measure in zip(axes[-2], measures, strict=False):
        _against_nulls(axis, measure, report)
    _success(axes[-1][0], report, "success", "solved")
    _success(axes[-1][1], report, "differentiated", "games whose agents differ, p <= level")
    _calibration(axes[-1][2], report)
    for axis in axes.flat:
        if not axis.has_data():
            axis.axis("off")
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _trajectory(axis: Any, arm: str, games: Sequence[Game]) -> None:
    """The group's error of every game, by round."""
    for game in games[:40]:
        error = game.guesses.sum(1) - game.target
        axis.plot(
            range(1, len(error) + 1), error, linewidth=0.7, alpha=0.5, color="tab:green" if game.solved else "tab:gray"
        )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_title(f"{arm}: sum less mystery number", fontsize=9)
    axis.set_xlabel("round (green: solved)", fontsize=8)


def _against_nulls(axis: Any, measure: str, report: dict[str, Any]) -> None:
    arms = list(report["arms"])
    nulls = list(dict.fromkeys(null for a in report["arms"].values() for null in a.get("nulls", {})))
    for i, null in enumerate(nulls):
        evidence = [null, measure] in report["evidence"]
        for x, arm in enumerate(arms):
            found = report["arms"][arm].get("nulls", {}).get(null, {}).get(measure)
            if found is None:
                continue
            c = found["corrected"]
            error = [[c["value"] - c["low"]], [c["high"] - c["value"]]] if np.isfinite(c["low"]) else None
            axis.errorbar(
                [x + 0.15 * (i - (len(nulls) - 1) / 2)],
                [c["value"]],
                yerr=error,
                fmt="o" if evidence else "x",
                color=f"C{i}",
                capsize=2,
                markersize=4,
                label=f"{null}{'' if evidence else ' (no evidence)'}" if x == 0 else None,
            )
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks(range(len(arms)), arms, fontsize=8, rotation=45 if len(arms) > 4 else 0)
    axis.set_title(f"{measure}: bits less the null's mean, 95 %", fontsize=9)
    axis.legend(fontsize=6, frameon=False)


def _success(axis: Any, report: dict[str, Any], key: str, title: str) -> None:
    for x, found in enumerate(report["arms"].values()):
        if (s := found[key]) is not None:
            axis.errorbar(
                [x],
                [s["value"]],
                yerr=[[s["value"] - s["low"]], [s["high"] - s["value"]]],
                fmt="o",
                color="black",
                capsize=3,
            )
    axis.set_xticks(range(len(report["arms"])), list(report["arms"]), fontsize=8,
                    rotation=45 if len(report["arms"]) > 4 else 0)
    axis.set_ylim(-0.03, 1.03)
    axis.set_title(title, fontsize=9)


def _calibration(axis: Any, report: dict[str, Any]) -> None:
    """Rates of rejection for agents that do not coordinate."""
    lines = [x for x in report["calibration"] if x["measure"] in SHOWN]
    if not lines:
        return
    rows = list(dict.fromkeys((x["null"], x["measure"]) for x in lines))
    kinds = list(dict.fromkeys(x["agents"] for x in lines))
    for i, kind in enumerate(kinds):
        rate = {(x["null"], x["measure"]): x["rate"] for x in lines if x["agents"] == kind}
        axis.plot([rate[row] for row in rows], range(len(rows)), ".", color=f"C{i}", label=kind)
    axis.axvline(report["config"]["level"], color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [" ".join(row) for row in rows], fontsize=6)
    axis.set_title("rejections for agents without coordination", fontsize=9)
    axis.legend(fontsize=6, frameon=False)
