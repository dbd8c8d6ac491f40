"""Effect sizes of a dose study over seeds: paired Hedges' g, Jonckheere's trend test, slope, bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxllm.config import check


class Effect(NamedTuple):
    """An effect size with its bootstrap interval."""

    value: float
    low: float
    high: float


def hedges_g(treated: Sequence[float], control: Sequence[float]) -> float:
    """Hedges' g of two independent groups: J (mean difference) / pooled deviation, J = 1 - 3 / (4 (n1 + n2) - 9).

    Source: Brain Rot (arXiv 2510.13928 v2, section 3), over models there.
    """
    a, b = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    n = len(a) + len(b)
    check(len(a) >= 2 and len(b) >= 2, "treated", len(a), "at least 2 values in each group")
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (n - 2))
    return float((1 - 3 / (4 * n - 9)) * _ratio(a.mean() - b.mean(), pooled))


def paired_g(treated: Sequence[float], control: Sequence[float]) -> float:
    """Hedges' g of pairs: J (mean of differences) / deviation of differences, J = 1 - 3 / (4 (n - 1) - 1)."""
    a, b = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    check(len(a) == len(b), "treated", len(a), f"as many as control, {len(b)}: values are paired by seed")
    check(len(a) >= 2, "treated", len(a), "at least 2 pairs")
    return _paired(a - b)


def _paired(d: np.ndarray) -> float:
    return float((1 - 3 / (4 * (len(d) - 1) - 1)) * _ratio(d.mean(), d.std(ddof=1)))


def _ratio(difference: float, spread: float) -> float:
    return (
        difference / spread if spread > 0 else float("nan") if difference == 0 else float(np.sign(difference) * np.inf)
    )


def bootstrap_g(treated: Sequence[float], control: Sequence[float], repeats: int = 2000, level: float = 0.9,
                seed: int = 0) -> Effect:
    """`paired_g` with a percentile bootstrap interval over pairs; draws whose pairs are all alike are left out."""
    a, b = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    rng = np.random.default_rng(seed)
    drawn = [g for at in rng.integers(len(a), size=(repeats, len(a))) if np.isfinite(g := _paired(a[at] - b[at]))]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if drawn else (np.nan, np.nan)
    return Effect(paired_g(treated, control), float(low), float(high))


class Trend(NamedTuple):
    """Jonckheere's statistic, and its two-sided p-value by permutation."""

    statistic: float
    p: float


def jonckheere(groups: Sequence[Sequence[float]], permutations: int = 10_000, seed: int = 0) -> Trend:
    """Do values rise or fall from group to group? Pairs of a later value above an earlier group's one count 1, ties
    1/2.

    Args:
      groups: values by dose, in order of it.
      permutations: of which value has which dose.
      seed: of the permutations.
    """
    check(len(groups) >= 2 and all(len(g) for g in groups), "groups", len(groups), "at least 2, none empty")
    values = np.concatenate([np.asarray(g, np.float64) for g in groups])
    dose = np.repeat(np.arange(len(groups)), [len(g) for g in groups])
    # For each pair of values: 1 if the first is greater, 1/2 for a tie.
    above = (values[:, None] > values[None]) + 0.5 * (values[:, None] == values[None])

    def statistic(d: np.ndarray) -> float:
        return float((above * (d[:, None] > d[None])).sum())
    middle = (len(values) ** 2 - sum(len(g) ** 2 for g in groups)) / 4
    found = statistic(dose)
    rng = np.random.default_rng(seed)
    as_far = sum(
        abs(statistic(rng.permutation(dose)) - middle) >= abs(found - middle) - 1e-9 for _ in range(permutations)
    )
    return Trend(found, (1 + as_far) / (1 + permutations))


def slope(doses: Sequence[float], values: Sequence[float], seeds: Sequence[int]) -> Effect:
    """Change from dose 0 to 1 of a line with an intercept for each seed, with a 95 % t interval."""
    x, y, s = np.asarray(doses, np.float64), np.asarray(values, np.float64), np.asarray(seeds)
    kinds = np.unique(s)
    freedom = len(x) - len(kinds) - 1
    check(freedom >= 1 and bool(np.ptp(x) > 0), "doses", len(x), "at least two doses and more values than seeds + 1")
    for k in kinds:
        x, y = np.where(s == k, x - x[s == k].mean(), x), np.where(s == k, y - y[s == k].mean(), y)
    b = float((x * y).sum() / (x ** 2).sum())
    error = float(np.sqrt(((y - b * x) ** 2).sum() / freedom / (x ** 2).sum()))
    half = float(stats.t.ppf(0.975, freedom)) * error
    return Effect(b, b - half, b + half)
