"""What the first part of a run says about the rest, and the power law as another curve."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize

from jaxllm.config import ConfigError, check
from jaxllm.rl.scaling.config import FitConfig, preset
from jaxllm.rl.scaling.curve import SigmoidFit
from jaxllm.rl.scaling.fitting import fit
from jaxllm.rl.scaling.points import MIN_POINTS, take_points


@dataclasses.dataclass(frozen=True)
class Extrapolation:
    """A fit to the first part of a run against the rest; errors are predicted - measured pass rates."""

    fit: SigmoidFit
    cut: float  # compute units
    held_out: int  # points beyond it
    max_abs: float
    mean_abs: float
    mean: float


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """R(C) = A - D / C^B: what the sigmoid becomes for C far above C_mid, with D = (A - R0) C_mid^B.

    `at_limit`: A lies at the highest that was allowed. Fitted to points near C_mid it promises far too much.
    """

    A: float
    D: float
    B: float
    sse: float
    at_limit: bool

    def predict(self, c: Any) -> np.ndarray:
        """Reward at compute `c`."""
        return self.A - self.D * np.asarray(c, np.float64) ** -self.B


def extrapolation_error(compute: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray,
                        fraction: float = 0.5, config: FitConfig | str = "default", r0: float | None = None, *,
                        errors: Sequence[float] | np.ndarray | None = None, name: str = "run") -> Extrapolation:
    """Fit what was measured up to `fraction` of the last compute; the errors on what came after."""
    check(0 < fraction < 1, "fraction", fraction, "use a share of the compute in (0, 1)")
    config = preset(config)
    points = take_points(compute, reward, config, r0, errors)
    cut = fraction * float(points.compute[-1])
    first = points.compute <= cut
    if first.sum() < MIN_POINTS:
        raise ConfigError(f"fraction={fraction}: {first.sum()} points up to compute {cut:.6g}, {MIN_POINTS} are "
                          "needed; use a larger fraction, a smaller skip or evaluate more often")
    # The grid's bounds follow the first part only: nothing of the rest may tell where to look.
    one = fit(points.compute[first], points.reward[first], dataclasses.replace(config, skip=0.0), points.r0,
              errors=None if points.errors is None else points.errors[first], name=name)
    wrong = one.predict(points.compute[~first]) - points.reward[~first]
    size = np.abs(wrong)
    return Extrapolation(one, cut, len(wrong), float(size.max()), float(size.mean()), float(wrong.mean()))


def power_law(compute: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray,
              config: FitConfig | str = "default", r0: float | None = None) -> PowerLaw:
    """A - D / C^B of least squares with A up to `a_max` and D from 0, over the same points as `fit`."""
    config = preset(config)
    points = take_points(compute, reward, config, r0, None)
    middle = math.exp(float(np.mean(points.log_c)))  # else C^-B underflows for floating-point operations
    scaled, y = points.log_c - math.log(middle), points.reward

    def at(b: float) -> tuple[float, float, float]:
        x = np.exp(-b * scaled)
        dx, dy = x - x.mean(), y - y.mean()
        d = -float(dx @ dy / (dx @ dx))  # A and D are linear at a given B
        a = float(y.mean() + d * x.mean())
        if a > config.a_max:
            a = config.a_max
            d = float((a - y) @ x / (x @ x))
        if d < 0:
            a, d = float(y.mean()), 0.0
        return float(np.sum((y - a + d * x) ** 2)), a, d

    grid = np.linspace(math.log(config.b_min), math.log(config.b_max), 200)
    i = int(np.argmin([at(math.exp(b))[0] for b in grid]))
    found: Any = optimize.minimize_scalar(lambda b: at(math.exp(b))[0], method="bounded", options={"xatol": 1e-9},
                                          bounds=(grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]))
    b = math.exp(found.x)
    sse, a, d = at(b)
    return PowerLaw(a, d * middle ** b, b, sse, a >= config.a_max)
