"""Confidence intervals, all from scipy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided bounds; `n` is how many values it rests on."""

    value: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval of a mean; bounds are NaN for a single value."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        raise ValueError("mean_interval: no values")
    if len(x) == 1:
        return Interval(float(x[0]), float("nan"), float("nan"), 1)
    half = stats.t.ppf((1 + level) / 2, len(x) - 1) * stats.sem(x)
    return Interval(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x))


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"proportion_interval: {successes} of {n}")
    found = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(found.low), float(found.high), n)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Interval:
    """t interval of the mean of a - b over pairs (the same seed, prompt or repeat on both sides)."""
    if len(a) != len(b):
        raise ValueError(f"paired_interval: {len(a)} against {len(b)} values")
    return mean_interval((np.asarray(a, np.float64) - np.asarray(b, np.float64)).tolist(), level)
