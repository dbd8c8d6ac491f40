"""Intervals over tasks by the bootstrap, and the table of an evaluation's metrics with them.

Tasks are what is drawn, and runs of one task belong together: whole tasks are drawn anew, 2,000 times, with all runs.
Percentiles are widened as Student's t is against the normal (Hesterberg, arXiv 1411.5279, "expanded percentile"), and
a mean of values in [0, 1] gets two tasks more, one at each end, so that ten right answers of ten are no proof of
perfection.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.evaluation import reliability as r
from jaxllm.studies import Interval

RESAMPLES = 2000
BLOCK = 1 << 20  # draws at a time


@dataclasses.dataclass(frozen=True)
class Runs:
    """A cell's results; rows are tasks, columns runs, NaN where a run says nothing.

    Attributes:
      tasks: ids.
      success: 1 for a score of 1, else 0.
      score: as graded.
      confidence: that the agent stated, in [0, 1].
      cost: in the price table's unit.
      seconds: of the agent.
      actions: names of the actions of each run, by task; None where it has no trace.
    """

    tasks: Sequence[str]
    success: np.ndarray
    score: np.ndarray
    confidence: np.ndarray
    cost: np.ndarray
    seconds: np.ndarray
    actions: Sequence[Sequence[Sequence[str] | None]]


def runs_of(records: Iterable[Mapping[str, Any]], actions: Mapping[str, Sequence[str]] | None = None) -> Runs:
    """Results of one cell as arrays.

    Args:
      records: of results, all of one cell.
      actions: names of a run's actions, by its `run`.
    """
    records = list(records)
    tasks = sorted({record["task"] for record in records})
    count = 1 + max((record["repeat"] for record in records), default=0)
    place = {task: number for number, task in enumerate(tasks)}
    out = {name: np.full((len(tasks), count), np.nan)
           for name in ("success", "score", "confidence", "cost", "seconds")}
    traced: list[list[Sequence[str] | None]] = [[None] * count for _ in tasks]
    for record in records:
        if record["score"] is None:
            continue
        at = place[record["task"]], record["repeat"]
        out["score"][at], out["success"][at] = record["score"], record["score"] >= 1
        out["seconds"][at] = record["agent_s"]
        if record.get("cost") is not None:
            out["cost"][at] = record["cost"]
        stated = (record.get("metrics") or {}).get("confidence")
        if isinstance(stated, (int, float)) and 0 <= stated <= 1:
            out["confidence"][at] = stated
        if actions is not None and record["run"] in actions:
            traced[at[0]][at[1]] = actions[record["run"]]
    return Runs(tasks, actions=traced, **out)


def mean_of_tasks(values: np.ndarray, *, bounded: bool = False, level: float = 0.95, seed: int = 0,
                  resamples: int = RESAMPLES) -> Interval | None:
    """Mean of a value of each task, with its interval; None without tasks, NaN bounds for one that is not bounded.

    Args:
      values: `[tasks]`; NaN for a task that has none.
      bounded: they lie in [0, 1].
      level: of the interval.
      seed: of the draws.
      resamples: how many.
    """
    found = values[~np.isnan(values)]
    if not len(found):
        return None
    value = float(found.mean())
    drawn = np.concatenate([found, [0.0, 1.0]]) if bounded else found
    n = len(drawn)
    if n == 1:
        return Interval(value, math.nan, math.nan, 1)
    rng, at_once = np.random.default_rng(seed), max(1, BLOCK // n)
    means = np.concatenate([drawn[rng.integers(0, n, (min(at_once, resamples - done), n))].mean(axis=1)
                            for done in range(0, resamples, at_once)])
    low, high = np.quantile(means, _tails(n, level))
    return Interval(value, min(float(low), value), max(float(high), value), len(found))


def of_tasks(statistic: Callable[[np.ndarray], float], tasks: int, *, level: float = 0.95, seed: int = 0,
             resamples: int = RESAMPLES) -> Interval | None:
    """A statistic of whole tasks, with its interval; None where it is NaN.

    Args:
      statistic: of tasks by number, some of them more than once; NaN where they say nothing, which is left out.
      tasks: how many there are.
      level: of the interval.
      seed: of the draws.
      resamples: how many.
    """
    value = statistic(np.arange(tasks))
    if math.isnan(value):
        return None
    if tasks == 1:
        return Interval(value, math.nan, math.nan, 1)
    rng = np.random.default_rng(seed)
    drawn = np.array([statistic(rng.integers(0, tasks, tasks)) for _ in range(resamples)])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, _tails(tasks, level)) if len(drawn) else (math.nan, math.nan)
    return Interval(value, float(low), float(high), tasks)


def _tails(n: int, level: float) -> tuple[float, float]:
    from scipy import stats

    tail = float(stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf((1 + level) / 2, n - 1)))
    return tail, 1 - tail


def reliability_table(runs: Runs, *, debiased: bool = False, level: float = 0.95, seed: int = 0,
                      resamples: int = RESAMPLES) -> dict[str, Interval]:
    """All metrics that the runs allow, by name, with intervals; one that cannot be computed is absent.

    `accuracy`, `score`, `cost` and `seconds` (means a run), `C_out`, `C_traj`, `C_seq`, `C_conf`, `C_cost`, `C_time`,
    `P_rc`, `P_cal`, `AUROC`, `Brier`.
    """
    options: dict[str, Any] = {"level": level, "seed": seed, "resamples": resamples}
    good = [[a for a, s in zip(row, success, strict=True) if a is not None and s == 1]
            for row, success in zip(runs.actions, runs.success, strict=True)]
    found = {
        "accuracy": mean_of_tasks(_mean(runs.success), bounded=True, **options),
        "score": mean_of_tasks(_mean(runs.score), bounded=True, **options),
        "cost": mean_of_tasks(_mean(runs.cost), **options),
        "seconds": mean_of_tasks(_mean(runs.seconds), **options),
        "C_out": mean_of_tasks(r.outcome_consistency(runs.success, debiased), bounded=not debiased, **options),
        "C_traj": mean_of_tasks(np.array([r.trajectory_consistency(g) for g in good]), bounded=True, **options),
        "C_seq": mean_of_tasks(np.array([r.sequence_consistency(g) for g in good]), bounded=True, **options),
        "C_conf": mean_of_tasks(r.steadiness(runs.confidence), bounded=True, **options),
        "C_cost": mean_of_tasks(r.steadiness(runs.cost), bounded=True, **options),
        "C_time": mean_of_tasks(r.steadiness(runs.seconds), bounded=True, **options)}
    stated = ~np.isnan(runs.confidence) & ~np.isnan(runs.success)
    if stated.any():
        for name, function in (("P_rc", r.selective_prediction), ("AUROC", r.discrimination), ("Brier", r.brier),
                               ("P_cal", lambda s, c: 1 - r.calibration_error(s, c))):
            def pooled(tasks: np.ndarray, function: Callable[..., float] = function) -> float:
                at = stated[tasks]
                return function(runs.success[tasks][at], runs.confidence[tasks][at]) if at.any() else math.nan

            found[name] = of_tasks(pooled, len(runs.tasks), **options)
    return {name: interval for name, interval in found.items() if interval is not None}


def robustness_interval(perturbed: Runs, base: Runs, *, level: float = 0.95, seed: int = 0,
                        resamples: int = RESAMPLES) -> Interval | None:
    """R_x over the tasks that both have, drawn together."""
    both = sorted(set(perturbed.tasks) & set(base.tasks))
    a, b = (runs.success[[list(runs.tasks).index(t) for t in both]] for runs in (perturbed, base))
    return of_tasks(lambda tasks: r.robustness(a[tasks], b[tasks]), len(both), level=level, seed=seed,
                    resamples=resamples) if both else None


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each task's runs; NaN for none."""
    runs = np.sum(~np.isnan(values), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(runs > 0, np.nansum(values, axis=1) / runs, np.nan)
