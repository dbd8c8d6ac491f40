"""Statistics of a dual-context virtual screen: which candidates move a program in one context and not in the other.

Every treated cell is a prediction for a base cell, and the base cell's own score is its control, so what is analysed
are paired differences. The design is that of the C2S-Scale announcement (Google Research, October 2025): a positive
context in which a signal is there but weak, and a neutral one without it; conditional amplifiers act in the first
only. What comes out are predictions of a model, to be tested at the bench.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy import stats

from jaxllm.config import check
from jaxllm.files import write_jsonl

ENTRIES = 1 << 22  # numbers of resampled statistics held at once


@dataclasses.dataclass(frozen=True)
class ScreenConfig:
    """How a screen is analysed.

    Attributes:
      positive: name of the context in which hits act.
      neutral: name of the other.
      level: of the bootstrap intervals.
      samples: bootstrap samples of cells.
      permutations: of contexts among cells. The least p-value is 1 / (permutations + 1); for one hit among C
        candidates to pass Benjamini-Hochberg at `fdr`, use more than C / fdr.
      alternative: `two-sided`, or `greater` for positive splits only.
      correction: `bh` for Benjamini-Hochberg (candidates share their base cells, which makes their p-values
        positively dependent: it holds then), `by` for Benjamini-Yekutieli under any dependence.
      fdr: false discovery rate below which a split counts.
      small: effect in the neutral context that counts as none, in standard deviations of its control scores.
      seed: of both kinds of draws.
    """

    positive: str = "positive"
    neutral: str = "neutral"
    level: float = 0.95
    samples: int = 1000
    permutations: int = 10_000
    alternative: Literal["two-sided", "greater"] = "two-sided"
    correction: Literal["bh", "by"] = "bh"
    fdr: float = 0.1
    small: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.positive != self.neutral, "screen.neutral", self.neutral, "name another context than the positive")
        check(0 < self.level < 1, "screen.level", self.level, "use one in (0, 1), such as 0.95")
        check(self.samples >= 20, "screen.samples", self.samples, "use at least 20; 1000 for intervals to report")
        check(self.permutations >= 20, "screen.permutations", self.permutations, "use at least 20; 10000 to report")
        check(self.alternative in ("two-sided", "greater"), "screen.alternative", self.alternative,
              "use two-sided or greater")
        check(self.correction in ("bh", "by"), "screen.correction", self.correction, "use bh or by")
        check(0 < self.fdr < 1, "screen.fdr", self.fdr, "use one in (0, 1), such as 0.1")
        check(self.small >= 0, "screen.small", self.small, "must not be negative")


@dataclasses.dataclass(frozen=True)
class ScreenTable:
    """What a screen found, an entry a candidate, in the order given.

    Attributes:
      candidates: [C] names.
      positive: [C, 3] mean paired difference to control in the positive context, low, high; in units of the score.
      neutral: [C, 3] in the neutral one.
      split: [C, 3] positive less neutral.
      p: [C] permutation p-values of the split.
      q: [C] p-values corrected for the number of candidates.
      conditional: [C] bool: the split counts (q at most `fdr`), the program rises in the positive context (interval
        above 0), and in the neutral one the interval holds 0 or the effect is `small`.
      deviations: standard deviation of the control scores, positive and neutral.
      cells: base cells, positive and neutral.
      config: as analysed.
    """

    candidates: tuple[str, ...]
    positive: np.ndarray
    neutral: np.ndarray
    split: np.ndarray
    p: np.ndarray
    q: np.ndarray
    conditional: np.ndarray
    deviations: tuple[float, float]
    cells: tuple[int, int]
    config: ScreenConfig

    @property
    def order(self) -> np.ndarray:
        """[C] candidates by rank: the conditional ones first, then all others, each by falling split.

        Split alone would put what lowers the program in the neutral context among the hits.
        """
        return np.lexsort((-self.split[:, 0], ~self.conditional))

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """One flat record a candidate by rank, ready for JSON; the first `top` of them."""
        out = []
        for rank, i in enumerate(self.order[:top], 1):
            row: dict[str, Any] = {"rank": rank, "candidate": self.candidates[i]}
            for name, values in (("effect_positive", self.positive), ("effect_neutral", self.neutral),
                                 ("split", self.split)):
                row |= {name: float(values[i, 0]), f"{name}_low": float(values[i, 1]),
                        f"{name}_high": float(values[i, 2])}
            out.append(row | {"p": float(self.p[i]), "q": float(self.q[i]), "conditional": bool(self.conditional[i])})
        return out

    def write(self, path: str | Path) -> None:
        """`rows` as JSONL, whole or not at all."""
        write_jsonl(path, self.rows())


def screen(treated: Mapping[str, Any], control: Mapping[str, Any], candidates: Sequence[str],
           config: ScreenConfig = ScreenConfig()) -> ScreenTable:
    """Effects, splits, intervals and p-values of a dual-context screen.

    The null hypothesis of the p-value is that a candidate changes the score by as much in both contexts; the change
    need not be 0, so signs may not be flipped. Under it contexts are permuted among the paired differences. They are
    exchangeable when they are distributed alike in both contexts, and the test is of exact size then. The statistic is
    Welch's (the split over its standard error), which keeps the size for many cells also when variances and numbers
    of cells differ between contexts (Janssen 1997, Stat. Probab. Lett. 36:9; Chung & Romano 2013, Ann. Stat. 41:484);
    the plain difference would not. The observed arrangement counts as one of the permutations, so p is never 0.
    Draws are shared by all candidates. Cells of one donor are not independent: hand in `by_group` means then.

    Scores [N] of control shared by all candidates carry their noise into every difference: each p-value is uniform
    under the null, but those of one screen go together. Predict several control cells for each base cell and hand in
    their mean, or fresh ones for each candidate, [C, N], which makes candidates independent.

    Args:
      treated: scores [C, N] by context; each context may have its own N.
      control: scores of the same base cells by context, [N], or [C, N] for each candidate's own.
      candidates: [C] names.
      config: contexts, draws and thresholds.

    Raises:
      ConfigError: a context is missing or has fewer than three cells, shapes differ, a name stands twice, or a score
        is not finite.
    """
    differences, deviations = [], []
    for context in (config.positive, config.neutral):
        found, deviation = _differences(treated, control, context, len(candidates))
        differences.append(found)
        deviations.append(deviation)
    check(len(set(candidates)) == len(candidates), "candidates", "a name stands twice", "give each candidate once")
    check(len(candidates) > 0, "candidates", "none", "give at least one")
    rng = np.random.default_rng(config.seed)
    positive, neutral, split = _intervals(differences[0], differences[1], config, rng)
    p = _permutation(differences[0], differences[1], config, rng)
    q = stats.false_discovery_control(p, method=config.correction)
    conditional = (q <= config.fdr) & (positive[:, 1] > 0) & (
        (neutral[:, 1] <= 0) & (neutral[:, 2] >= 0) | (np.abs(neutral[:, 0]) <= config.small * deviations[1]))
    return ScreenTable(tuple(candidates), positive, neutral, split, p, q, conditional,
                       (deviations[0], deviations[1]), (differences[0].shape[1], differences[1].shape[1]), config)


def by_group(scores: Any, groups: Sequence[Any] | np.ndarray) -> np.ndarray:
    """Means [..., D] of scores [..., N] over the cells of each group (donor, plate), groups in sorted order."""
    x, names = np.asarray(scores, np.float64), np.asarray(groups)
    check(names.shape == x.shape[-1:], "groups", f"shape {names.shape}", f"give one for each of {x.shape[-1]} cells")
    return np.stack([x[..., names == name].mean(-1) for name in np.unique(names)], axis=-1)


def recall_at(table: ScreenTable, true: Sequence[str], k: int | None = None) -> float:
    """Share of the true hits among the first `k` candidates by rank; `k` is their number by default."""
    known = set(table.candidates)
    for name in true:
        check(name in known, "true", name, "is no candidate of the screen")
    check(len(true) > 0, "true", "none", "name at least one")
    first = {table.candidates[i] for i in table.order[: len(true) if k is None else k]}
    return len(first & set(true)) / len(set(true))


def _differences(treated: Mapping[str, Any], control: Mapping[str, Any], context: str, c: int
                 ) -> tuple[np.ndarray, float]:
    """Paired differences [C, N] of a context and the standard deviation of its control scores."""
    for name, given in (("treated", treated), ("control", control)):
        check(context in given, name, sorted(given), f"holds no context {context!r}")
    x, y = np.asarray(treated[context], np.float64), np.asarray(control[context], np.float64)
    n = y.shape[-1] if y.ndim else 0
    check(y.shape in ((n,), (c, n)) and n > 2, f"control[{context}]", f"shape {y.shape}",
          f"give scores [N] or [{c}, N] of at least three cells")
    check(x.shape == (c, n), f"treated[{context}]", f"shape {x.shape}",
          f"give [{c}, {n}]: each candidate on the base cells of the control, in their order")
    for name, values in (("treated", x), ("control", y)):
        if not np.isfinite(values).all():
            at = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            check(False, f"{name}[{context}][{at}]", float(values[at]), "not a finite number; leave that cell out in "
                  "all candidates")
    return x - y, float(y.std(ddof=1))


def _chunks(candidates: int, draws: int) -> list[slice]:
    size = max(1, ENTRIES // draws)
    return [slice(start, start + size) for start in range(0, candidates, size)]


def _intervals(d1: np.ndarray, d0: np.ndarray, config: ScreenConfig, rng: np.random.Generator) -> list[np.ndarray]:
    """[C, 3] each: means of both contexts and their difference, with percentile intervals."""
    # Cells drawn with replacement are weights: one product gives the means of all candidates.
    w1, w0 = (rng.multinomial(n, np.full(n, 1 / n), config.samples).T / n for n in (d1.shape[1], d0.shape[1]))
    out = [np.empty((len(d1), 3)) for _ in range(3)]
    for rows in _chunks(len(d1), config.samples):
        drawn = [d1[rows] @ w1, d0[rows] @ w0]
        points = [d1[rows].mean(1), d0[rows].mean(1)]
        for found, point, draws in zip(out, [*points, points[0] - points[1]], [*drawn, drawn[0] - drawn[1]],
                                       strict=True):
            bounds = np.quantile(draws, [(1 - config.level) / 2, (1 + config.level) / 2], axis=1)
            found[rows] = np.column_stack([point, *bounds])
    return out


def _permutation(d1: np.ndarray, d0: np.ndarray, config: ScreenConfig, rng: np.random.Generator) -> np.ndarray:
    """[C] p-values of Welch's statistic under permuted contexts."""
    n, m = d1.shape[1], d0.shape[1]
    both = np.concatenate([d1, d0], axis=1)
    # The statistic does not change with a common shift, and without it the squares keep their digits.
    both = both - both.mean(1, keepdims=True)
    spread = np.sqrt((both ** 2).mean(1, keepdims=True))
    both = np.divide(both, spread, out=np.zeros_like(both), where=spread > 1e-12)
    first = np.zeros((config.permutations + 1, n + m))
    first[0, :n] = 1  # as observed
    first[1:] = rng.permuted(np.broadcast_to(first[0], (config.permutations, n + m)), axis=1)
    first = np.ascontiguousarray(first.T)
    p = np.empty(len(both))
    for rows in _chunks(len(both), config.permutations):
        x = both[rows]
        sums, squares = x @ first, (x ** 2) @ first
        mean1, mean0 = sums / n, (x.sum(1, keepdims=True) - sums) / m
        var1 = np.maximum(squares - n * mean1 ** 2, 0) / (n - 1)
        var0 = np.maximum((x ** 2).sum(1, keepdims=True) - squares - m * mean0 ** 2, 0) / (m - 1)
        t = (mean1 - mean0) / np.sqrt(var1 / n + var0 / m + 1e-18)
        if config.alternative == "two-sided":
            t = np.abs(t)
        # Arrangements that give the same statistic differ by rounding; they count as reaching it.
        p[rows] = (t >= t[:, :1] - 1e-9 * (1 + np.abs(t[:, :1]))).sum(1) / (config.permutations + 1)
    return p
