"""How sure a fit is: the spread of A, C_mid and B over curves made again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.config import check
from jaxllm.rl.scaling.config import FitConfig
from jaxllm.rl.scaling.curve import SigmoidFit, sigmoid
from jaxllm.rl.scaling.fitting import fit
from jaxllm.rl.scaling.points import Points, box
from jaxllm.rl.scaling.solver import descend
from jaxllm.studies.intervals import Interval

METHODS = ("residual", "pairs", "parametric")


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Intervals of A, C_mid and B.

    Attributes:
      fit: the fit to the data.
      A: value and bounds; `n` is the number of resampled curves.
      C_mid: the same, in compute units.
      B: the same.
      draws: [samples, 4]: A, C_mid, B and R0 of each resampled curve.
      edge_share: share of the resampled curves with one of the three on the edge of what was searched; where it is
        not near 0 the bounds are those of the search.
      level: of the intervals.
    """

    fit: SigmoidFit
    A: Interval
    C_mid: Interval
    B: Interval
    draws: np.ndarray
    edge_share: float
    level: float

    def band(self, c: Any) -> tuple[np.ndarray, np.ndarray]:
        """Low and high of the curve itself (not of single evaluations) at compute `c`."""
        a, c_mid, b, r0 = (self.draws[:, i, None] for i in range(4))
        curves = sigmoid(np.log(np.atleast_1d(np.asarray(c, np.float64))), a, np.log(c_mid), np.log(b), r0)
        low, high = np.quantile(curves, _tails(self.level), axis=0)
        return low, high


def bootstrap(compute: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray,
              config: FitConfig | str = "default", r0: float | None = None, *,
              errors: Sequence[float] | np.ndarray | None = None, r0_error: float | None = None, samples: int = 400,
              level: float = 0.95, method: str = "residual", seed: int = 0, fitted: SigmoidFit | None = None
              ) -> Bootstrap:
    """Percentile intervals of A, C_mid and B from curves made again and fitted again.

    "residual" puts residuals drawn with replacement on the fitted curve; "parametric" puts normal noise of the
    points' `errors` on it (of the residuals' size without); "pairs" draws points. The first two keep every value of
    compute, which few points need. All take evaluations as independent, which repeated sampling of one set of
    prompts is. An R0 that was measured is drawn too. Refits are continuous within the grid's bounds, for the paper's
    grid as well: steps of its A are wider than what is told apart here.

    Args:
      compute: as in `fit`, and so on to `errors`.
      reward: pass rates.
      config: grid or preset.
      r0: reward before training, or None for the first evaluation.
      errors: standard errors of the points.
      r0_error: standard error of R0; None for 0 where R0 is given, and for a point's where it is an evaluation.
      samples: curves made.
      level: of the intervals.
      method: residual, parametric or pairs.
      seed: of the draws.
      fitted: what `fit` gave for the same points, if it is there already.
    """
    check(method in METHODS, "method", method, f"use one of {', '.join(METHODS)}")
    check(samples >= 20, "samples", samples, "use at least 20; 400 for intervals to report")
    check(0 < level < 1, "level", level, "use one in (0, 1), such as 0.95")
    one = fitted if fitted is not None else fit(compute, reward, config, r0, errors=errors)
    rng = np.random.default_rng(seed)
    points = Points(one.compute, one.reward, one.errors, one.r0, one.r0_error)
    lower, upper = box(one.config, points)
    start, _ = descend(points, np.array([[one.A, math.log(one.C_mid), math.log(one.B)]]), lower, upper)
    curve = sigmoid(points.log_c, start[0, 0], start[0, 1], start[0, 2], one.r0)
    scale = np.ones(one.n) if one.errors is None else one.errors
    # Three fitted numbers make residuals smaller than the noise is.
    left = (one.reward - curve) / scale * math.sqrt(one.n / (one.n - 3))
    noise = math.sqrt(np.mean(left ** 2))
    of_r0 = r0_error if r0_error is not None else one.r0_error
    if of_r0 is None:
        of_r0 = noise * float(np.median(scale))
    r0s = one.r0 + of_r0 * rng.standard_normal((samples, 1))
    weights = None
    if method == "pairs":
        # Drawing a point k times is weighing it k times.
        weights = rng.multinomial(one.n, np.full(one.n, 1 / one.n), samples) / scale ** 2
        rewards = np.broadcast_to(one.reward, (samples, one.n))
    elif method == "residual":
        rewards = curve + scale * rng.choice(left - left.mean(), (samples, one.n))
    else:
        sizes = scale if one.errors is not None else noise
        rewards = curve + sizes * rng.standard_normal((samples, one.n))
    made = dataclasses.replace(points, reward=rewards, r0=r0s)
    found, sse = descend(made, np.repeat(start, samples, 0), lower, upper, weights=weights)
    # A second start from the far end of the valley: a curve that has not bent may belong there.
    far = np.array([[upper[0], start[0, 1] + math.log(2), start[0, 2] + math.log(0.8)]])
    again, other = descend(made, np.repeat(np.clip(far, lower, upper), samples, 0), lower, upper, weights=weights)
    found = np.where((other < sse)[:, None], again, found)
    draws = np.column_stack([found[:, 0], np.exp(found[:, 1]), np.exp(found[:, 2]), r0s[:, 0]])
    low, high = np.quantile(draws, _tails(level), axis=0)
    a, c_mid, b = (Interval(value, float(low[i]), float(high[i]), samples)
                   for i, value in enumerate((one.A, one.C_mid, one.B)))
    touching = ((found <= lower + 1e-9) | (found >= upper - 1e-9)).any(axis=1)
    return Bootstrap(one, a, c_mid, b, draws, float(touching.mean()), level)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2
