"""Two passes over one model: whole prompts, and one token of every slot against the caches.

A slot's keys need not lie in the order of its positions, since each carries its rotation: all slots write the same
column of their caches in a step, one after the other around a ring, so that a step's write is one slice. A refilled
slot's prompt is laid into the columns before the next one written. Dims: S slots, N columns, R prompts, P their padded
length.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxllm.models import LayerCache, ModelConfig, api
from jaxllm.models.layers import attend
from jaxllm.models.masks import layer_masks


def read_prompts(params: Any, model: ModelConfig, tokens: jax.Array,
                 lengths: jax.Array) -> tuple[tuple[LayerCache, ...], jax.Array | None]:
    """Keys and values `[R, G, P, K]` of every layer for prompts `[R, P]`, and the experts taken, `[L, R, P, k]`.

    Rows end at `lengths` `[R]`; what lies behind is of no meaning. Parameters are unstacked.
    """
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    mask = valid[:, None, None, :]
    if model.causal:
        mask = mask & jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    x, tables = api.embed(params, model, tokens), api.tables(model, positions)
    caches, routes = [], []
    for layer, seen in zip(params["layers"], layer_masks(model, mask, positions, positions), strict=True):
        q, k, v = api.project(layer, model, x, tables)
        caches.append(LayerCache(k, v))
        x, ids = api.finish_routed(layer, model, x, attend(q, k, v, seen, cap=model.attention_cap), valid)
        routes.append(ids)
    return tuple(caches), None if routes[0] is None else jnp.stack(routes)


def next_logits(params: Any, model: ModelConfig, tokens: jax.Array, positions: jax.Array,
                caches: tuple[LayerCache, ...], held: jax.Array, column: jax.Array,
                running: jax.Array) -> tuple[jax.Array, tuple[LayerCache, ...], jax.Array | None]:
    """Logits float32 `[S, V]` after one token of each slot, caches with its key in `column`, experts `[L, S, k]`.

    Args:
      params: unstacked.
      model: description.
      tokens, positions: int32 `[S]`.
      caches: `[S, G, N, K]` of every layer.
      held: bool `[S, N]`, columns that hold a key of the slot, this token's included.
      column: int32 scalar.
      running: bool `[S]`; the others' results mean nothing.
    """
    x, tables = api.embed(params, model, tokens[:, None]), api.tables(model, positions[:, None])
    kept, routes = [], []
    # A slot's tokens lie in the columns up to this one, in order and without gaps.
    key_positions = positions[:, None] - (column - jnp.arange(held.shape[1])) % held.shape[1]
    masks = layer_masks(model, held[:, None, None, :], positions[:, None], key_positions)
    for layer, old, seen in zip(params["layers"], caches, masks, strict=True):
        q, k, v = api.project(layer, model, x, tables)
        new = LayerCache(*(lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), column, 2)
                           for buffer, rows in ((old.k, k), (old.v, v))))
        kept.append(new)
        attended = attend(q, new.k, new.v, seen, cap=model.attention_cap)
        x, ids = api.finish_routed(layer, model, x, attended, running[:, None])
        routes.append(ids)
    return api.logits(params, model, x)[:, 0], tuple(kept), None if routes[0] is None else jnp.stack(routes)[:, :, 0]
