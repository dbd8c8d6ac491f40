"""Elastic-Cache (arXiv 2510.14973) and its matched baseline `full_recompute`.

Per step only the window's masks, the tokens committed last and a few tracked tokens are computed.
Each layer compares how the tracked tokens attend now with how they attended before; once the
similarity falls below gamma, every layer above is computed for all rows, from the hidden states that
the first of them last saw. That is done after the cheap pass through all layers, since most steps have
no such layer. Each row of a batch decides alone: a layer runs over all slots when any row
asks, and takes effect only in the rows that asked.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxllm.diffusion.commit import Generation, commit, leftmost, valid_slots
from jaxllm.diffusion.config import DecodeConfig
from jaxllm.diffusion.forward import (
    Tables,
    all_tables,
    full_forward,
    inverse,
    merge,
    predictor,
    row_masks,
    row_tables,
    take_heads,
    take_rows,
)
from jaxllm.models import ModelConfig, api
from jaxllm.models.layers import attend, attention_weights, weighted_values
from jaxllm.models.rows import run_if


class LayerState(NamedTuple):
    """What one layer last saw of every slot: its input x `[B, N, D]`, k and v `[B, G, N, K]`.

    No queries: those of the few tracked rows are projected again from x, which the released code's fourth
    cache holds for every row.
    """

    x: jax.Array
    k: jax.Array
    v: jax.Array


class Layers(NamedTuple):
    """What one step leaves of every layer.

    Attributes:
      cache: one `LayerState` a layer.
      received: float32 `[B, N]` a layer, attention that each slot gets from the window's rows.
      x: residual stream `[B, R, D]` of the query rows after the last layer.
    """

    cache: tuple[LayerState, ...]
    received: tuple[jax.Array, ...]
    x: jax.Array


@struct.dataclass
class ElasticState:
    """A generation with what Elastic-Cache adds.

    Attributes:
      generation: the shared part.
      cache: one `LayerState` a layer; empty for `full_recompute`.
      track: int32 `[B, L * track_num]`, tracked positions, N for none; no position twice.
      fresh: int32 `[B, W]`, positions committed on the last step, N for none.
    """

    generation: Generation
    cache: tuple[LayerState, ...]
    track: jax.Array
    fresh: jax.Array


def begin(params: Any, model: ModelConfig, config: DecodeConfig, generation: Generation) -> ElasticState:
    """The state after the first step, which computes every row of every layer."""
    n = generation.tokens.shape[1]
    g, valid = generation, valid_slots(generation, config)
    window = leftmost(g.left, _probing(config))
    tables, cap = all_tables(model, n), model.attention_cap
    x, cache, probes = api.embed(params, model, g.tokens), [], []
    for layer, mask, seen in zip(params["layers"], row_masks(model, valid), row_masks(model, valid, window),
                                 strict=True):
        q, k, v = api.project(layer, model, x, tables)
        cache.append(LayerState(x, k, v))
        weights = attention_weights(take_heads(q, window), k, seen, cap)
        probes.append(_probe(_received(weights, window), g.decoded, config))
        x = api.finish(layer, model, x, attend(q, k, v, mask, cap=cap))
    candidates = window[:, :config.max_candidates]
    logits = api.logits(params, model, take_rows(x, predictor(model, candidates)))
    g, fresh = commit(g, logits, candidates, model, config, rows=jnp.sum(valid, axis=1, dtype=jnp.int32),
                      refresh_from=jnp.zeros_like(g.lengths))
    return ElasticState(generation=g, cache=tuple(cache), track=_union(probes, n), fresh=fresh)


def step(params: Any, model: ModelConfig, config: DecodeConfig, state: ElasticState) -> ElasticState:
    """One later step of every unfinished row."""
    g, depth = state.generation, model.num_layers
    n = g.tokens.shape[1]
    valid, on = valid_slots(g, config), g.active[:, None]
    window = leftmost(g.left, _probing(config))
    candidates = window[:, :config.max_candidates]
    track = jnp.where(on, state.track, n)
    parts = [track, jnp.where(on, state.fresh, n), window]
    if model.shift_logits:
        parts.append(jnp.where(candidates < n, predictor(model, candidates), n))
    query = jnp.concatenate(parts, axis=1)
    ends = [sum(p.shape[1] for p in parts[:i + 1]) for i in range(len(parts))]
    seen, source = slice(ends[1], ends[2]), inverse(query, n)
    outputs = slice(ends[2], ends[3]) if model.shift_logits else slice(ends[1], ends[1] + candidates.shape[1])

    tables, cap = all_tables(model, n), model.attention_cap
    # Behind the query rows, the tracked rows once more with what they were when last computed.
    count = query.shape[1]
    near = row_tables(tables, jnp.concatenate([query, track], axis=1))
    tracked, masks, track_masks = track < n, row_masks(model, valid, query), row_masks(model, valid, track)
    x = api.embed(params, model, take_rows(g.tokens, query))
    cache, received, similarity = [], [], []
    for layer, old, mask, track_mask in zip(params["layers"], state.cache, masks, track_masks, strict=True):
        q, k, v = api.project(layer, model, jnp.concatenate([x, take_rows(old.x, track)], axis=1), near)
        past = attention_weights(q[:, :, count:], old.k, track_mask, cap)
        q, k, v = q[:, :, :count], k[:, :, :count], v[:, :, :count]
        new = LayerState(merge(old.x, x, source, 1), merge(old.k, k, source, 2), merge(old.v, v, source, 2))
        weights = attention_weights(q, new.k, mask, cap)
        keys = jnp.sum(track_mask, axis=(1, 3))
        similarity.append(drift_similarity(past, weights[:, :, :track.shape[1]], tracked, keys, config.drift_axis))
        received.append(_received(weights[:, :, seen], window))
        x = api.finish(layer, model, x, weighted_values(weights, new.v))
        cache.append(new)

    # A layer that drifted asks for all above it, whose own tests then count for nothing.
    same = jnp.stack(similarity)
    drifted = (same < config.gamma) & jnp.any(tracked, axis=1)
    earlier = jnp.cumsum(drifted, axis=0) - drifted
    boundary = jnp.where(jnp.any(drifted, axis=0), jnp.argmax(drifted, axis=0) + 1, depth).astype(jnp.int32)
    same = jnp.where((earlier == 0) & jnp.any(tracked, axis=1), same, jnp.nan)
    refreshed = _refresh(params, model, query, slice(ends[1], ends[2]), window, tables, valid, boundary,
                         Layers(tuple(cache), tuple(received), x))
    logits = api.logits(params, model, refreshed.x[:, outputs])
    g, fresh = commit(g, logits, candidates, model, config, rows=jnp.sum(source < count, axis=1, dtype=jnp.int32),
                      refresh_from=boundary, similarity=same)
    probes = [_probe(r, state.generation.decoded, config) for r in refreshed.received]
    return ElasticState(generation=g, cache=refreshed.cache, track=_union(probes, n), fresh=fresh)


def begin_recompute(params: Any, model: ModelConfig, config: DecodeConfig, generation: Generation) -> ElasticState:
    """`full_recompute` before its first step; nothing is cached."""
    b = generation.tokens.shape[0]
    nothing = jnp.zeros((b, 0), jnp.int32)
    return ElasticState(generation=generation, cache=(), track=nothing, fresh=nothing)


def step_recompute(params: Any, model: ModelConfig, config: DecodeConfig, state: ElasticState) -> ElasticState:
    """One step of `full_recompute`: every row of every layer, commits in the window."""
    g = state.generation
    valid = valid_slots(g, config)
    candidates = leftmost(g.left, config.max_candidates)
    x = full_forward(params, model, g.tokens, valid)
    logits = api.logits(params, model, take_rows(x, predictor(model, candidates)))
    g, _ = commit(g, logits, candidates, model, config, rows=jnp.sum(valid, axis=1, dtype=jnp.int32),
                  refresh_from=jnp.zeros_like(g.lengths))
    return dataclasses.replace(state, generation=g)


def drift_similarity(past: jax.Array, now: jax.Array, tracked: jax.Array, keys: jax.Array, axis: str) -> jax.Array:
    """Mean cosine `[B]` between two sets of attention weights `[B, H, T, N]` of the tracked rows.

    Args:
      past, now: float32, zero on keys that are not seen.
      tracked: bool `[B, T]`, entries that hold a row.
      keys: int `[B, T]` or `[B, 1]`, number of keys that each sees.
      axis: `heads` compares, key by key, across heads and averages over all keys (released code);
        `keys` compares whole attention rows and averages over heads (paper).
    """
    dim = 1 if axis == "heads" else 3
    norms = jnp.sqrt(jnp.sum(past * past, dim)), jnp.sqrt(jnp.sum(now * now, dim))
    cosine = jnp.sum(past * now, dim) / (jnp.maximum(norms[0], 1e-8) * jnp.maximum(norms[1], 1e-8))
    if axis == "heads":
        total, count = jnp.sum(cosine * tracked[:, :, None], (1, 2)), jnp.sum(tracked * keys, axis=1)
    else:
        total, count = jnp.sum(cosine * tracked[:, None, :], (1, 2)), jnp.sum(tracked, axis=1) * past.shape[1]
    return total / jnp.maximum(count, 1)


def _refresh(params: Any, model: ModelConfig, query: jax.Array, seen: slice, window: jax.Array, tables: Tables,
             valid: jax.Array, boundary: jax.Array, layers: Layers) -> Layers:
    """The layers at and above `boundary` `[B]` over all slots, kept only in rows whose boundary is at or below them.

    Starts from what layer `boundary` last saw of every slot.
    """
    depth, cap = model.num_layers, model.attention_cap

    def turn(layers: Layers) -> Layers:
        rest = jnp.zeros_like(layers.cache[0].x)  # all rows, once past the boundary
        for index in range(1, depth):
            layers, rest = lax.cond(jnp.any(boundary <= index), functools.partial(one, index),
                                    lambda layers, rest: (layers, rest), layers, rest)
        return layers

    def one(index: int, layers: Layers, rest: jax.Array) -> tuple[Layers, jax.Array]:
        layer, old, last = params["layers"][index], layers.cache[index], index == depth - 1
        asked = boundary <= index
        whole, of_window, of_query = (row_masks(model, valid, rows)[index] for rows in (None, window, query))

        def kept(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(asked.reshape(-1, *(1,) * (old.ndim - 1)), new, old)

        x = jnp.where((boundary < index)[:, None, None], rest, old.x)
        q, k, v = api.project(layer, model, x, tables)
        new = LayerState(x, kept(k, old.k), kept(v, old.v))
        probing = attention_weights(take_heads(q, query[:, seen]), new.k, of_window, cap)
        received = list(layers.received)
        received[index] = kept(_received(probing, window), received[index])
        cache = (*layers.cache[:index], new, *layers.cache[index + 1:])
        if not last:
            rest = api.finish(layer, model, x, attend(q, new.k, new.v, whole, cap=cap))
            return Layers(cache, tuple(received), layers.x), rest
        # Nothing above reads the other rows.
        attended = attend(take_heads(q, query), new.k, new.v, of_query, cap=cap)
        out = api.finish(layer, model, take_rows(x, query), attended)
        return Layers(cache, tuple(received), kept(out, layers.x)), rest

    return run_if(jnp.any(boundary < depth), turn, layers)


def _probing(config: DecodeConfig) -> int:
    """Masks that query and choose probes."""
    return config.max_candidates if config.block_caching else config.gen_length


def _received(weights: jax.Array, window: jax.Array) -> jax.Array:
    """What each of N slots receives, float32 `[B, N]`, of the attention `[B, H, W, N]` of the window's rows."""
    return jnp.sum(weights * (window < weights.shape[3])[:, None, :, None], axis=(1, 2))


def _probe(received: jax.Array, eligible: jax.Array, config: DecodeConfig) -> jax.Array:
    """The `track_num` eligible positions that receive most attention, `[B, N]`; N for none."""
    n = eligible.shape[1]
    received = jnp.where(eligible, received, -1.0)
    if config.track_num == 1:
        best, value = jnp.argmax(received, axis=1)[:, None], jnp.max(received, axis=1)[:, None]
    else:
        value, best = lax.top_k(received, min(config.track_num, n))
    return jnp.where(value >= 0, best, n).astype(jnp.int32)


def _union(probes: list[jax.Array], n: int) -> jax.Array:
    """The layers' probes side by side, repeats replaced by n."""
    track = jnp.concatenate(probes, axis=1)
    earlier = jnp.arange(track.shape[1])[:, None] > jnp.arange(track.shape[1])[None, :]
    repeated = jnp.any((track[:, :, None] == track[:, None, :]) & earlier, axis=2)
    return jnp.where(repeated, n, track)
