"""Measures of a group's dynamics after Riedl (arXiv 2510.05174): practical criterion, emergence capacity, coalitions.

A game is `micro` [R, N], each agent's deviation from an equal share, and `macro` [R], the group's error, of which the
first `length` rounds were played. Every measure is a pure function of one game and gives a number in bits; `jax.vmap`
batches it. Raw values are as large without any coordination (Jeffreys' prior alone makes "synergy" of twenty rounds):
report them against a null (`jaxllm.coordination.nulls`).
"""

from __future__ import annotations

import dataclasses
from itertools import combinations
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import check
from jaxllm.coordination.decomposition import KINDS, Kind, decompose
from jaxllm.coordination.information import JEFFREYS, discretise, mutual_information, probabilities

Measure = Literal["practical", "imin", "mmi", "broja", "i3", "g3", "stability", "redundancy"]


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """How series become numbers.

    Attributes:
      bins: K, quantile bins of each series.
      lag: rounds from present to future.
      alpha: pseudo-count of each cell (Jeffreys 1/2).
      correction: `miller_madow` corrects entropies of plain frequencies instead; only for the measures without a
        decomposition.
      detrend: take each series' linear trend out before coalitions are measured.
      group: how values of pairs or triplets become the group's; the median (Riedl) does not see what few pairs do.
    """

    bins: int = 2
    lag: int = 1
    alpha: float = JEFFREYS
    correction: Literal["prior", "miller_madow"] = "prior"
    detrend: bool = True
    group: Literal["median", "mean"] = "median"

    def __post_init__(self) -> None:
        check(self.bins >= 2, "bins", self.bins, "at least 2")
        check(self.lag >= 1, "lag", self.lag, "at least 1")
        check(self.alpha >= 0, "alpha", self.alpha, "not negative")


def _present(x: jax.Array, lag: int) -> tuple[jax.Array, jax.Array]:
    """x [R, ...] by round: present and future."""
    return x[:-lag], x[lag:]


def _weights(rounds: int, length: jax.Array | int, config: MeasureConfig) -> jax.Array:
    """[R - lag]: 1 where present and future were played."""
    return (jnp.arange(rounds - config.lag) + config.lag < length).astype(jnp.float32)


def _information(
    counts: jax.Array, first: tuple[int, ...], second: tuple[int, ...], config: MeasureConfig
) -> jax.Array:
    axes = len(first) + len(second)
    if config.correction == "miller_madow":
        total = counts.sum(tuple(range(-axes, 0)))
        return mutual_information(probabilities(counts, axes, 0.0), first, second, total)
    return mutual_information(probabilities(counts, axes, config.alpha), first, second)


def pair_counts(bins: jax.Array, length: jax.Array | int, config: MeasureConfig) -> jax.Array:
    """Counts of what pairs of agents do and what they do `lag` rounds later.

    Args:
      bins: [R, N] in 0..K-1.
      length: rounds played.
      config: lag and bins.

    Returns:
      [N (N - 1) / 2, K, K, K * K]: present of one, of the other, joint future.
    """
    k, agents = config.bins, bins.shape[1]
    now, later = _present(jax.nn.one_hot(bins, k), config.lag)
    moves = (now[..., :, None] * later[..., None, :]).reshape(len(now), agents * k * k)
    weighted = moves * _weights(len(bins), length, config)[:, None]
    # One product of matrices counts all pairs at once, each twice.
    counts = (weighted.T @ moves).reshape(agents, k, k, agents, k, k)
    one, other = np.triu_indices(agents, 1)
    chosen = counts.transpose(0, 3, 1, 4, 2, 5).reshape(agents * agents, k, k, k * k)
    return chosen[one * agents + other]


def emergence_capacity(micro: jax.Array, length: jax.Array | int, config: MeasureConfig = MeasureConfig(),  # noqa: B008
                       kind: Kind = "broja") -> jax.Array:
    """The group's synergy: of pairs of agents about the pair's joint future."""
    return pair_parts(micro, length, config, kind)[0]


def pair_parts(micro: jax.Array, length: jax.Array | int, config: MeasureConfig = MeasureConfig(),  # noqa: B008
               kind: Kind = "broja") -> tuple[jax.Array, jax.Array]:
    """The group's synergy and redundancy: of pairs of agents about the pair's joint future."""
    counts = pair_counts(discretise(micro, config.bins, jnp.asarray(length)), length, config)
    parts = decompose(probabilities(counts, 3, config.alpha), kind)
    return _group(parts.synergistic, config), _group(parts.redundant, config)


