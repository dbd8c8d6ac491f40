"""How results hold over repeats: consistency, predictability, robustness (Rabanser et al., arXiv 2602.16666).

Pure functions over arrays `[tasks, runs]`; a run that says nothing of the agent is NaN. The paper's code took scipy's
Jensen-Shannon distance, which is the root of the divergence, and natural logarithms for a while; here it is the
divergence in bits, so that it lies in [0, 1]. The paper gives no intervals; `intervals` has them.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence

import numpy as np

Actions = Sequence[str]


def outcome_consistency(success: np.ndarray, debiased: bool = False) -> np.ndarray:
    """C_out of each task: (2 p - 1)^2 for a share p of successful runs; 1 where all runs end alike.

    Args:
      success: `[tasks, runs]` of 0, 1 and NaN.
      debiased: with few runs the plain value is too high, for two by half a point at p = 1/2; this one has the right
        mean and may be below 0.

    Returns:
      `[tasks]`; NaN for a task with one run, or none.
    """
    runs = np.sum(~np.isnan(success), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.nansum(success, axis=1) / runs
        spread = p * (1 - p) * (runs / (runs - 1) if debiased else 1)
    return np.where(runs >= 2, 1 - 4 * spread, np.nan)


def distribution(actions: Actions, names: Sequence[str]) -> np.ndarray:
    """Share of each name among actions; all 0 for no actions."""
    counts = collections.Counter(actions)
    found = np.array([counts[name] for name in names], np.float64)
    return found / max(found.sum(), 1)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits, in [0, 1]. Nobody's actions (all 0) are 0 from the like, 1 from others."""
    if not p.any() or not q.any():
        return float(p.any() != q.any())
    middle = (p + q) / 2

    def relative(a: np.ndarray) -> float:
        at = a > 0
        return float(np.sum(a[at] * np.log2(a[at] / middle[at])))

    return min(max((relative(p) + relative(q)) / 2, 0.0), 1.0)


def edit_distance(a: Actions, b: Actions) -> int:
    """Levenshtein: fewest insertions, deletions and exchanges that make one of the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def trajectory_consistency(runs: Sequence[Actions]) -> float:
    """C_traj of one task: 1 - mean divergence of the action distributions of two runs; NaN for fewer than two.

    Args:
      runs: names of actions of each successful run.
    """
    names = sorted({name for run in runs for name in run})
    shares = [distribution(run, names) for run in runs]
    found = [divergence(shares[i], shares[j]) for i in range(len(runs)) for j in range(i)]
    return 1 - float(np.mean(found)) if found else float("nan")


def sequence_consistency(runs: Sequence[Actions]) -> float:
    """C_seq of one task: mean over two runs of 1 - edit distance / longer length; NaN for fewer than two."""
    found = [1 - edit_distance(runs[i], runs[j]) / max(len(runs[i]), len(runs[j]), 1)
             for i in range(len(runs)) for j in range(i)]
    return float(np.mean(found)) if found else float("nan")


def steadiness(values: np.ndarray) -> np.ndarray:
    """exp(-CV) of each task, CV = standard deviation (of n) / mean over its runs: C_res of costs or times, C_conf.

    Args:
      values: `[tasks, runs]`, not negative; NaN for none.

    Returns:
      `[tasks]`; 1 where all are 0, NaN for fewer than two runs.
    """
    runs = np.sum(~np.isnan(values), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(values, axis=1) / runs
        variance = np.nansum((values - mean[:, None]) ** 2, axis=1) / runs
        found = np.exp(-np.where(mean > 0, np.sqrt(variance) / mean, 0.0))
    return np.where(runs >= 2, found, np.nan)


def risk_coverage(success: np.ndarray, confidence: np.ndarray) -> float:
    """AuRC: mean share of failures among the k most confident runs, over all k; ties count as their mean.

    Args:
      success, confidence: `[runs]`.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked, value = confidence[order], success[order].astype(np.float64)
    for group in np.split(np.arange(len(ranked)), np.flatnonzero(np.diff(ranked)) + 1):
        value[group] = value[group].mean()  # in no order among equals
    return float(np.mean(1 - np.cumsum(value) / np.arange(1, len(value) + 1)))


def selective_prediction(success: np.ndarray, confidence: np.ndarray) -> float:
    """P_rc: 1 - (AuRC - best) / (error rate - best), in [0, 1]: 1 for a perfect order, 0 for one that says nothing.

    NaN where all runs end alike, so that there is no order to find.
    """
    error = 1 - float(success.mean())
    # Best where failures come last. Not the AuRC of successes taken as confidences: their ties are no ties here.
    ordered = np.sort(success)[::-1].astype(np.float64)
    best = float(np.mean(1 - np.cumsum(ordered) / np.arange(1, len(ordered) + 1)))
    if error in (0.0, 1.0):
        return float("nan")
    return float(np.clip(1 - (risk_coverage(success, confidence) - best) / (error - best), 0.0, 1.0))


def calibration_error(success: np.ndarray, confidence: np.ndarray, bins: int = 10) -> float:
    """ECE: mean distance of accuracy and mean confidence in bins of equal width, by their share of runs.

    P_cal is 1 - ECE. A confidence on a border belongs to the upper bin, 1 to the last.
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for b in np.unique(place):
        at = place == b
        total += at.mean() * abs(success[at].mean() - confidence[at].mean())
    return float(total)


def discrimination(success: np.ndarray, confidence: np.ndarray) -> float:
    """AUROC: how often a success has more confidence than a failure, ties half; NaN where all runs end alike."""
    good, bad = np.sort(confidence[success > 0.5]), confidence[success <= 0.5]
    if not len(good) or not len(bad):
        return float("nan")
    below, upto = np.searchsorted(good, bad, "left"), np.searchsorted(good, bad, "right")
    return float(np.mean((len(good) - upto) + (upto - below) / 2) / len(good))


def brier(success: np.ndarray, confidence: np.ndarray) -> float:
    """Mean squared distance of confidence and success; 0 is perfect."""
    return float(np.mean((confidence - success) ** 2))


def robustness(perturbed: np.ndarray, base: np.ndarray) -> float:
    """R_x = min(1, accuracy under a perturbation / accuracy without); NaN for a base of 0.

    Args:
      perturbed, base: `[tasks, runs]` of 0, 1 and NaN.
    """
    below = float(np.nanmean(base))
    return min(1.0, float(np.nanmean(perturbed)) / below) if below > 0 else float("nan")
