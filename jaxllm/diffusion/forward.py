"""Forward passes as decoders need them: layer by layer, rows by rows, over caches of whole layers.

Layers are unrolled rather than scanned: a scan inside the decode loop would copy each layer's weights
out of the stack on every step.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.models import ModelConfig, api
from jaxllm.models.layers import attend
from jaxllm.models.masks import layer_masks

Tables = tuple[jax.Array, jax.Array]


def take_rows(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows `[B, R, ...]` of `[B, N, ...]` at positions `[B, R]`, clipped into range."""
    index = jnp.clip(positions, 0, x.shape[1] - 1)
    return jnp.take_along_axis(x, index.reshape(*index.shape, *(1,) * (x.ndim - 2)), axis=1)


def take_heads(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rows `[B, H, R, K]` of head-major `[B, H, N, K]` at positions `[B, R]`, clipped into range."""
    index = jnp.clip(positions, 0, x.shape[2] - 1)[:, None, :, None]
    return jnp.take_along_axis(x, index, axis=2)


def row_tables(tables: Tables, positions: jax.Array) -> Tables:
    """Rotary tables of the rows at `positions` `[B, R]`, from tables `[1, N, ...]` of all slots."""
    index = jnp.clip(positions, 0, tables[0].shape[1] - 1)
    return tables[0][0][index], tables[1][0][index]


def all_tables(model: ModelConfig, n: int) -> Tables:
    """Rotary tables `[1, N, ...]` of slots 0..N-1, which are the positions themselves."""
    return api.tables(model, jnp.arange(n)[None])


def row_masks(model: ModelConfig, valid: jax.Array, positions: jax.Array | None = None) -> tuple[jax.Array, ...]:
    """Each layer's mask of the keys in slots `valid` `[B, N]`, for the rows at `positions` `[B, R]`, or for all."""
    slots = jnp.arange(valid.shape[1])[None]
    masks: Any = layer_masks(model, valid[:, None, None, :], slots if positions is None else positions, slots)
    return masks


def inverse(positions: jax.Array, n: int) -> jax.Array:
    """For each of n slots the entry of `positions` `[B, R]` that holds it, R where none does: int32 `[B, N]`."""
    r = positions.shape[1]
    hit = positions[:, None, :] == jnp.arange(n)[None, :, None]
    return jnp.min(jnp.where(hit, jnp.arange(r, dtype=jnp.int32), r), axis=2)


def merge(buffer: jax.Array, rows: jax.Array, source: jax.Array, axis: int) -> jax.Array:
    """`buffer` with slot s taken from entry `source[b, s]` of `rows` where there is one.

    Slots and rows lie on `axis` (1 for hidden states, 2 for head-major keys). A gather and a select:
    scatters run row by row on CPUs.
    """
    shape = [source.shape[0]] + [1] * (buffer.ndim - 1)
    shape[axis] = source.shape[1]
    index = source.reshape(shape)
    moved = jnp.take_along_axis(rows, jnp.minimum(index, rows.shape[axis] - 1), axis=axis)
    return jnp.where(index < rows.shape[axis], moved.astype(buffer.dtype), buffer)


def full_forward(params: Any, model: ModelConfig, tokens: jax.Array, valid: jax.Array) -> jax.Array:
    """Residual stream `[B, N, D]` after the last block of all slots; keys outside `valid` are not seen."""
    x, tables = api.embed(params, model, tokens), all_tables(model, tokens.shape[1])
    for layer, mask in zip(params["layers"], row_masks(model, valid), strict=True):
        q, k, v = api.project(layer, model, x, tables)
        x = api.finish(layer, model, x, attend(q, k, v, mask, cap=model.attention_cap))
    return x


def predictor(model: ModelConfig, positions: jax.Array) -> jax.Array:
    """The row whose logits predict the token at `positions`."""
    return jnp.maximum(positions - 1, 0) if model.shift_logits else positions
