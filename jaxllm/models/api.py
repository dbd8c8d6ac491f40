"""The face of the models: pure functions over a parameter tree; nobody else sees a Linen module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxllm.models.cache import KVCache
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import Block, dtype_of, rotary_tables
from jaxllm.models.layers import unembed as head
from jaxllm.models.masks import near_mask
from jaxllm.models.paths import apply_path, check_path
from jaxllm.models.transformer import Output, Transformer
from jaxllm.parallel import active_mesh, active_spec, axes_of, gather_weights

Params = dict[str, Any]
T = TypeVar("T")


def init(config: ModelConfig, key: jax.Array) -> Params:
    """Random parameters: `embed`, `layers` (stacked on a leading L axis), `final_norm`, `head` if untied."""
    return nn.unbox(_init_boxed(config, key))


def abstract(config: ModelConfig) -> Params:
    """The parameter tree as `jax.ShapeDtypeStruct`s; allocates nothing."""
    return nn.unbox(jax.eval_shape(lambda: _init_boxed(config, jax.random.key(0))))


def logical_axes(config: ModelConfig) -> Params:
    """The parameter tree with a tuple of logical axis names in place of each array."""
    boxed = jax.eval_shape(lambda: _init_boxed(config, jax.random.key(0)))
    return jax.tree.map(lambda p: tuple(p.names), boxed, is_leaf=lambda p: isinstance(p, nn.Partitioned))


def attention_mask(
    config: ModelConfig, positions: jax.Array, key_positions: jax.Array,
    segment_ids: jax.Array | None = None, key_segment_ids: jax.Array | None = None,
) -> jax.Array | None:
    """Boolean mask `[B, 1, T, S]`, True where a key may be seen; None when every key may.

    Args:
      positions, key_positions: int `[B, T]` and `[B, S]`; a key at position -1 is an empty slot.
      segment_ids, key_segment_ids: int `[B, T]` and `[B, S]`; 0 is padding, and rows see only keys
        of their own segment.
    """
    mask = None
    if config.causal:
        mask = key_positions[:, None, :] <= positions[:, :, None]
    if segment_ids is not None:
        keys = segment_ids if key_segment_ids is None else key_segment_ids
        same = (segment_ids[:, :, None] == keys[:, None, :]) & (keys > 0)[:, None, :]
        mask = same if mask is None else mask & same
    return None if mask is None else mask[:, None]


def apply(
    params: Params, config: ModelConfig, tokens: jax.Array, *, positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None, visible: jax.Array | None = None, cache: KVCache | None = None,
    slots: jax.Array | None = None, head: bool = True, routes: jax.Array | None = None,
    path: jax.Array | np.ndarray | Sequence[int] | None = None,
) -> Output:
    """Forward pass over `[B, T]` token ids.

    Args:
      params: parameter tree of `init`.
      config: its description.
      tokens: int32 `[B, T]`.
      positions: int32 `[B, T]`, for rotary angles and the causal mask; 0..T-1 by default. Without a cache, the tokens
        of a segment of a causal model must be in order: keys further right are not looked at.
      segment_ids: int32 `[B, T]`; 0 marks padding, other rows attend within their segment. Without
        a cache only.
      visible: bool `[B, T, T]`, True where row t may see key s, on top of the other rules. Without a
        cache only.
      cache: keys and values computed before. The new rows are written into it first, then every
        row attends to all filled slots (up to its own position if causal).
      slots: int32 `[B, T]`, where the new rows go; `positions` by default. A slot outside the cache
        is dropped, which is how padding rows are kept out.
      head: False to skip the logits.
      routes: int `[L, N, k]` for the N = B * T tokens in row-major order, experts that a mixture of experts takes
        in place of the router's choice; a token with a -1 among its k is routed afresh. `Output.aux.ids` of an
        earlier pass over the same tokens replays it.
      path: int `[P]`, layers to run in this order, which may leave some out and repeat others; all of them once by
        default. Cache (`empty_cache(..., layers=P)`), routes and `Output.aux` then have P layers: each execution has
        keys of its own. A JAX array is not checked. The gradient to the parameters is as large as they are for each
        of the P.

    Returns:
      `Output` with raw logits: row i of a `shift_logits` model predicts token i + 1.
    """
    if positions is None:
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    valid = segments = None
    key_positions = positions
    if cache is None:
        if visible is None:
            segments = jnp.ones_like(tokens) if segment_ids is None else segment_ids
        valid = None if segment_ids is None else segment_ids > 0
        mask = attention_mask(config, positions, positions, segment_ids)
        if visible is not None:
            mask = visible[:, None] if mask is None else mask & visible[:, None]
    else:
        if segment_ids is not None or visible is not None:
            raise ValueError("segment_ids, visible: not supported together with a cache; drop padding rows by slots=-1")
        slots = positions if slots is None else slots
        valid = (slots >= 0) & (slots < cache.positions.shape[1])
        rows = jnp.arange(tokens.shape[0])[:, None]
        where = jnp.where(slots < 0, cache.positions.shape[1], slots)
        key_positions = filled = cache.positions.at[rows, where].set(positions, mode="drop")
        mask = (filled >= 0)[:, None, None, :]
        if config.causal:
            mask = mask & (filled[:, None, None, :] <= positions[:, None, :, None])
    if routes is not None:
        if not config.num_experts:
            raise ValueError("routes: a dense model has no experts to force; leave it out")
        routes = routes.reshape(-1, *tokens.shape, config.experts_per_token)
    near = near_mask(config, mask, positions, key_positions)
    if path is not None:
        if not isinstance(path, jax.Array):  # what is traced cannot be looked at
            path = jnp.array(check_path(config, path), jnp.int32)
        x, caches, stats = apply_path(params, config, path, embed(params, config, tokens), cache, routes,
                                      tables(config, positions), mask, near, slots, valid, segments)
        hidden: Any = Transformer(config).apply({"params": params}, x, method="normalize")
        cache = None if cache is None else KVCache(*caches, positions=key_positions)
        return Output(unembed(params, config, hidden) if head else None, hidden, cache, stats)
    return Transformer(config).apply({"params": params}, tokens, positions, mask, cache, slots, head, valid,
                                     routes, segments, near)  # type: ignore


def embed(params: Params, config: ModelConfig, tokens: jax.Array) -> jax.Array:
    """Embedding rows `[B, T, D]` of token ids `[B, T]`."""
    return Transformer(config).apply({"params": params}, tokens, method="embed_tokens")  # type: ignore


def project(
    layer: Params, config: ModelConfig, x: jax.Array, tables: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated q `[B, H, T, K]`, k and v `[B, G, T, K]` of rows `[B, T, D]` in one layer (no L axis)."""
    return Block(config).apply({"params": layer}, x, tables, method="project")  # type: ignore


