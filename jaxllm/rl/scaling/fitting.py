"""The sigmoid of least squares: a grid, then a continuous fit from the best of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.rl.scaling.config import FitConfig, preset
from jaxllm.rl.scaling.curve import NAMES, SigmoidFit
from jaxllm.rl.scaling.points import box, take_points
from jaxllm.rl.scaling.solver import curve_fit_cells, descend


def fit(compute: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray,
        config: FitConfig | str = "default", r0: float | None = None, *,
        errors: Sequence[float] | np.ndarray | None = None, name: str = "run") -> SigmoidFit:
    """The sigmoid of least squares.

    Args:
      compute: [n] rising; the first may be 0.
      reward: [n] mean rewards of the evaluations, pass rates.
      config: what to search, or the name of a preset.
      r0: reward before training; None takes the first evaluation, which is then no point of the fit.
      errors: [n] standard errors of the rewards, by whose squares points weigh; None weighs all the same.
      name: of the run, for tables.

    Raises:
      ConfigError: the input is no such curve; the text names the argument, the value and the remedy.
    """
    config = preset(config)
    points = take_points(compute, reward, config, r0, errors)
    lower, upper = box(config, points)
    a_grid, c_grid = _grid(config, lower, upper)
    cells = np.stack([g.ravel() for g in np.meshgrid(a_grid, np.log(c_grid), indexing="ij")] +
                     [np.zeros(a_grid.size * c_grid.size)], axis=1)  # B from 1, as curve_fit's own start
    if config.solver == "curve_fit":
        cells, sse = curve_fit_cells(points, cells)
    else:
        # A start needs no more than a few steps; without a continuous fit after it the grid is the answer.
        cells, sse = descend(points, cells, lower, upper, free=(2,), iterations=6 if config.refine else 60)
    best, least = cells[np.argmin(sse)], float(np.min(sse))
    if not math.isfinite(least):
        raise ConfigError("solver='curve_fit': B was found at no point of the grid; use solver='vectorised'")
    if config.refine:
        # The best of each band of A: the valley is long and curved, and one start could stay in a corner of it.
        bands = np.array_split(np.arange(len(cells)), min(8, len(a_grid)))
        starts = np.stack([cells[band[np.argmin(sse[band])]] for band in bands])
        found, sse = descend(points, starts, lower, upper)
        best, least = found[np.argmin(sse)], float(np.min(sse))
        edges = _edges(best, lower, upper)
    else:
        # A coarse C_mid can hold A just off its edge: the continuous fit from there goes on to it.
        nearby, _ = descend(points, best[None], lower, upper)
        edges = tuple(dict.fromkeys(_edges(best, lower, upper) + _edges(nearby[0], lower, upper)))
    return SigmoidFit(float(best[0]), float(np.exp(best[1])), float(np.exp(best[2])), points.r0, least, points.compute,
                      points.reward, points.errors, points.r0_error, edges, config, name)


def _grid(config: FitConfig, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of A and of C_mid, both ends among them."""
    a = np.linspace(lower[0], upper[0], max(2, round((upper[0] - lower[0]) / config.a_step) + 1))
    spaced = np.geomspace if config.c_mid_spacing == "log" else np.linspace
    return a, spaced(math.exp(lower[1]), math.exp(upper[1]), config.c_mid_points)


def _edges(theta: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[str, ...]:
    sides = [(name, "low" if theta[i] <= lower[i] + 1e-9 else "high" if theta[i] >= upper[i] - 1e-9 else "")
             for i, name in enumerate(NAMES)]
    return tuple(f"{name}={side}" for name, side in sides if side)
