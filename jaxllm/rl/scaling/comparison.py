"""Two runs against each other by ceiling and efficiency, and one run's efficiency as a line."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.special import expit

from jaxllm.config import ConfigError, check
from jaxllm.rl.scaling.curve import SigmoidFit
from jaxllm.rl.scaling.points import Points, box
from jaxllm.rl.scaling.solver import descend


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """F(R) = C_mid^B / ((A - R0) / (R - R0) - 1), which is C^B on the curve: log F against log C has slope B.

    Attributes:
      log_compute: [m] natural logarithms.
      log_f: [m] natural logarithms.
      slope: of the least-squares line through them.
      dropped: points at or beyond R0 or A, where F does not exist.
    """

    log_compute: np.ndarray
    log_f: np.ndarray
    slope: float
    dropped: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two runs, as the paper compares them: first the ceilings, then, at one ceiling, the efficiency.

    Attributes:
      names: of the two runs.
      verdict: "ceiling", "efficiency" or "none": what tells them apart.
      winner: name of the run with the higher ceiling or the larger B; None for no difference.
      text: the same in words.
      A: the ceilings as fitted.
      A_common: their mean, where they are within the margin, else None.
      B: steepness of each, at A_common where there is one.
      B_error: standard errors of these, from the curvature at the fit and R0's own error; NaN without A_common.
      C_mid: of each, at A_common where there is one, in compute units.
      margin: what counts as one ceiling.
    """

    names: tuple[str, str]
    verdict: str
    winner: str | None
    text: str
    A: tuple[float, float]
    A_common: float | None
    B: tuple[float, float]
    B_error: tuple[float, float]
    C_mid: tuple[float, float]
    margin: float


def efficiency(one: SigmoidFit) -> Efficiency:
    """log F(R) against log C of the fitted points, whose slope is B where the sigmoid holds."""
    inside = (one.reward > one.r0) & (one.reward < one.A)
    if inside.sum() < 2:
        raise ConfigError(f"reward: {inside.sum()} points lie between r0={one.r0:.4g} and A={one.A:.4g}, 2 are needed; "
                          "give the r0 that was measured")
    log_c = np.log(one.compute[inside])
    log_f = one.B * math.log(one.C_mid) - np.log((one.A - one.r0) / (one.reward[inside] - one.r0) - 1)
    slope, _ = np.polyfit(log_c, log_f, 1)
    return Efficiency(log_c, log_f, float(slope), int((~inside).sum()))


def compare(run_a: SigmoidFit, run_b: SigmoidFit, margin: float = 0.02) -> Comparison:
    """Which of two runs has the higher ceiling or, where these are one, which is the more efficient.

    Ceilings within `margin` (0.02 in the paper, from the spread of three runs alike) count as one: both are fitted
    again at their mean, and the larger B is the more efficient. A difference of B within two standard errors is
    none. The fits must be in one unit of compute.
    """
    check(margin >= 0, "margin", margin, "use 0 or more; 0.02 in the paper")
    names, ceilings = (run_a.name, run_b.name), (run_a.A, run_b.A)
    if abs(run_a.A - run_b.A) > margin:
        high = int(run_b.A > run_a.A)
        text = (f"{names[high]} has the higher ceiling: A {ceilings[high]:.3f} against {ceilings[1 - high]:.3f}, "
                f"more than {margin:g} apart")
        doubtful = [run.name for run in (run_a, run_b) if any(edge.startswith("A=") for edge in run.edges)]
        if doubtful:
            text += f"; A of {' and '.join(doubtful)} is only the edge of what was searched"
        return Comparison(names, "ceiling", names[high], text, ceilings, None, (run_a.B, run_b.B), (math.nan, math.nan),
                          (run_a.C_mid, run_b.C_mid), margin)
    common = (run_a.A + run_b.A) / 2
    (b1, e1, c1), (b2, e2, c2) = (_at_ceiling(run, common) for run in (run_a, run_b))
    steep, spread = (b1, b2), math.hypot(e1, e2)
    start = f"one ceiling, A {common:.3f} (within {margin:g}): "
    high = int(b2 > b1)
    if abs(b1 - b2) <= max(2 * spread, 1e-6):
        verdict, winner = "none", None
        text = f"{start}B {b1:.2f} and {b2:.2f} do not differ beyond two standard errors ({2 * spread:.2f})"
    else:
        verdict, winner = "efficiency", names[high]
        text = f"{start}{winner} is the more efficient: B {steep[high]:.2f} against {steep[1 - high]:.2f}"
        if (c1, c2)[high] > (c1, c2)[1 - high]:
            text += f", though {names[1 - high]} gets half-way sooner (C_mid {min(c1, c2):.4g} against " \
                    f"{max(c1, c2):.4g})"
    return Comparison(names, verdict, winner, text, ceilings, common, steep, (e1, e2), (c1, c2), margin)


def _at_ceiling(run: SigmoidFit, ceiling: float) -> tuple[float, float, float]:
    """B, its standard error and C_mid of a run fitted again with A fixed."""
    points = Points(run.compute, run.reward, run.errors, run.r0, run.r0_error)
    lower, upper = box(run.config, points)
    start = np.array([[ceiling, math.log(run.C_mid), math.log(run.B)]])
    found, sse = descend(points, start, lower, upper, free=(1, 2))
    _, log_mid, log_b = found[0]
    b, away = math.exp(log_b), points.log_c - log_mid
    s, scale = expit(b * away), np.ones(run.n) if run.errors is None else run.errors
    jacobian = ((ceiling - run.r0) * s * (1 - s) / scale)[:, None] * np.stack([np.full(run.n, -b), away], axis=1)
    inverse = np.linalg.pinv(jacobian.T @ jacobian)
    noise = math.sqrt(float(sse[0]) / (run.n - 2))
    # An R0 that was measured once moves every point of the curve together, and B with them.
    of_r0 = noise * float(np.median(scale)) if run.r0_error is None else run.r0_error
    by_r0 = inverse @ (jacobian.T @ ((1 - s) / scale)) * of_r0
    return b, math.hypot(math.sqrt(inverse[1, 1]) * noise, by_r0[1]), math.exp(log_mid)
