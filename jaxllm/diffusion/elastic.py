"""Elastic-Cache (arXiv 2510.14973) and its matched baseline `full_recompute`.

Per step only the window's masks, the tokens committed last and a few tracked tokens are computed.
Each layer compares how the tracked tokens attend now with how they attended before; once the
similarity falls below gamma, every layer above is computed for all rows, from the hidden states that
the first of them last saw. Each row of a batch decides alone: a layer runs over all slots when any row
asks, and takes effect only in the rows that asked.
"""

from __future__ import annotations

import dataclasses
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
    row_tables,
    take_heads,
    take_rows,
)
from jaxllm.models import ModelConfig, api
from jaxllm.models.layers import attend, attention_weights, weighted_values


class LayerState(NamedTuple):
    """What one layer last saw of every slot: its input x `[B, N, D]`, k and v `[B, G, N, K]`.

    No queries: those of the few tracked rows are projected again from x, which the released code's fourth
    cache holds for every row.
    """

    x: jax.Array
    k: jax.Array
    v: jax.Array


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
    tables, mask = all_tables(model, n), valid[:, None, None, :]
    x, cache, probes = api.embed(params, model, g.tokens), [], []
    for layer in params["layers"]:
        q, k, v = api.project(layer, model, x, tables)
        cache.append(LayerState(x, k, v))
        probes.append(_probe(attention_weights(take_heads(q, window), k, mask), window, g.decoded, config))
        x = api.finish(layer, model, x, attend(q, k, v, mask))
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

    tables, mask = all_tables(model, n), valid[:, None, None, :]
    # Behind the query rows, the tracked rows once more with what they were when last computed.
    count = query.shape[1]
    near = row_tables(tables, jnp.concatenate([query, track], axis=1))
    tracked, keys = track < n, jnp.sum(valid, axis=1)
    x = api.embed(params, model, take_rows(g.tokens, query))
    rest = jnp.zeros((*g.tokens.shape, model.d_model), x.dtype)  # all rows, once past the boundary
    boundary = jnp.full(g.lengths.shape, depth, jnp.int32)
    cache, probes, similarity = [], [], []
    for index, (layer, old) in enumerate(zip(params["layers"], state.cache, strict=True)):
        q, k, v = api.project(layer, model, jnp.concatenate([x, take_rows(old.x, track)], axis=1), near)
        past = attention_weights(q[:, :, count:], old.k, mask)
        q, k, v = q[:, :, :count], k[:, :, :count], v[:, :, :count]
        new = LayerState(merge(old.x, x, source, 1), merge(old.k, k, source, 2), merge(old.v, v, source, 2))
        if index > 0:
            new, rest = lax.cond(jnp.any(boundary <= index), _refresh(params, model, index, tables, mask),
                                 lambda boundary, new, rest: (new, rest), boundary, new, rest)
        weights = attention_weights(q, new.k, mask)
        same = drift_similarity(past, weights[:, :, :track.shape[1]], tracked, keys, config.drift_axis)
        testing = (boundary > index) & jnp.any(tracked, axis=1)
        boundary = jnp.where(testing & (same < config.gamma), index + 1, boundary)
        similarity.append(jnp.where(testing, same, jnp.nan))
        probes.append(_probe(weights[:, :, seen], window, g.decoded, config))
        x = api.finish(layer, model, x, weighted_values(weights, new.v))
        cache.append(new)
    logits = api.logits(params, model, x[:, outputs])
    g, fresh = commit(g, logits, candidates, model, config, rows=jnp.sum(source < query.shape[1], axis=1,
                                                                       dtype=jnp.int32),
                      refresh_from=boundary, similarity=jnp.stack(similarity))
    return ElasticState(generation=g, cache=tuple(cache), track=_union(probes, n), fresh=fresh)


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
      past, now: float32, zero on padding keys.
      tracked: bool `[B, T]`, entries that hold a row.
      keys: int `[B]`, true number of keys.
      axis: `heads` compares, key by key, across heads and averages over all keys (released code);
        `keys` compares whole attention rows and averages over heads (paper).
    """
    dim = 1 if axis == "heads" else 3
    norms = jnp.sqrt(jnp.sum(past * past, dim)), jnp.sqrt(jnp.sum(now * now, dim))
    cosine = jnp.sum(past * now, dim) / (jnp.maximum(norms[0], 1e-8) * jnp.maximum(norms[1], 1e-8))
    if axis == "heads":
        total, size = jnp.sum(cosine * tracked[:, :, None], (1, 2)), keys
    else:
        total, size = jnp.sum(cosine * tracked[:, None, :], (1, 2)), past.shape[1]
    return total / jnp.maximum(jnp.sum(tracked, axis=1) * size, 1)


def _refresh(params: Any, model: ModelConfig, index: int, tables: Tables, mask: jax.Array):
    """Layer `index` over all slots, kept only in rows whose boundary is at or below it."""
    layer = params["layers"][index]

    def run(boundary: jax.Array, new: LayerState, rest: jax.Array) -> tuple[LayerState, jax.Array]:
        x = jnp.where((boundary < index)[:, None, None], rest, new.x)
        q, k, v = api.project(layer, model, x, tables)
        asked = (boundary <= index)[:, None, None, None]
        new = LayerState(x, jnp.where(asked, k, new.k), jnp.where(asked, v, new.v))
        if index == model.num_layers - 1:  # nothing above reads the other rows
            return new, rest
        return new, api.finish(layer, model, x, attend(q, new.k, new.v, mask))

    return run


def _probing(config: DecodeConfig) -> int:
    """Masks that query and choose probes."""
    return config.max_candidates if config.block_caching else config.gen_length


def _probe(weights: jax.Array, window: jax.Array, eligible: jax.Array, config: DecodeConfig) -> jax.Array:
    """The `track_num` eligible positions that the window's rows, weights `[B, H, W, N]`, attend to most."""
    n = eligible.shape[1]
    received = jnp.sum(weights * (window < n)[:, None, :, None], axis=(1, 2))
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
