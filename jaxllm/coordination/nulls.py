"""What measures would be without coordination: surrogates of a game, permutation tests, pooled tests.

Four nulls, each a pure function (key, game) -> surrogate:

- `rows`: agents change places within each round (Riedl). Breaks who is who, keeps every round's total. Its own null:
  agents alike.
- `shift`: each agent's series is turned by its own number of rounds (Riedl). Keeps each agent's dynamics, breaks what
  agents share, the group's feedback included, so that it rejects for agents who only follow that. Its own null:
  independent stationary agents.
- `feedback`: each agent's changes are dealt anew among the rounds that had the same feedback. Keeps each agent's
  answer to the feedback, the common feedback itself and every first guess. Made for agents that answer to the
  feedback alone, by the same rule all game long; conservative for them, since a dealt game's totals need not give the
  feedback that it was dealt by.
- `policy`: the same, but the surrogate group plays its own game: feedback follows from its own total.

`calibration` in `jaxllm.coordination.calibrate` measures how often each rejects for agents without any model of
others; only where that is 0.05 at 0.05 is a rejection evidence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy import stats

from jaxllm.config import check
from jaxllm.coordination.measures import Measure, MeasureConfig, measure

Null = Literal["rows", "shift", "feedback", "policy"]
NULLS: tuple[Null, ...] = ("rows", "shift", "feedback", "policy")


class Games(NamedTuple):
    """Games of one size, padded to the same number of rounds.

    Attributes:
      guesses: [G, R, N] float; what stands after a game's end does not count.
      targets: [G] float, the mystery numbers.
      lengths: [G] int32, rounds played.
    """

    guesses: jax.Array
    targets: jax.Array
    lengths: jax.Array


def micro_macro(guesses: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Deviations from equal shares [R, N] and the group's error [R] of one game."""
    return guesses - target / guesses.shape[-1], guesses.sum(-1) - target


def shuffle_rows(key: jax.Array, guesses: jax.Array) -> jax.Array:
    """Agents change places within each round; guesses [R, N]."""
    return jax.random.permutation(key, guesses, axis=1, independent=True)


def shift_agents(key: jax.Array, guesses: jax.Array, length: jax.Array) -> jax.Array:
    """Each agent's played rounds [R, N] turned by its own number of rounds, 0 among them."""
    rounds, agents = guesses.shape
    by = jax.random.randint(key, (agents,), 0, jnp.maximum(length, 1))
    at = (jnp.arange(rounds)[:, None] + by) % jnp.maximum(length, 1)
    return jnp.take_along_axis(guesses, at, 0)


def _dealt(key: jax.Array, guesses: jax.Array, signs: jax.Array, length: jax.Array) -> jax.Array:
    """Changes [R - 1, N] of each agent, dealt anew among rounds of the same sign."""
    changes = guesses[1:] - guesses[:-1]
    steps = len(changes)
    group = jnp.where(jnp.arange(steps) < length - 1, signs[:-1], 9)  # rounds not played keep to themselves
    home = jnp.argsort(group, stable=True)
    # By group, then by chance: the i-th of a group's rounds gets the i-th of the group's changes in a random order.
    chance = jax.random.uniform(key, changes.shape)
    drawn = jnp.argsort(group[:, None] + chance * 0.999, axis=0)
    return jnp.zeros_like(changes).at[home].set(jnp.take_along_axis(changes, drawn, 0))


def deal_changes(key: jax.Array, guesses: jax.Array, target: jax.Array, length: jax.Array) -> jax.Array:
    """The `feedback` null of guesses [R, N]: changes dealt anew among rounds of the same feedback."""
    signs = jnp.sign(guesses.sum(-1) - target)
    dealt = _dealt(key, guesses, signs, length)
    return jnp.concatenate([guesses[:1], guesses[0] + jnp.cumsum(dealt, 0)])


