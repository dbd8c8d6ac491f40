"""Block-wise decoders: LLaDA's generate (`full`), Fast-dLLM's `prefix` and `dual` caches.

A row works on the block of its leftmost mask. On the first step in a block the cached methods compute
every row and keep all keys and values; after that `dual` computes the block's rows alone, `prefix`
the block and all to its right. Rows of a batch may be in different blocks and phases.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from jaxllm.diffusion.commit import Generation, commit, leftmost, valid_slots
from jaxllm.diffusion.config import DecodeConfig
from jaxllm.diffusion.forward import (
    all_tables,
    full_forward,
    inverse,
    merge,
    predictor,
    row_masks,
    row_tables,
    take_rows,
)
from jaxllm.models import LayerCache, ModelConfig, api
from jaxllm.models.layers import attend


@struct.dataclass
class BlockState:
    """A generation with what block decoding adds.

    Attributes:
      generation: the shared part.
      block: int32 `[B]`, block of the last step, -1 before the first.
      block_step: int32 `[B]`, steps made in it.
      block_masks: int32 `[B]`, masks it had when it was entered.
      cache: keys and values of each layer; empty for `full`.
    """

    generation: Generation
    block: jax.Array
    block_step: jax.Array
    block_masks: jax.Array
    cache: tuple[LayerCache, ...]


def begin(params: Any, model: ModelConfig, config: DecodeConfig, generation: Generation) -> BlockState:
    """The state before the first step."""
    b, n = generation.tokens.shape
    cache: tuple[LayerCache, ...] = ()
    if config.method != "full":
        dtype = jnp.dtype(model.activation_dtype)
        zeros = jnp.zeros((b, model.num_kv_heads, n, model.head_dim), dtype)
        cache = tuple(LayerCache(zeros, zeros) for _ in range(model.num_layers))
    return BlockState(generation=generation, block=jnp.full(b, -1, jnp.int32), block_step=jnp.zeros(b, jnp.int32),
                      block_masks=jnp.zeros(b, jnp.int32), cache=cache)


def step(params: Any, model: ModelConfig, config: DecodeConfig, state: BlockState) -> BlockState:
    """One step of every unfinished row."""
    g = state.generation
    n, size = g.tokens.shape[1], config.block_length
    first = leftmost(g.left, 1)[:, 0]
    block = jnp.where(g.active, (first - g.lengths) // size, state.block)
    fresh = block != state.block
    start = g.lengths + block * size
    slot = jnp.arange(n)
    masks = jnp.sum(g.left & (slot >= start[:, None]) & (slot < (start + size)[:, None]), axis=1, dtype=jnp.int32)
    block_step = jnp.where(fresh, 0, state.block_step)
    block_masks = jnp.where(fresh, masks, state.block_masks)
    positions = start[:, None] + jnp.arange(size, dtype=jnp.int32)
    predict = predictor(model, positions)
    whole, valid = g.lengths + config.gen_length, valid_slots(g, config)

    cache = state.cache
    if config.method == "full":
        logits = _guided(params, model, config, g, valid, predict)
        rows, refresh = whole, jnp.zeros_like(whole)
    else:
        # With shifted logits the row before the block predicts its first token.
        first_row = predictor(model, start)
        last_row = (start + size) if config.method == "dual" else whole
        hidden, cache = _cached(params, model, config, g.tokens, valid, fresh, first_row, last_row, predict, cache,
                                g.active)
        logits = api.logits(params, model, hidden)
        rows, refresh = last_row - first_row, jnp.where(fresh, 0, model.num_layers)
    count = None
    if config.steps is not None:
        each = config.steps // (config.gen_length // size)
        count = block_masks // each + (block_step < block_masks % each)
    g, _ = commit(g, logits, positions, model, config, rows=rows.astype(jnp.int32),
                  refresh_from=refresh.astype(jnp.int32), count=count)
    return BlockState(generation=g, block=block, block_step=block_step + 1, block_masks=block_masks, cache=cache)


def _guided(params: Any, model: ModelConfig, config: DecodeConfig, g: Generation, valid: jax.Array,
            predict: jax.Array) -> jax.Array:
    """Logits `[B, C, V]` of the rows `predict`, with classifier-free guidance if asked for."""
    if config.cfg_scale == 0:
        return api.logits(params, model, take_rows(full_forward(params, model, g.tokens, valid), predict))
    prompt = jnp.arange(g.tokens.shape[1]) < g.lengths[:, None]
    both = jnp.concatenate([g.tokens, jnp.where(prompt, model.mask, g.tokens)])
    x = full_forward(params, model, both, jnp.concatenate([valid, valid]))
    given, free = jnp.split(api.logits(params, model, take_rows(x, jnp.concatenate([predict, predict]))), 2)
    return free + (config.cfg_scale + 1) * (given - free)


def _cached(params: Any, model: ModelConfig, config: DecodeConfig, tokens: jax.Array, valid: jax.Array,
            fresh: jax.Array, first_row: jax.Array, last_row: jax.Array, predict: jax.Array,
            cache: tuple[LayerCache, ...], active: jax.Array) -> tuple[jax.Array, tuple[LayerCache, ...]]:
    """Residual stream `[B, C, D]` of the rows `predict` and the caches after this step."""
    n = tokens.shape[1]
    slot = jnp.arange(n)
    inside = (slot >= first_row[:, None]) & (slot < last_row[:, None])
    tables = all_tables(model, n)

    def every_row(cache):
        # Rows of the batch that are not at a block's start keep their frozen keys outside `inside`, so
        # that a neighbour's new block changes nothing for them.
        renew = (fresh[:, None] | inside)[:, None, :, None]
        x, kept = api.embed(params, model, tokens), []
        for layer, old, mask in zip(params["layers"], cache, row_masks(model, valid), strict=True):
            q, k, v = api.project(layer, model, x, tables)
            k, v = jnp.where(renew, k, old.k), jnp.where(renew, v, old.v)
            x = api.finish(layer, model, x, attend(q, k, v, mask, cap=model.attention_cap))
            kept.append(LayerCache(k, v))
        return take_rows(x, predict), tuple(kept)

    def some_rows(count):
        def run(cache):
            positions = first_row[:, None] + jnp.arange(count, dtype=jnp.int32)
            positions = jnp.where(positions < last_row[:, None], positions, n)
            source, near = inverse(positions, n), row_tables(tables, positions)
            x, kept = api.embed(params, model, take_rows(tokens, positions)), []
            for layer, old, mask in zip(params["layers"], cache, row_masks(model, valid, positions), strict=True):
                q, k, v = api.project(layer, model, x, near)
                k, v = merge(old.k, k, source, 2), merge(old.v, v, source, 2)
                x = api.finish(layer, model, x, attend(q, k, v, mask, cap=model.attention_cap))
                kept.append(LayerCache(k, v))
            return take_rows(x, predict - first_row[:, None]), tuple(kept)

        return run

    extra = 1 if model.shift_logits else 0
    if config.method == "dual":
        counts = [config.block_length + extra]
    else:  # the rows from the block on shrink block by block: a few static sizes, each half the one above
        counts = [config.gen_length + extra]
        while (counts[0] - extra) // 2 >= config.block_length:
            counts.insert(0, (counts[0] - extra + 1) // 2 + extra)
    needed = jnp.max(jnp.where(active, last_row - first_row, 0))
    branch = jnp.sum(needed > jnp.array(counts[:-1], jnp.int32), dtype=jnp.int32) if len(counts) > 1 else 0
    branch = jnp.where(jnp.any(fresh & active), len(counts), branch)
    return lax.switch(branch, [*(some_rows(c) for c in counts), every_row], cache)
