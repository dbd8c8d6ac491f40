"""How the reward of a run grows with compute: a sigmoid, its intervals, and what it says about more compute.

R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B), from "The Art of Scaling Reinforcement Learning Compute for LLMs"
(ScaleRL, arXiv 2510.13786): A is the ceiling, C_mid the compute at half of the gain, B the steepness. C is in any
unit (GPU-hours in the paper, floating-point operations or steps as well), C_mid is in the same one; R, R0 and A
are pass rates. R0 is the measured reward before training, never fitted.

Every least-squares problem here goes through one batched Levenberg-Marquardt in (A, log C_mid, log B): a grid of
starts, one start, or one resampled curve a row.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import optimize
from scipy.special import expit

from jaxllm.config import ConfigError, check, nearest
from jaxllm.files import aside
from jaxllm.studies.intervals import Interval

MIN_POINTS = 5  # three numbers are fitted, and residuals need to be left
NAMES = ("A", "C_mid", "B")
METHODS = ("residual", "pairs", "parametric")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The grid that a fit searches, and what comes before and after; `PRESETS` holds the two usual ones.

    Attributes:
      a_min: lowest ceiling A tried; None for one just above R0.
      a_max: highest; 1.0 is a pass rate's own limit.
      a_step: spacing of A.
      c_mid_min: lowest C_mid tried, in compute units; None for a tenth of the first fitted point's compute.
      c_mid_max: highest; None for ten times the last point's compute.
      c_mid_points: how many values of C_mid.
      c_mid_spacing: log or linear.
      b_min: lowest steepness B.
      b_max: highest.
      solver: how B is fitted at each point of the grid: vectorised, all at once, or curve_fit, scipy's, one by one.
      refine: whether the best points of the grid are starts of a continuous fit within its bounds.
      skip: points below this are left out; under 1 a share of the last compute, else compute units. The first epoch
        (some 1,500 GPU-hours in the paper) does not follow the sigmoid.
    """

    a_min: float | None = None
    a_max: float = 1.0
    a_step: float = 0.02
    c_mid_min: float | None = None
    c_mid_max: float | None = None
    c_mid_points: int = 48
    c_mid_spacing: str = "log"
    b_min: float = 0.05
    b_max: float = 20.0
    solver: str = "vectorised"
    refine: bool = True
    skip: float = 0.0

    def __post_init__(self) -> None:
        check(math.isfinite(self.a_max), "a_max", self.a_max, "use a finite number, 1.0 for pass rates")
        check(self.a_min is None or self.a_min < self.a_max, "a_min", self.a_min, f"use one below a_max={self.a_max}")
        check(self.a_step > 0, "a_step", self.a_step, "use a positive step, such as 0.005")
        check(self.c_mid_min is None or self.c_mid_min > 0, "c_mid_min", self.c_mid_min, "use a positive compute")
        check(self.c_mid_min is None or self.c_mid_max is None or self.c_mid_min < self.c_mid_max, "c_mid_max",
              self.c_mid_max, f"use one above c_mid_min={self.c_mid_min}")
        check(self.c_mid_points >= 2, "c_mid_points", self.c_mid_points, "use at least 2")
        check(self.c_mid_spacing in ("log", "linear"), "c_mid_spacing", self.c_mid_spacing, "use log or linear")
        check(0 < self.b_min < 1 < self.b_max, "b_min", self.b_min, f"use 0 < b_min < 1 < b_max={self.b_max}")
        check(self.solver in ("vectorised", "curve_fit"), "solver", self.solver, "use vectorised or curve_fit")
        check(self.skip >= 0 and math.isfinite(self.skip), "skip", self.skip,
              "use 0 or more: a share of the last compute under 1, else compute units")


# "paper": the grids and the skipped part of ScaleRL's appendix, which hold for compute in GPU-hours.
PRESETS = {
    "default": FitConfig(),
    "paper": FitConfig(a_min=0.45, a_max=0.8, a_step=0.005, c_mid_min=100.0, c_mid_max=40_000.0, c_mid_points=100,
                       c_mid_spacing="linear", solver="curve_fit", refine=False, skip=1500.0),
}


def preset(config: FitConfig | str) -> FitConfig:
    """The config itself, or the one of that name in `PRESETS`."""
    if isinstance(config, FitConfig):
        return config
    if config not in PRESETS:
        raise ConfigError(f"preset={config!r}: {nearest(config, PRESETS)}")
    return PRESETS[config]