def finish(layer: Params, config: ModelConfig, x: jax.Array, attended: jax.Array) -> jax.Array:
    """Residual stream `[B, T, D]` after one layer's attention output `[B, T, H, K]` and MLP or experts."""
    return Block(config).apply({"params": layer}, x, attended, method="finish")[0]  # type: ignore


def finish_routed(layer: Params, config: ModelConfig, x: jax.Array, attended: jax.Array,
                  valid: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """`finish`, and the experts taken int32 `[B, T, k]` (-1 where `valid` `[B, T]` is False), None in a dense model."""
    out: Any = Block(config).apply({"params": layer}, x, attended, valid, method="finish")
    x, stats = out
    return x, None if stats is None else stats.ids.reshape(*valid.shape, -1)


def logits(params: Params, config: ModelConfig, x: jax.Array) -> jax.Array:
    """Float32 logits `[..., V]` of the residual stream `[..., D]` after the last block."""
    hidden = Transformer(config).apply({"params": params}, x, method="normalize")
    return unembed(params, config, hidden)  # type: ignore


def unembed(params: Params, config: ModelConfig, hidden: jax.Array) -> jax.Array:
    """Float32 logits `[..., V]` of hidden states `[..., D]` that went through the final norm."""
    return Transformer(config).apply({"params": params}, hidden, method="unembed")  # type: ignore


def with_head(fn: Callable[..., T], params: Params, config: ModelConfig, hidden: jax.Array, targets: Any) -> T:
    """`fn(head, hidden, targets)` where `head` maps `[..., D]` to float32 logits `[..., V]`.

    Under a mesh each device runs `fn` on its own tokens, and a head that `fsdp` splits is gathered once, its gradient
    summed once, however often `fn` calls it. The vocabulary may stay split over `tensor`.

    Args:
      fn: gives arrays `[B, T]`; must not look across rows or along T.
      params, config: the model, for its head.
      hidden: `[B, T, D]`, normalised.
      targets: `[B, T]`, or several arrays `[B, T, ...]`.
    """
    kernel = params["embed"]["embedding"] if config.tied_head else params["head"]["kernel"]

    def local(kernel: jax.Array, hidden: jax.Array, targets: Any) -> T:
        if cut:
            kernel = gather_weights(kernel, cut, dim, dtype_of(config.head_dtype))
        matrix = kernel.T if config.tied_head else kernel
        return fn(lambda h: head(config, h, matrix), hidden, targets)

    dim, cut = int(config.tied_head), ()
    if active_mesh() is None:
        return local(kernel, hidden, targets)
    rows = active_spec(("batch", "length"), hidden.shape[:2])
    manual = {axis for part in rows for axis in axes_of(part)}
    if not manual:
        return local(kernel, hidden, targets)
    embed, vocab = active_spec(("embed", "vocab"), (config.d_model, config.head_width))
    if vocab is None:  # else the compiler gathers it, since a gather by hand would gather the vocabulary too
        cut = tuple(axis for axis in axes_of(embed) if axis in manual)
    split: list[Any] = [None, None]
    split[dim] = cut or None
    # Float32 from here on, so that its gradient is summed over devices in float32 whatever the weights are held in.
    return jax.shard_map(local, in_specs=(PartitionSpec(*split), PartitionSpec(*rows, None), rows), out_specs=rows,
                         axis_names=manual, check_vma=False)(kernel.astype(jnp.float32), hidden, targets)


def tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rotary (sin, cos), each float32 `[B, T, R/2]` of rotated width R, of int positions `[B, T]`."""
    return rotary_tables(config, positions)


def _init_boxed(config: ModelConfig, key: jax.Array) -> Any:
    token = jnp.zeros((1, 1), jnp.int32)
    config = dataclasses.replace(config, attention="plain")  # of one token, on any backend
    variables = Transformer(config).init(key, token, token, None, None, None, True)
    return variables["params"]
