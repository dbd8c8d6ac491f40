"""Agents without a model: independent, following the feedback, redundant, with planted synergy, oscillating.

Each is a pure function (key, targets [G], agents, rounds, whole) -> guesses [G, R, N]; none but `synergy` and
`redundant` has agents that share anything but the group's feedback. `whole` rounds guesses as the game asks for, before
the group hears of them. They are what tests of coordination are calibrated on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

Kind = Literal["noise", "persistent", "follow", "halving", "redundant", "synergy", "oscillators"]
HIGH = 50.0


def _rounded(guesses: jax.Array, whole: bool) -> jax.Array:
    return jnp.clip(jnp.round(guesses), 0.0, HIGH) if whole else guesses


def noise(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False) -> jax.Array:
    """Independent uniform guesses."""
    return _rounded(jax.random.uniform(key, (len(targets), rounds, agents), maxval=HIGH), whole)


def persistent(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False,
               memory: float = 0.9) -> jax.Array:
    """Independent stationary AR(1) around the middle."""
    first, rest = jax.random.split(key)
    shape = (len(targets), agents)
    drive = jax.random.normal(rest, (rounds - 1, *shape)) * jnp.sqrt(1 - memory ** 2)

    def step(x: jax.Array, e: jax.Array) -> tuple[jax.Array, jax.Array]:
        after = memory * x + e
        return after, after
    start = jax.random.normal(first, shape)
    _, later = lax.scan(step, start, drive)
    return _rounded(HIGH / 2 + 8 * jnp.moveaxis(jnp.concatenate([start[None], later]), 0, 1), whole)


def _group(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool,
           step: Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Play with the sign of the group's error; `step(key, guesses, sign [G, 1], round)` gives the next guesses."""
    first, rest = jax.random.split(key)
    start = _rounded(jax.random.uniform(first, (len(targets), agents), minval=15.0, maxval=35.0), whole)

    def play(now: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        k, number = item
        sign = jnp.sign(now.sum(-1) - targets)[:, None]
        after = _rounded(jnp.clip(step(k, now, sign, number), 0.0, HIGH), whole)
        return after, after
    _, later = lax.scan(play, start, (jax.random.split(rest, rounds - 1), jnp.arange(1, rounds)))
    return jnp.moveaxis(jnp.concatenate([start[None], later]), 0, 1)


def follow(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False) -> jax.Array:
    """Each goes down after "too HIGH" and up after "too LOW", by its own step and some chance."""
    own, play = jax.random.split(key)
    size = jax.random.uniform(own, (len(targets), agents), minval=0.5, maxval=3.0)
    return _group(play, targets, agents, rounds, whole,
                  lambda k, now, sign, _: now - sign * size * jax.random.exponential(k, now.shape))


def halving(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False) -> jax.Array:
    """As `follow`, with steps that shrink from round to round, as language models do."""
    own, play = jax.random.split(key)
    size = jax.random.uniform(own, (len(targets), agents), minval=2.0, maxval=12.0)
    return _group(play, targets, agents, rounds, whole,
                  lambda k, now, sign, t: now - sign * size * 0.8 ** t * jax.random.exponential(k, now.shape))


def redundant(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False) -> jax.Array:
    """All agents say the same, an AR(1) of their own."""
    one = persistent(key, targets, 1, rounds, whole)
    return jnp.broadcast_to(one, (len(targets), rounds, agents))


def synergy(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False,
            strength: float = 1.0) -> jax.Array:
    """Agents 2i and 2i + 1: the second's next guess is the exclusive or of both; the first is free. An odd last one
    is free.

    Args:
      key: of the draws.
      targets: [G].
      agents: N.
      rounds: R.
      whole: rounded guesses.
      strength: share of rounds in which the rule holds.
    """
    free, chance, slip = jax.random.split(key, 3)
    bits = jax.random.bernoulli(free, 0.5, (rounds, len(targets), agents))
    held = jax.random.bernoulli(chance, strength, (rounds, len(targets), agents))
    pairs = agents // 2 * 2
    second = (jnp.arange(agents) % 2 == 1) & (jnp.arange(agents) < pairs)
    partner = jnp.where(second, jnp.arange(agents) - 1, jnp.arange(agents))

    def step(now: jax.Array, item: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        new, hold = item
        after = jnp.where(second & hold, now ^ now[:, partner], new)
        return after, after
    _, later = lax.scan(step, bits[0], (bits[1:], held[1:]))
    out = jnp.moveaxis(jnp.concatenate([bits[:1], later]), 0, 1)
    return _rounded(20.0 + 10.0 * out + jax.random.uniform(slip, out.shape), whole)


def oscillators(key: jax.Array, targets: jax.Array, agents: int, rounds: int, whole: bool = False) -> jax.Array:
    """Independent oscillators of period two, each with its own phase, of whole numbers anyway."""
    phase = jax.random.bernoulli(key, 0.5, (len(targets), 1, agents))
    on = (jnp.arange(rounds)[None, :, None] % 2 == 1) ^ phase
    return 20.0 + 10.0 * on


SCRIPTED: dict[Kind, Callable[[jax.Array, jax.Array, int, int, bool], jax.Array]] = {
    "noise": noise, "persistent": persistent, "follow": follow, "halving": halving, "redundant": redundant,
    "synergy": synergy, "oscillators": oscillators}