@dataclasses.dataclass(frozen=True)
class SigmoidFit:
    """A fitted sigmoid and the points it was fitted to.

    Attributes:
      A: ceiling, a pass rate.
      C_mid: compute at half of the gain, in the unit of `compute`.
      B: steepness.
      r0: reward before training.
      sse: sum of squared residuals (in standard errors where `errors` were given).
      compute: [n] of the points that were fitted.
      reward: [n].
      errors: [n] standard errors, or None.
      r0_error: standard error of r0; None for that of any other point.
      edges: those of A, C_mid, B that lie on the edge of what was searched, or would but for the grid's spacing, with
        the side ("A=high"): the data do not tell them.
      config: what was searched.
      name: of the run.
    """

    A: float
    C_mid: float
    B: float
    r0: float
    sse: float
    compute: np.ndarray
    reward: np.ndarray
    errors: np.ndarray | None
    r0_error: float | None
    edges: tuple[str, ...]
    config: FitConfig
    name: str = "run"

    @property
    def n(self) -> int:
        """How many points were fitted."""
        return len(self.compute)

    @property
    def noise(self) -> float:
        """Standard deviation of the residuals about the curve, with three degrees of freedom used."""
        return math.sqrt(self.sse / (self.n - 3))

    def predict(self, c: Any) -> np.ndarray:
        """Reward at compute `c`, a number or an array, in the unit of the fit; 0 gives R0."""
        with np.errstate(divide="ignore"):
            return _sigmoid(np.log(np.asarray(c, np.float64)), self.A, math.log(self.C_mid), math.log(self.B), self.r0)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {"A": self.A, "C_mid": self.C_mid, "B": self.B, "r0": self.r0, "sse": self.sse, "noise": self.noise,
                "points": self.n, "compute_min": float(self.compute[0]), "compute_max": float(self.compute[-1]),
                "edges": list(self.edges)}


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
        curves = _sigmoid(np.log(np.atleast_1d(np.asarray(c, np.float64))), a, np.log(c_mid), np.log(b), r0)
        low, high = np.quantile(curves, _tails(self.level), axis=0)
        return low, high


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


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """F(R) = C_mid^B / ((A - R0) / (R - R0) - 1), which is C^B on the curve: log F against log C has slope B.

    Attributes:
      log_compute: [m] natural logarithms.
      log_f: [m] natural logarithms.
      slope: of the least-squares line through them.
      intercept: of the same line.
      dropped: points at or beyond R0 or A, where F does not exist.
    """

    log_compute: np.ndarray
    log_f: np.ndarray
    slope: float
    intercept: float
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
    points = _points(compute, reward, config, r0, errors)
    lower, upper = _box(config, points)
    a_grid, c_grid = _grid(config, lower, upper)
    cells = np.stack([g.ravel() for g in np.meshgrid(a_grid, np.log(c_grid), indexing="ij")] +
                     [np.zeros(a_grid.size * c_grid.size)], axis=1)  # B from 1, as curve_fit's own start
    if config.solver == "curve_fit":
        cells, sse = _curve_fit_cells(points, cells)
    else:
        # A start needs no more than a few steps; without a continuous fit after it the grid is the answer.
        cells, sse = _descend(points, cells, lower, upper, free=(2,), iterations=6 if config.refine else 60)
    best, least = cells[np.argmin(sse)], float(np.min(sse))
    if not math.isfinite(least):
        raise ConfigError("solver='curve_fit': B was found at no point of the grid; use solver='vectorised'")
    if config.refine:
        # The best of each band of A: the valley is long and curved, and one start could stay in a corner of it.
        bands = np.array_split(np.arange(len(cells)), min(8, len(a_grid)))
        starts = np.stack([cells[band[np.argmin(sse[band])]] for band in bands])
        found, sse = _descend(points, starts, lower, upper)
        best, least = found[np.argmin(sse)], float(np.min(sse))
        edges = _edges(best, lower, upper)
    else:
        # A coarse C_mid can hold A just off its edge: the continuous fit from there goes on to it.
        nearby, _ = _descend(points, best[None], lower, upper)
        edges = tuple(dict.fromkeys(_edges(best, lower, upper) + _edges(nearby[0], lower, upper)))
    return SigmoidFit(float(best[0]), float(np.exp(best[1])), float(np.exp(best[2])), points.r0, least, points.compute,
                      points.reward, points.errors, points.r0_error, edges, config, name)


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
    points = _Points(one.compute, one.reward, one.errors, one.r0, one.r0_error)
    lower, upper = _box(one.config, points)
    start, _ = _descend(points, np.array([[one.A, math.log(one.C_mid), math.log(one.B)]]), lower, upper)
    curve = _sigmoid(points.log_c, start[0, 0], start[0, 1], start[0, 2], one.r0)
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
    found, sse = _descend(made, np.repeat(start, samples, 0), lower, upper, weights=weights)
    # A second start from the far end of the valley: a curve that has not bent may belong there.
    far = np.array([[upper[0], start[0, 1] + math.log(2), start[0, 2] + math.log(0.8)]])
    again, other = _descend(made, np.repeat(np.clip(far, lower, upper), samples, 0), lower, upper, weights=weights)
    found = np.where((other < sse)[:, None], again, found)
    draws = np.column_stack([found[:, 0], np.exp(found[:, 1]), np.exp(found[:, 2]), r0s[:, 0]])
    low, high = np.quantile(draws, _tails(level), axis=0)
    a, c_mid, b = (Interval(value, float(low[i]), float(high[i]), samples)
                   for i, value in enumerate((one.A, one.C_mid, one.B)))
    touching = ((found <= lower + 1e-9) | (found >= upper - 1e-9)).any(axis=1)
    return Bootstrap(one, a, c_mid, b, draws, float(touching.mean()), level)


