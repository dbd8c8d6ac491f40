"""Drawing the next token: temperature, top-k, top-p, min-p; one uniform number a row."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxllm.config import check

BLOCK = 256  # of the two-level search through the distribution


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a request's tokens are drawn.

    Attributes:
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: keep this many of the likeliest tokens; 0 keeps all.
      top_p: keep the fewest of the likeliest tokens whose probabilities reach this sum.
      min_p: keep tokens that are at least this share as likely as the likeliest.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        check(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or above")
        check(self.top_k >= 0, "top_k", self.top_k, "must be 0 (all tokens) or above")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")
        check(0 <= self.min_p < 1, "min_p", self.min_p, "must lie in [0, 1)")


@struct.dataclass
class Rows:
    """`Sampling` of S rows as arrays `[S]`: temperature, top_p, min_p float32, top_k int32."""

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array


def sample(logits: jax.Array, keys: jax.Array, rows: Rows,
           barred: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """A token for each row and its log-probability.

    The log-probability is that of the tempered distribution before top-k, top-p and min-p cut it and tokens are barred,
    which is what a trainer can compute; greedy rows get that of temperature 1.

    Args:
      logits: float32 `[S, V]`.
      keys: `[S]` typed keys, one a row, so that a row's draw does not depend on its neighbours.
      rows: settings, `[S]` each.
      barred: bool `[S, V]`, tokens that may not be drawn; one of each row must be left.

    Returns:
      int32 `[S]`, float32 `[S]`.
    """
    greedy = rows.temperature == 0
    scaled = logits.astype(jnp.float32) / jnp.where(greedy, 1.0, rows.temperature)[:, None]
    total = jax.nn.logsumexp(scaled, axis=-1)
    cut = (rows.top_k > 0) | (rows.top_p < 1) | (rows.min_p > 0)
    # Sorting the vocabulary costs more than a small model's step; it happens when some row asks for it.
    allowed = scaled if barred is None else jnp.where(barred, -jnp.inf, scaled)
    kept = lax.cond(jnp.any(cut & ~greedy), _cut, lambda allowed, rows: allowed, allowed, rows)
    drawn = _draw(kept, keys)
    tokens = jnp.where(greedy, _likeliest(allowed), drawn).astype(jnp.int32)
    return tokens, jnp.take_along_axis(scaled, tokens[:, None], axis=-1)[:, 0] - total


def _cut(scaled: jax.Array, rows: Rows) -> jax.Array:
    """Logits with -inf for the tokens that top-k, top-p and min-p leave out; the likeliest always stays."""
    v = scaled.shape[-1]
    ordered = -jnp.sort(-scaled, axis=-1)
    k = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, v), v)
    least = jnp.take_along_axis(ordered, k[:, None] - 1, axis=-1)
    # Of what top-k keeps: a token stays while those before it have not reached top_p.
    probability = jax.nn.softmax(jnp.where(ordered >= least, ordered, -jnp.inf), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    stays = (before < rows.top_p[:, None]) | (rows.top_p[:, None] >= 1)
    last = jnp.take_along_axis(ordered, jnp.maximum(jnp.sum(stays, axis=-1), 1)[:, None] - 1, axis=-1)
    least = jnp.maximum(least, last)
    least = jnp.maximum(least, ordered[:, :1] + jnp.log(jnp.maximum(rows.min_p, 1e-38))[:, None])
    return jnp.where(scaled >= least, scaled, -jnp.inf)


def _likeliest(scaled: jax.Array) -> jax.Array:
    """`argmax`, first among blocks of tokens, then within one: a CPU takes a long row one element at a time."""
    blocks = jnp.pad(scaled, ((0, 0), (0, -scaled.shape[1] % BLOCK)), constant_values=-jnp.inf)
    blocks = blocks.reshape(scaled.shape[0], -1, BLOCK)
    block = jnp.argmax(jnp.max(blocks, axis=-1), axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    return block * BLOCK + jnp.argmax(inside, axis=-1)


def _draw(logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Inverse transform sampling, first among blocks of tokens, then within one: no noise of `[S, V]`."""
    s, v = logits.shape
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -v % BLOCK))).reshape(s, -1, BLOCK)
    sums = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    target = jax.vmap(lambda key: jax.random.uniform(key))(keys) * sums[:, -1]
    block = jnp.minimum(jnp.sum(sums <= target[:, None], axis=-1), blocks.shape[1] - 1)
    before = jnp.where(block > 0, jnp.take_along_axis(sums, jnp.maximum(block - 1, 0)[:, None], axis=-1)[:, 0], 0.0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
    within = jnp.sum(jnp.cumsum(inside, axis=-1) <= (target - before)[:, None], axis=-1)
    # Rounding may point past the end, or at a token of no weight: the last one that has some.
    possible = jnp.where(inside > 0, jnp.arange(BLOCK), -1)
    within = jnp.max(jnp.where(possible <= within[:, None], possible, -1), axis=-1)
    return block * BLOCK + jnp.where(within < 0, jnp.argmax(inside, axis=-1), within)
