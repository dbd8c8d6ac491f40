"""Least squares over many rows at once: a grid of starts, one start, or one resampled curve a row."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from scipy import optimize
from scipy.special import expit

from jaxllm.rl.scaling.curve import sigmoid
from jaxllm.rl.scaling.points import Points


def descend(points: Points, start: np.ndarray, lower: np.ndarray, upper: np.ndarray, *,
            free: tuple[int, ...] = (0, 1, 2), weights: np.ndarray | None = None, iterations: int = 100
            ) -> tuple[np.ndarray, np.ndarray]:
    """Batched Levenberg-Marquardt within bounds; a row goes on until its own steps are small.

    Args:
      points: rewards of [n] for all rows, or of [rows, n].
      start: [rows, 3] of (A, log C_mid, log B).
      lower: [3].
      upper: [3].
      free: which of the three move.
      weights: [rows, n] in place of those of the points' errors.
      iterations: at most.

    Returns:
      the [rows, 3] found and their [rows] sums of weighted squares.
    """
    rows, n = len(start), len(points.compute)
    log_c = points.log_c
    y, r0 = np.broadcast_to(points.reward, (rows, n)), np.broadcast_to(points.r0, (rows, 1))
    if weights is None and points.errors is not None:
        weights = np.broadcast_to(points.errors ** -2, (rows, n))
    theta, damping, columns = np.array(start), np.full(rows, 1e-3), list(free)

    def squares(at: np.ndarray, who: Any) -> np.ndarray:
        wrong = sigmoid(log_c, at[:, 0:1], at[:, 1:2], at[:, 2:3], r0[who]) - y[who]
        return np.einsum("sn,sn->s", wrong, wrong if weights is None else wrong * weights[who])

    sse, active = squares(theta, slice(None)), np.arange(rows)
    for _ in range(iterations):
        t, base = theta[active], r0[active]
        b, height = np.exp(t[:, 2:3]), t[:, 0:1] - base
        away = log_c - t[:, 1:2]
        s = expit(b * away)
        wrong = base + height * s - y[active]
        slope = height * b * s * (1 - s)
        jacobian = np.stack([(s, -slope, slope * away)[i] for i in columns], axis=1)  # [rows, free, n]
        weighed = jacobian if weights is None else jacobian * weights[active][:, None]
        gradient = np.einsum("sin,sn->si", weighed, wrong)
        curvature = weighed @ jacobian.transpose(0, 2, 1)
        # What sits on a bound and would leave it stays; the others move as if it were a constant.
        at = t[:, columns]
        fixed = ((at <= lower[columns]) & (gradient > 0)) | ((at >= upper[columns]) & (gradient < 0))
        gradient[fixed] = 0.0
        curvature[fixed[:, :, None] | fixed[:, None, :]] = 0.0
        size = np.einsum("sii->si", curvature)
        system = curvature + (damping[active][:, None] * size + (size <= 1e-12 * size.max(1, keepdims=True) + 1e-300)
                              )[:, :, None] * np.eye(len(columns))
        step = np.linalg.solve(system, -gradient[..., None])[..., 0] if len(columns) > 1 else \
            -gradient / system[:, :, 0]
        # No more than a factor e a step: far from the answer the linear model sends C_mid and B out of the bounds.
        new = t.copy()
        new[:, columns] = np.clip(at + np.clip(step, -1, 1), lower[columns], upper[columns])
        after = squares(new, active)
        better = after <= sse[active]
        moved = np.abs(new - t).max(1)
        theta[active[better]], sse[active[better]] = new[better], after[better]
        damping[active] = np.clip(np.where(better, damping[active] * 0.2, damping[active] * 5), 1e-12, 1e12)
        active = active[~((moved < 1e-9) | (damping[active] >= 1e10))]
        if not len(active):
            break
    return theta, sse


def curve_fit_cells(points: Points, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B of each cell by scipy's curve_fit from its own start, as the paper did; infinite squares where it fails."""
    cells, sse = cells.copy(), np.full(len(cells), np.inf)
    weights = 1.0 if points.errors is None else points.errors ** -2
    for i, (a, log_mid, _) in enumerate(cells):
        away = points.log_c - log_mid

        def curve(x: np.ndarray, b: float, height: float = a - points.r0) -> np.ndarray:
            return points.r0 + height * expit(b * x)

        try:  # p0 is its own default for one number; without it, it would fit `height` too
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optimize.OptimizeWarning)  # about a covariance that nobody asks for
                found: Any = optimize.curve_fit(curve, away, points.reward, p0=[1.0], sigma=points.errors,
                                                check_finite=False)
        except RuntimeError:  # it did not converge
            continue
        b = float(found[0][0])
        if b > 0:
            cells[i, 2] = math.log(b)
            sse[i] = np.sum(weights * (curve(away, b) - points.reward) ** 2)
    return cells, sse
