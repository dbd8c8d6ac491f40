"""Two passes over one model: whole prompts, and one token of every slot against the caches.

A slot's keys need not lie in the order of its positions, since each carries its rotation: all slots write the same
column of their caches in a step, one after the other around a ring, so that a step's write is one slice. A refilled
slot's prompt is laid into the columns before the next one written. Dims: S slots, N columns, R prompts, P their padded
length.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from jaxllm.models import LayerCache, ModelConfig, api
from jaxllm.models.layers import attend
from jaxllm.models.masks import layer_masks
from jaxllm.models.paths import DECIDE
from jaxllm.models.rows import run_if, run_rows, settle_counts


class Decider(Protocol):
    """A tree of arrays that says how often a layer runs on each prompt."""

    def __call__(self, layer: int, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Counts int8 `[R]` of 0, 1, 2 from the states `[R, P, D]` that enter the layer, prompts of `lengths` `[R]`."""
        ...


def read_prompts(params: Any, model: ModelConfig, tokens: jax.Array,
                 lengths: jax.Array) -> tuple[tuple[LayerCache, ...], jax.Array | None]:
    """Keys and values `[R, G, P, K]` of every layer for prompts `[R, P]`, and the experts taken, `[L, R, P, k]`.

    Rows end at `lengths` `[R]`; what lies behind is of no meaning. Parameters are unstacked.
    """
    valid, masks, positions = _prompt_masks(model, tokens, lengths)
    x, tables = api.embed(params, model, tokens), api.tables(model, positions)
    caches, routes = [], []
    for layer, seen in zip(params["layers"], masks, strict=True):
        q, k, v = api.project(layer, model, x, tables)
        caches.append(LayerCache(k, v))
        x, ids = api.finish_routed(layer, model, x, attend(q, k, v, seen, cap=model.attention_cap), valid)
        routes.append(ids)
    return tuple(caches), None if routes[0] is None else jnp.stack(routes)


def read_along(params: Any, model: ModelConfig, tokens: jax.Array, lengths: jax.Array, counts: jax.Array,
               decider: Decider | None) -> tuple[tuple[LayerCache, ...], jax.Array]:
    """`read_prompts` with a route for each row.

    Args:
      params, model, tokens, lengths: as there.
      counts: int8 `[R, L]`, executions of each layer; `DECIDE` where the decider chooses, from what it has read.
      decider: needed where anything is to be decided.

    Returns:
      Caches of the first execution of every layer and then of the second, and the counts int8 `[R, L]`.
    """
    valid, masks, positions = _prompt_masks(model, tokens, lengths)
    x, tables = api.embed(params, model, tokens), api.tables(model, positions[:1])
    rows, chosen, before = len(tokens), [], jnp.zeros(len(tokens), jnp.int32)
    caches: tuple[list[LayerCache], list[LayerCache]] = ([], [])
    blank = jnp.zeros((rows, model.num_kv_heads, tokens.shape[1], model.head_dim), x.dtype)
    for i, (layer, seen) in enumerate(zip(params["layers"], masks, strict=True)):
        def run(state: tuple[jax.Array, ...], index: jax.Array, layer: Any = layer, seen: Any = seen) -> Any:
            q, k, v = api.project(layer, model, state[0], tables)
            attended = attend(q, k, v, seen[index], cap=model.attention_cap)
            return api.finish_routed(layer, model, state[0], attended, valid[index])[0], k, v

        taken = counts[:, i]
        if decider is not None:
            taken = jnp.where(taken == DECIDE, decider(i, x, lengths), taken)
        taken = settle_counts(taken, before, i == model.num_layers - 1)
        for executed, kept in enumerate(caches):
            x, k, v = run_rows(run, taken > executed, (x, blank, blank), max(1, rows // 8))
            kept.append(LayerCache(k, v))
        chosen.append(taken)
        before = before + taken
    return (*caches[0], *caches[1]), jnp.stack(chosen, axis=1)


def _prompt_masks(model: ModelConfig, tokens: jax.Array,
                  lengths: jax.Array) -> tuple[jax.Array, tuple[Any, ...], jax.Array]:
    """Which tokens of `[R, P]` are the prompts', each layer's mask `[R, 1, P, P]`, and the positions."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = positions < lengths[:, None]
    mask = valid[:, None, None, :]
    if model.causal:
        mask = mask & jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    return valid, layer_masks(model, mask, positions, positions), positions


def next_logits(params: Any, model: ModelConfig, tokens: jax.Array, positions: jax.Array,
                caches: tuple[LayerCache, ...], held: jax.Array, column: jax.Array, running: jax.Array,
                counts: jax.Array | None = None) -> tuple[jax.Array, tuple[LayerCache, ...], jax.Array | None]:
    """Logits float32 `[S, V]` after one token of each slot, caches with its key in `column`, experts `[L, S, k]`.

    Args:
      params: unstacked.
      model: description.
      tokens, positions: int32 `[S]`.
      caches: `[S, G, N, K]` of every layer.
      held: bool `[S, N]`, columns that hold a key of the slot, this token's included.
      column: int32 scalar.
      running: bool `[S]`; the others' results mean nothing.
      counts: int8 `[S, L]`, executions of each layer, with caches as `read_along` gives them; experts are then not
        given back. A layer that no running slot executes costs nothing.
    """
    x, tables = api.embed(params, model, tokens[:, None]), api.tables(model, positions[:, None])
    kept, routes = [], []
    # A slot's tokens lie in the columns up to this one, in order and without gaps.
    key_positions = positions[:, None] - (column - jnp.arange(held.shape[1])) % held.shape[1]
    masks = layer_masks(model, held[:, None, None, :], positions[:, None], key_positions)

    def execute(layer: Any, seen: Any, needed: jax.Array, x: jax.Array,
                old: LayerCache) -> tuple[jax.Array, LayerCache, jax.Array | None]:
        q, k, v = api.project(layer, model, x, tables)
        new = LayerCache(*(lax.dynamic_update_slice_in_dim(buffer, rows.astype(buffer.dtype), column, 2)
                           for buffer, rows in ((old.k, k), (old.v, v))))
        x, ids = api.finish_routed(layer, model, x, attend(q, new.k, new.v, seen, cap=model.attention_cap),
                                   needed[:, None])
        return x, new, ids

    if counts is not None:
        written = list(caches)
        for i, (layer, seen) in enumerate(zip(params["layers"], masks, strict=True)):
            for executed in (0, 1):
                def once(carry: tuple[jax.Array, LayerCache], layer: Any = layer, seen: Any = seen,
                         needed: jax.Array = running & (counts[:, i] > executed)) -> tuple[jax.Array, LayerCache]:
                    y, new, _ = execute(layer, seen, needed, *carry)
                    return jnp.where(needed[:, None, None], y, carry[0]), new

                place = executed * model.num_layers + i
                wanted = jnp.any(running & (counts[:, i] > executed))
                x, written[place] = run_if(wanted, once, (x, written[place]))
        return api.logits(params, model, x)[:, 0], tuple(written), None
    for layer, old, seen in zip(params["layers"], caches, masks, strict=True):
        x, new, ids = execute(layer, seen, running, x, old)
        kept.append(new)
        routes.append(ids)
    return api.logits(params, model, x)[:, 0], tuple(kept), None if routes[0] is None else jnp.stack(routes)[:, :, 0]
