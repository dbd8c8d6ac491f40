"""Runs and their fits as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxllm.files import aside
from jaxllm.rl.scaling.curve import SigmoidFit
from jaxllm.rl.scaling.extrapolation import Extrapolation
from jaxllm.rl.scaling.intervals import Bootstrap


def plot(path: str | Path, runs: Sequence[tuple[Bootstrap | SigmoidFit, Extrapolation | None]], xlabel: str,
         ylabel: str = "reward", skipped: Sequence[tuple[np.ndarray, np.ndarray]] = ()) -> None:
    """Points and fits as a picture over compute on a log axis.

    Solid lines run over the fitted points and dashed on to four times their compute, with the interval's band where
    there is one; dotted is the fit to the first part over the rest.

    Args:
      path: file to write; its ending is the format.
      runs: what `bootstrap` or `fit` gave, with what `extrapolation_error` gave.
      xlabel: compute with its unit.
      ylabel: what the reward is.
      skipped: compute and reward of the points left out, one pair a run, drawn hollow.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for i, (found, rest) in enumerate(runs):
        one = found.fit if isinstance(found, Bootstrap) else found
        color, last = f"C{i % 10}", one.compute[-1]
        inside, beyond = np.geomspace(one.compute[0], last, 200), np.geomspace(last, 4 * last, 100)
        axis.plot(one.compute, one.reward, ".", color=color, markersize=4, alpha=0.7)
        axis.plot(inside, one.predict(inside), color=color, linewidth=1.4,
                  label=f"{one.name}: A {one.A:.3f}, B {one.B:.2f}, C_mid {one.C_mid:.3g}")
        axis.plot(beyond, one.predict(beyond), "--", color=color, linewidth=1.4)
        if isinstance(found, Bootstrap):
            both = np.concatenate([inside, beyond])
            axis.fill_between(both, *found.band(both), color=color, alpha=0.15, linewidth=0)
        if rest is not None:
            after = np.geomspace(rest.cut, last, 100)
            axis.plot(after, rest.fit.predict(after), ":", color=color, linewidth=1.4)
        if i < len(skipped):
            c, y = skipped[i]
            axis.plot(c[c > 0], y[c > 0], "o", color=color, markersize=3, fillstyle="none", alpha=0.7)
    axis.set_xscale("log")
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False, title="solid: fit, dashed: beyond the data, dotted: fit to the first part",
                title_fontsize=7)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=130)
    plt.close(figure)
