"""The points of a run that a fit takes, checked, and the bounds that follow from them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.config import ConfigError, check
from jaxllm.rl.scaling.config import FitConfig, preset

MIN_POINTS = 5  # three numbers are fitted, and residuals need to be left


@dataclasses.dataclass(frozen=True)
class Points:
    """The fitted points of one run, or of many that share all but their rewards and R0."""

    compute: np.ndarray  # [n]
    reward: np.ndarray  # [n], or [rows, n] of resampled curves
    errors: np.ndarray | None  # [n]
    r0: Any  # a float, or [rows, 1]
    r0_error: float | None

    @property
    def log_c(self) -> np.ndarray:
        """[n] natural logarithms of compute."""
        return np.log(self.compute)


def take_points(compute: Any, reward: Any, config: FitConfig, r0: float | None, errors: Any) -> Points:
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
    return Points(c, y, e, start, of_start)


def kept(compute: Sequence[float] | np.ndarray, config: FitConfig | str = "default", r0: float | None = None
         ) -> np.ndarray:
    """[n] of bool: which points `fit` takes: past `skip`, above compute 0, and not the one that R0 comes from."""
    c = np.asarray(compute, np.float64)
    skip = preset(config).skip
    keep = (c > 0) & (c >= (skip * c[-1] if skip < 1 else skip))
    if r0 is None:
        keep[0] = False
    return keep


def _vector(name: str, values: Any) -> np.ndarray:
    try:
        x = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: holds something that is no number; give a list of numbers") from None
    check(x.ndim == 1, name, f"shape {x.shape}", "give one dimension")
    return x


def box(config: FitConfig, points: Points) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of (A, log C_mid, log B)."""
    c = points.compute
    a_min = config.a_min
    if a_min is None:  # a rise, if a small one
        a_min = points.r0 + 0.01 * (min(float(points.reward.max()), config.a_max) - points.r0)
    low = config.c_mid_min if config.c_mid_min is not None else c[0] / 10
    high = config.c_mid_max if config.c_mid_max is not None else c[-1] * 10
    return (np.array([a_min, math.log(low), math.log(config.b_min)]),
            np.array([config.a_max, math.log(high), math.log(config.b_max)]))