def _group(values: jax.Array, config: MeasureConfig) -> jax.Array:
    return jnp.median(values) if config.group == "median" else values.mean()


def practical_criterion(micro: jax.Array, macro: jax.Array, length: jax.Array | int,
                        config: MeasureConfig = MeasureConfig()) -> jax.Array:  # noqa: B008 - frozen
    """I(V_t; V_t+l) less the sum over agents of I(X_k,t; V_t+l) (Rosas et al. 2020).

    Above 0 it is evidence of emergence; redundancy is counted once an agent, so that redundant groups are below 0.
    """
    x = discretise(micro, config.bins, jnp.asarray(length))
    v = discretise(macro[:, None], config.bins, jnp.asarray(length))[:, 0]
    x_now, _ = _present(jax.nn.one_hot(x, config.bins), config.lag)
    v_now, v_later = _present(jax.nn.one_hot(v, config.bins), config.lag)
    v_later = v_later * _weights(len(v), length, config)[:, None]
    whole = _information(v_now.T @ v_later, (-2,), (-1,), config)
    single = _information(jnp.einsum("tna,tc->nac", x_now, v_later), (-2,), (-1,), config)
    return whole - single.sum()


def coalitions(micro: jax.Array, macro: jax.Array, length: jax.Array | int,
               config: MeasureConfig = MeasureConfig()) -> dict[str, jax.Array]:  # noqa: B008 - frozen
    """What three agents together know of the group's next error, over triplets.

    Returns:
      `i3`: I(X_i, X_j, X_k; V_t+l); `g3`: i3 less the most that a pair of the three knows; `stability`: i3 over the
        entropy of V.
    """
    if config.detrend:
        micro, macro = _detrend(micro, length), _detrend(macro[:, None], length)[:, 0]
    k = config.bins
    x = discretise(micro, k, jnp.asarray(length))
    v = discretise(macro[:, None], k, jnp.asarray(length))[:, 0]
    now, _ = _present(jax.nn.one_hot(x, k), config.lag)
    _, later = _present(jax.nn.one_hot(v, k), config.lag)
    later = later * _weights(len(v), length, config)[:, None]
    triplets = np.array(list(combinations(range(x.shape[1]), 3)))
    a, b, c = (now[:, triplets[:, i]] for i in range(3))
    counts = jnp.einsum("tpa,tpb,tpc,tv->pabcv", a, b, c, later)
    i3 = _information(counts, (-4, -3, -2), (-1,), config)
    # A pair's cells are fewer than a triplet's, so that each table has its own prior.
    pairs = jnp.stack([_information(counts.sum(axis), (-3, -2), (-1,), config) for axis in (-2, -3, -4)])
    h = later.sum(0)
    p = probabilities(h, 1, 0.0 if config.correction == "miller_madow" else config.alpha)
    entropy_of_v = -jax.scipy.special.xlogy(p, p).sum() / jnp.log(2.0)
    whole = _group(i3, config)
    return {"i3": whole, "g3": _group(i3 - pairs.max(0), config), "stability": whole / jnp.maximum(entropy_of_v, 1e-6)}


def _detrend(x: jax.Array, length: jax.Array | int) -> jax.Array:
    """x [R, N] less each series' line through the rounds that were played."""
    t = jnp.arange(len(x), dtype=x.dtype)
    w = (t < length).astype(x.dtype)
    n = w.sum()
    centre = t - (w * t).sum() / n
    mean = (w[:, None] * x).sum(0) / n
    slope = (w[:, None] * centre[:, None] * x).sum(0) / jnp.maximum((w * centre ** 2).sum(), 1e-6)
    return x - mean - centre[:, None] * slope


def measure(micro: jax.Array, macro: jax.Array, length: jax.Array | int, names: tuple[Measure, ...],
            config: MeasureConfig = MeasureConfig()) -> jax.Array:  # noqa: B008 - frozen
    """The measures of one game by name, [len(names)]; `redundancy` is that of `broja`."""
    found: dict[str, jax.Array] = {}
    for name in names:
        if name in found:
            continue
        if name == "practical":
            found[name] = practical_criterion(micro, macro, length, config)
        elif name in ("i3", "g3", "stability"):
            found |= coalitions(micro, macro, length, config)
        else:
            kind: Kind = name if name in KINDS else "broja"  # type: ignore[assignment]
            synergy, redundancy = pair_parts(micro, length, config, kind)
            found[kind] = synergy
            if kind == "broja":
                found["redundancy"] = redundancy
    return jnp.stack([found[name] for name in names])