def extrapolation_error(compute: Sequence[float] | np.ndarray, reward: Sequence[float] | np.ndarray,
                        fraction: float = 0.5, config: FitConfig | str = "default", r0: float | None = None, *,
                        errors: Sequence[float] | np.ndarray | None = None, name: str = "run") -> Extrapolation:
    """Fit what was measured up to `fraction` of the last compute; the errors on what came after."""
    check(0 < fraction < 1, "fraction", fraction, "use a share of the compute in (0, 1)")
    config = preset(config)
    points = _points(compute, reward, config, r0, errors)
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
    points = _points(compute, reward, config, r0, None)
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


def efficiency(one: SigmoidFit) -> Efficiency:
    """log F(R) against log C of the fitted points, whose slope is B where the sigmoid holds."""
    inside = (one.reward > one.r0) & (one.reward < one.A)
    if inside.sum() < 2:
        raise ConfigError(f"reward: {inside.sum()} points lie between r0={one.r0:.4g} and A={one.A:.4g}, 2 are needed; "
                          "give the r0 that was measured")
    log_c = np.log(one.compute[inside])
    log_f = one.B * math.log(one.C_mid) - np.log((one.A - one.r0) / (one.reward[inside] - one.r0) - 1)
    slope, intercept = np.polyfit(log_c, log_f, 1)
    return Efficiency(log_c, log_f, float(slope), float(intercept), int((~inside).sum()))


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


def kept(compute: Sequence[float] | np.ndarray, config: FitConfig | str = "default", r0: float | None = None
         ) -> np.ndarray:
    """[n] of bool: which points `fit` takes: past `skip`, above compute 0, and not the one that R0 comes from."""
    c = np.asarray(compute, np.float64)
    skip = preset(config).skip
    keep = (c > 0) & (c >= (skip * c[-1] if skip < 1 else skip))
    if r0 is None:
        keep[0] = False
    return keep


@dataclasses.dataclass(frozen=True)
class _Points:
    compute: np.ndarray  # [n]
    reward: np.ndarray  # [n], or [rows, n] of resampled curves
    errors: np.ndarray | None  # [n]
    r0: Any  # a float, or [rows, 1]
    r0_error: float | None

    @property
    def log_c(self) -> np.ndarray:
        return np.log(self.compute)