def play_policy(key: jax.Array, guesses: jax.Array, target: jax.Array, length: jax.Array,
                low: float = 0.0, high: float = 50.0) -> jax.Array:
    """The `policy` null of guesses [R, N]: each agent draws its changes, with replacement, from its own after the
    same feedback.

    The group's feedback follows from its own total; after a feedback that the game never gave, an agent draws from
    all its changes. The game goes on for as many rounds as the one observed.
    """
    changes = guesses[1:] - guesses[:-1]
    signs = jnp.sign(guesses.sum(-1) - target)[:-1]
    played = jnp.arange(len(changes)) < length - 1

    def step(now: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        alike = played & (signs == jnp.sign(now.sum() - target))
        from_these = jnp.where(alike.any(), alike, played)
        at = jax.random.categorical(key, jnp.where(from_these, 0.0, -jnp.inf), shape=now.shape)
        after = jnp.clip(now + changes[at, jnp.arange(len(now))], low, high)
        return after, after
    _, later = lax.scan(step, guesses[0], jax.random.split(key, len(changes)))
    return jnp.concatenate([guesses[:1], later])


def surrogate(null: Null, key: jax.Array, guesses: jax.Array, target: jax.Array, length: jax.Array,
              reach: tuple[float, float] = (0.0, 50.0)) -> jax.Array:
    """One surrogate [R, N] of a game."""
    if null == "rows":
        return shuffle_rows(key, guesses)
    if null == "shift":
        return shift_agents(key, guesses, length)
    if null == "feedback":
        return deal_changes(key, guesses, target, length)
    return play_policy(key, guesses, target, length, *reach)


class Tested(NamedTuple):
    """Each [G, M] for M measures.

    Attributes:
      observed: bits.
      null_mean: mean over surrogates.
      null_sd: their standard deviation.
      p: (1 + surrogates that are as large) / (1 + surrogates).
    """

    observed: np.ndarray
    null_mean: np.ndarray
    null_sd: np.ndarray
    p: np.ndarray

    @property
    def corrected(self) -> np.ndarray:
        """Observed less the null's mean, [G, M]."""
        return self.observed - self.null_mean


@dataclasses.dataclass(frozen=True)
class TestConfig:
    """A permutation test.

    Attributes:
      null: what surrogates keep and break.
      measures: by name.
      permutations: surrogates of each game.
      chunk: surrogates at once; memory grows with it and not with `permutations` or games.
      reach: least and greatest guess, for `policy`.
      measure: bins, lag, prior.
    """

    __test__ = False  # no test class for pytest

    null: Null = "feedback"
    measures: tuple[Measure, ...] = ("practical", "imin", "mmi", "broja", "i3", "g3")
    permutations: int = 1000
    chunk: int = 100
    reach: tuple[float, float] = (0.0, 50.0)
    measure: MeasureConfig = MeasureConfig()

    def __post_init__(self) -> None:
        check(self.null in NULLS, "null", self.null, f"one of {', '.join(NULLS)}")
        check(self.permutations >= 1, "permutations", self.permutations, "at least 1")
        check(self.chunk >= 1, "chunk", self.chunk, "at least 1")


@functools.partial(jax.jit, static_argnums=2)
def _run(key: jax.Array, games: Games, config: TestConfig) -> tuple[jax.Array, ...]:
    chunks = -(-config.permutations // config.chunk)

    def one(item: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        key, guesses, target, length = item

        def value(x: jax.Array) -> jax.Array:
            return measure(*micro_macro(x, target), length, config.measures, config.measure)
        observed = value(guesses)

        def many(number: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            keys = jax.random.split(jax.random.fold_in(key, number), config.chunk)
            drawn = jax.vmap(lambda k: value(surrogate(config.null, k, guesses, target, length, config.reach)))(keys)
            counted = (number * config.chunk + jnp.arange(config.chunk) < config.permutations)[:, None]
            # Sums of what is left beside the observed value: of means and squares of like size little would be left.
            beside = jnp.where(counted, drawn - observed, 0.0)
            # A tie that rounding breaks is a tie.
            as_large = (counted & (drawn >= observed - 1e-6)).sum(0)
            return beside.sum(0), (beside ** 2).sum(0), as_large
        first, second, as_large = (x.sum(0) for x in lax.map(many, jnp.arange(chunks)))
        mean = first / config.permutations
        sd = jnp.sqrt(jnp.maximum(second / config.permutations - mean ** 2, 0.0))
        return observed, observed + mean, sd, (1 + as_large) / (1 + config.permutations)
    return lax.map(one, (jax.random.split(key, len(games.targets)), *games))


def permutation_test(games: Games, config: TestConfig = TestConfig(), seed: int = 0) -> Tested:  # noqa: B008 - frozen
    """Measures of games beside surrogates of each, in memory that does not grow with either.

    Args:
      games: all of one size; `jaxllm.coordination.records.read_games` checks them.
      config: null, measures, surrogates.
      seed: of the surrogates.
    """
    return Tested(*(np.asarray(x) for x in _run(jax.random.key(seed), games, config)))


def fisher(p: Sequence[float]) -> float:
    """Fisher's method: one p-value of independent ones."""
    found: Any = stats.combine_pvalues(np.asarray(p, np.float64), method="fisher")
    return float(found.pvalue)


def wilcoxon(corrected: Sequence[float]) -> float:
    """One-sided signed-rank test that values lie above 0; 1 where all are 0."""
    x = np.asarray(corrected, np.float64)
    if not np.any(x):
        return 1.0
    found: Any = stats.wilcoxon(x, alternative="greater")
    return float(found.pvalue)
