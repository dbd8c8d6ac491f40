"""One pass over a batch in which every row follows a route of its own: layer by layer, each shared by the rows it has.

A layer is run on the rows that need it, gathered in chunks (`models.rows`), then once more on those that repeat it.
Weights are never gathered by row, so that a batch reads each layer once. Teacher-forced search, router features and
routed accuracy all come from here; token after token is `generation`'s.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxllm.models import ModelConfig, api
from jaxllm.models.layers import attend
from jaxllm.models.masks import choose_mask, mixed_windows, near_mask
from jaxllm.models.paths import DECIDE
from jaxllm.models.rows import run_rows, settle_counts
from jaxllm.routing.router import decide, router_logits, windowed_mean


class Swept(NamedTuple):
    """What a sweep gives.

    Attributes:
      x: residual stream `[B, T, D]` after the last layer.
      counts: int8 `[B, L]`, executions of each layer.
      features: float32 `[L, B, W, D]` of `windowed_mean`, what each layer's router reads; None unless asked for.
    """

    x: jax.Array
    counts: jax.Array
    features: jax.Array | None


@functools.partial(jax.jit, static_argnames=("model", "chunk", "windows", "features"))
def sweep(params: Any, tokens: jax.Array, lengths: jax.Array, counts: jax.Array, *, model: ModelConfig, chunk: int,
          routers: Any = None, prompt_lengths: jax.Array | None = None, windows: int = 8, features: bool = False,
          lean: jax.Array | float = -0.5, same: jax.Array | None = None) -> Swept:
    """Every row along its own route.

    Args:
      params: stacked.
      tokens: int32 `[B, T]`.
      lengths: int32 `[B]`; what lies behind is padding, which nothing sees.
      counts: int `[B, L]`, executions of each layer, `DECIDE` where the layer's router chooses.
      model: description.
      chunk: rows computed at a time.
      routers: of `init_routers`; needed where anything is to be decided.
      prompt_lengths: int32 `[B]`, tokens that routers read; all by default.
      windows: W of the routers.
      features: give back what routers read.
      lean: as in `decide`.
      same: int32 `[B, L]` of `same_so_far`, for given counts: rows that are the same up to a layer are computed once.
    """
    b, t = tokens.shape
    prompt_lengths = lengths if prompt_lengths is None else prompt_lengths
    positions = jnp.arange(t, dtype=jnp.int32)[None]
    valid = positions < lengths[:, None]
    order = jnp.tril(jnp.ones((1, 1, t, t), bool)) if model.causal else jnp.ones((1, 1, 1, t), bool)
    near, tables, mixed = near_mask(model, order, positions, positions), api.tables(model, positions), \
        mixed_windows(model)

    def execute(layer: Any, windowed: jax.Array | None, x: jax.Array, needed: jax.Array) -> jax.Array:
        def some(x: jax.Array, index: jax.Array) -> jax.Array:
            seen = valid[index]
            mask = choose_mask(order, near, windowed)
            mask = seen[:, None, None] if mask is None else mask & seen[:, None, None]
            q, k, v = api.project(layer, model, x, tables)
            return api.finish_routed(layer, model, x, attend(q, k, v, mask, cap=model.attention_cap), seen)[0]

        return run_rows(some, needed, x, chunk)

    def one(carry: tuple[jax.Array, jax.Array], each: Any) -> tuple[tuple[jax.Array, jax.Array], Any]:
        (x, before), (index, layer, given, router, windowed, first) = carry, each
        pooled = taken = None
        if routers is not None or features:
            pooled, held = windowed_mean(x, prompt_lengths, windows)
            if routers is not None:
                taken = decide(router_logits(router, pooled, held), lean)
        taken = given if taken is None else jnp.where(given == DECIDE, taken, given)
        taken = settle_counts(taken, before, index == model.num_layers - 1)
        for executed in (0, 1):
            needed = taken > executed
            x = execute(layer, windowed, x, needed if first is None else needed & (first == jnp.arange(b)))
        x = x if first is None else x[first]
        return (x, before + taken), (taken, pooled if features else None)

    begin = api.embed(params, model, tokens), jnp.zeros(b, jnp.int32)
    (x, _), (taken, pooled) = lax.scan(one, begin, (jnp.arange(model.num_layers), params["layers"],
                                                    counts.T.astype(jnp.int8), routers, mixed,
                                                    None if same is None else same.T))
    return Swept(x, taken.T, pooled)


def pad_rows(rows: Sequence[Sequence[int]], batch: int, bucket: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens int32 `[batch, T]` and lengths `[batch]`, T a multiple of `bucket`; rows that are wanting have a token."""
    lengths = np.ones(batch, np.int32)
    lengths[:len(rows)] = [len(row) for row in rows]
    tokens = np.zeros((batch, -(-int(lengths.max()) // bucket) * bucket), np.int32)
    for i, row in enumerate(rows):
        tokens[i, :len(row)] = row
    return tokens, lengths


def same_so_far(problems: Sequence[int], counts: np.ndarray) -> np.ndarray:
    """For each row and layer the first row that has gone the same way until then: int32 `[B, L]`.

    Args:
      problems: `[B]`, equal where tokens are.
      counts: `[B, L]`.
    """
    out = np.empty(counts.shape, np.int32)
    known = np.unique(np.asarray(problems), return_inverse=True)[1]
    for layer in range(counts.shape[1]):
        _, first, known = np.unique(known * 3 + counts[:, layer], return_index=True, return_inverse=True)
        out[:, layer] = first[known]
    return out


@functools.partial(jax.jit, static_argnames=("model", "span"))
def answer_chances(params: Any, x: jax.Array, tokens: jax.Array, begins: jax.Array, lengths: jax.Array, *,
                   model: ModelConfig, span: int) -> tuple[jax.Array, jax.Array]:
    """Whether each answer is what greedy decoding would say, and its log-probability, from one teacher-forced pass.

    Args:
      params: of the model, for norm and head.
      x: residual stream `[B, T, D]` of a causal model.
      tokens: int32 `[B, T]`, prompt and answer.
      begins, lengths: int32 `[B]`; a row's answer is `tokens[begins:lengths]`.
      model: description.
      span: tokens of the longest answer.

    Returns:
      bool `[B]` and float32 `[B]`, in nats.
    """
    place = begins[:, None] + jnp.arange(span)
    inside = place < lengths[:, None]
    place = jnp.minimum(place, tokens.shape[1] - 1)
    rows = jnp.take_along_axis(x, jnp.maximum(place - 1, 0)[:, :, None], axis=1)
    logits, wanted = api.logits(params, model, rows), jnp.take_along_axis(tokens, place, axis=1)
    right = (jnp.argmax(logits, axis=-1) == wanted) | ~inside
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted[:, :, None], axis=-1)[:, :, 0]
    return jnp.all(right, axis=1), jnp.sum(jnp.where(inside, logp, 0.0), axis=1)