def _points(compute: Any, reward: Any, config: FitConfig, r0: float | None, errors: Any) -> _Points:
    """The points to fit, checked."""
    c, y = _vector("compute", compute), _vector("reward", reward)
    e = None if errors is None else _vector("errors", errors)
    for name, x in (("reward", y), ("errors", e)):
        check(x is None or len(x) == len(c), name, f"{0 if x is None else len(x)} values",
              f"there are {len(c)} of compute; give as many")
    check(len(c) > 0, "compute", [], "there is no point; evaluate during the run")
    for name, x in (("compute", c), ("reward", y), ("errors", e)):
        if x is not None and not np.isfinite(x).all():
            at = int(np.argmin(np.isfinite(x)))
            raise ConfigError(f"{name}[{at}]={x[at]}: not a finite number; leave that evaluation out or make it again")
    if c[0] < 0 or (c[1:] <= 0).any():
        at = int(np.argmax(np.concatenate([c[:1] < 0, c[1:] <= 0])))
        raise ConfigError(f"compute[{at}]={c[at]:g}: not positive; only the first point may be at 0, with R0 as its "
                          "reward")
    if (np.diff(c) <= 0).any():
        at = int(np.argmax(np.diff(c) <= 0)) + 1
        raise ConfigError(f"compute[{at}]={c[at]:g}: not above the {c[at - 1]:g} before it; give one run's points in "
                          "order, each compute once")
    check(e is None or bool((e > 0).all()), "errors", None if e is None else float(e.min()),
          "standard errors must be above 0; leave errors out to weigh all points the same")
    check(r0 is None or math.isfinite(r0), "r0", r0, "give the reward measured before training")
    keep, start = kept(c, config, r0), float(y[0]) if r0 is None else float(r0)
    of_start = (None if e is None else float(e[0])) if r0 is None else 0.0
    if keep.sum() < MIN_POINTS:
        why = "" if r0 is not None else "; the first is R0 unless r0 is given"
        raise ConfigError(f"skip={config.skip:g}: {keep.sum()} of {len(c)} points are left (the last compute is "
                          f"{c[-1]:.6g}), a fit needs {MIN_POINTS}; use a smaller skip or evaluate more often{why}")
    c, y, e = c[keep], y[keep], None if e is None else e[keep]
    check(bool(np.ptp(y) > 0), "reward", float(y[0]), f"all {len(y)} points are equal, there is no curve to fit; take "
          "another reward or a smaller skip")
    check(bool(y.max() > start), "r0", start, f"no reward is above it (the highest is {y.max():.4g}); give the reward "
          "measured before training, there is no rise to fit otherwise")
    check(bool(y.max() <= config.a_max), "a_max", config.a_max, f"a reward of {y.max():.4g} is above the highest "
          "ceiling searched; use a larger a_max, or preset default instead of paper")
    check(start < config.a_max, "r0", start, f"not below a_max={config.a_max}; use a larger a_max")
    for name, bound, outside in (("c_mid_max", config.c_mid_max, config.c_mid_max and c[0] > config.c_mid_max),
                                 ("c_mid_min", config.c_mid_min, config.c_mid_min and c[-1] < config.c_mid_min)):
        check(not outside, name, bound, f"no compute is on that side of it ({c[0]:.4g} to {c[-1]:.4g}); the paper's "
              "grid is in GPU-hours: give compute in these, or use preset default")
    return _Points(c, y, e, start, of_start)


def _vector(name: str, values: Any) -> np.ndarray:
    try:
        x = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: holds something that is no number; give a list of numbers") from None
    check(x.ndim == 1, name, f"shape {x.shape}", "give one dimension")
    return x


def _sigmoid(log_c: Any, a: Any, log_mid: Any, log_b: Any, r0: Any) -> np.ndarray:
    return r0 + (a - r0) * expit(np.exp(log_b) * (log_c - log_mid))


def _box(config: FitConfig, points: _Points) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of (A, log C_mid, log B)."""
    c = points.compute
    a_min = config.a_min
    if a_min is None:  # a rise, if a small one
        a_min = points.r0 + 0.01 * (min(float(points.reward.max()), config.a_max) - points.r0)
    low = config.c_mid_min if config.c_mid_min is not None else c[0] / 10
    high = config.c_mid_max if config.c_mid_max is not None else c[-1] * 10
    return (np.array([a_min, math.log(low), math.log(config.b_min)]),
            np.array([config.a_max, math.log(high), math.log(config.b_max)]))


def _grid(config: FitConfig, lower: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values of A and of C_mid, both ends among them."""
    a = np.linspace(lower[0], upper[0], max(2, round((upper[0] - lower[0]) / config.a_step) + 1))
    spaced = np.geomspace if config.c_mid_spacing == "log" else np.linspace
    return a, spaced(math.exp(lower[1]), math.exp(upper[1]), config.c_mid_points)


def _edges(theta: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> tuple[str, ...]:
    sides = [(name, "low" if theta[i] <= lower[i] + 1e-9 else "high" if theta[i] >= upper[i] - 1e-9 else "")
             for i, name in enumerate(NAMES)]
    return tuple(f"{name}={side}" for name, side in sides if side)


def _tails(level: float) -> tuple[float, float]:
    return (1 - level) / 2, (1 + level) / 2


def _descend(points: _Points, start: np.ndarray, lower: np.ndarray, upper: np.ndarray, *,
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
        wrong = _sigmoid(log_c, at[:, 0:1], at[:, 1:2], at[:, 2:3], r0[who]) - y[who]
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


def _curve_fit_cells(points: _Points, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _at_ceiling(run: SigmoidFit, ceiling: float) -> tuple[float, float, float]:
    """B, its standard error and C_mid of a run fitted again with A fixed."""
    points = _Points(run.compute, run.reward, run.errors, run.r0, run.r0_error)
    lower, upper = _box(run.config, points)
    start = np.array([[ceiling, math.log(run.C_mid), math.log(run.B)]])
    found, sse = _descend(points, start, lower, upper, free=(1, 2))
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
