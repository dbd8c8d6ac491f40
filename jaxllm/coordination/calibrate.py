"""How often tests reject for agents that do not coordinate; what a test says is worth as much as this table.

For scripted agents (`jaxllm.coordination.scripted`) the truth is known: those of `noise` and `persistent` share
nothing, those of `follow` and `halving` share the group's feedback and have no model of each other. A test is called
evidence of coordination only where it rejects for no such agents more often than its level says.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import check
from jaxllm.coordination.game import GameConfig, target_of
from jaxllm.coordination.measures import Measure, MeasureConfig
from jaxllm.coordination.nulls import NULLS, Games, Null, TestConfig, permutation_test
from jaxllm.coordination.records import Game
from jaxllm.coordination.scripted import HIGH, SCRIPTED, Kind
from jaxllm.studies import Interval, mean_interval, proportion_interval


@dataclasses.dataclass(frozen=True)
class CalibrateConfig:
    """What is simulated.

    Attributes:
      kinds: scripted agents.
      nulls: tests.
      measures: of each.
      games: of each kind.
      agents, rounds: their size.
      permutations: of each game.
      level: a p-value at or below it rejects.
      whole: guesses are rounded, as in the game.
      measure: bins, lag, prior.
      seed: of games and surrogates.
    """

    kinds: tuple[Kind, ...] = ("noise", "persistent", "follow", "halving")
    nulls: tuple[Null, ...] = NULLS
    measures: tuple[Measure, ...] = ("practical", "imin", "mmi", "broja", "i3", "g3")
    games: int = 1000
    agents: int = 10
    rounds: int = 20
    permutations: int = 200
    level: float = 0.05
    whole: bool = False
    measure: MeasureConfig = MeasureConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        check(0 < self.level < 1, "level", self.level, "between 0 and 1")
        check(self.games >= 1, "games", self.games, "at least 1")


@dataclasses.dataclass(frozen=True)
class ScriptedConfig:
    """Games of scripted agents by the rules.

    Attributes:
      kinds: an arm of each.
      games: in each arm.
      game: rules.
      seed: of mystery numbers, as in `PlayConfig`, and of guesses.
    """

    kinds: tuple[Kind, ...] = ("noise", "follow", "halving", "redundant", "synergy")
    games: int = 200
    game: GameConfig = GameConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.games >= 1, "games", self.games, "at least 1")


def simulate(kind: Kind, games: int, agents: int, rounds: int, seed: int, whole: bool = False) -> Games:
    """Games of scripted agents with mystery numbers of 51 to 100; all go on for `rounds`, solved or not."""
    key, numbers = jax.random.split(jax.random.key(seed))
    targets = jax.random.randint(numbers, (games,), 51, 101).astype(jnp.float32)
    return Games(SCRIPTED[kind](key, targets, agents, rounds, whole), targets, jnp.full((games,), rounds, jnp.int32))


def rejections(games: Games, config: TestConfig, level: float, seed: int = 0) -> dict[str, Interval]:
    """Share of games for which a test rejects, by measure, with Wilson's interval."""
    p = permutation_test(games, config, seed).p
    return {name: proportion_interval(int((p[:, i] <= level).sum()), len(p)) for i, name in enumerate(config.measures)}


def calibrate(config: CalibrateConfig = CalibrateConfig()) -> list[dict[str, Any]]:  # noqa: B008 - frozen
    """A line for each kind, null and measure: `rate` of rejections with `low` and `high`, and the mean `bias` of values
    less their null's mean, bits, with `bias_low` and `bias_high` (95 %).
    """
    out = []
    for number, kind in enumerate(config.kinds):
        games = simulate(kind, config.games, config.agents, config.rounds, config.seed + number, config.whole)
        for null in config.nulls:
            test = TestConfig(null, config.measures, config.permutations, measure=config.measure)
            tested = permutation_test(games, test, config.seed + 1000)
            for i, name in enumerate(config.measures):
                found = proportion_interval(int((tested.p[:, i] <= config.level).sum()), config.games)
                bias = mean_interval(tested.corrected[:, i].tolist())
                out.append({"agents": kind, "null": null, "measure": name, "rate": found.value, "low": found.low,
                            "high": found.high, "bias": bias.value, "bias_low": bias.low, "bias_high": bias.high,
                            "games": found.n})
    return out


def calibrated(lines: Sequence[dict[str, Any]], level: float = 0.05) -> set[tuple[str, str]]:
    """(null, measure) whose rate is not above `level`, within its interval, for any kind of agents."""
    keys = {(line["null"], line["measure"]) for line in lines}
    return {key for key in keys
            if all(line["low"] <= level for line in lines if (line["null"], line["measure"]) == key)}


def least_mean(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """By (null, measure) the mean less the null, bits, that a group must exceed to be above all scripted agents.

    A bias that no single game shows is significant once many games are pooled.
    """
    out: dict[tuple[str, str], float] = {}
    for line in lines:
        key = (line["null"], line["measure"])
        out[key] = max(out.get(key, 0.0), line["bias_high"])
    return out


def power(agents: int, rounds: int, games: int, config: TestConfig, strength: float = 1.0, level: float = 0.05,
          seed: int = 0) -> dict[str, Interval]:
    """Share of games with planted synergy that a test finds."""
    from jaxllm.coordination.scripted import synergy

    key = jax.random.key(seed)
    targets = jnp.full((games,), 75.0)
    guesses = synergy(key, targets, agents, rounds, strength=strength)
    found = Games(guesses, targets, jnp.full((games,), rounds, jnp.int32))
    return rejections(found, config, level, seed + 1)


def scripted_games(kind: Kind, rules: GameConfig, games: int, seed: int = 0) -> list[Game]:
    """Games of scripted agents by the rules of `play`, with the same mystery numbers; the arm is the agents' kind.

    Raises:
      ConfigError: guesses of other than 0 to 50, which scripted agents name.
    """
    check((rules.low, rules.high) == (0, round(HIGH)), "high", rules.high, f"scripted agents guess 0 to {HIGH:g}")
    targets = np.array([target_of(rules, seed, n) for n in range(games)])
    key = jax.random.fold_in(jax.random.key(seed), list(SCRIPTED).index(kind))
    drawn = np.asarray(SCRIPTED[kind](key, jnp.asarray(targets, jnp.float32), rules.agents, rules.rounds, True))
    out = []
    for number, (guesses, target) in enumerate(zip(drawn.astype(int), targets.tolist(), strict=True)):
        right = np.flatnonzero(guesses.sum(1) == target)
        played = guesses[:right[0] + 1] if len(right) else guesses
        out.append(Game(kind, number, target, played, len(right) > 0, np.zeros_like(played, bool)))
    return out


def as_games(guesses: np.ndarray, targets: np.ndarray, lengths: np.ndarray) -> Games:
    """What `records.stack` gives, for the tests."""
    return Games(jnp.asarray(guesses), jnp.asarray(targets), jnp.asarray(lengths))
