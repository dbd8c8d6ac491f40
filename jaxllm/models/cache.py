"""Keys and values of positions already computed, with the position each slot holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import dtype_of


@struct.dataclass
class KVCache:
    """A preallocated cache.

    Attributes:
      k, v: `[L, B, G, S, K]` in the activation dtype, keys already rotated.
      positions: `[B, S]` int32, the position whose key a slot holds, -1 for an empty slot.
    """

    k: jax.Array
    v: jax.Array
    positions: jax.Array


def empty_cache(config: ModelConfig, batch: int, size: int, *, layers: int | None = None) -> KVCache:
    """An empty cache of `size` slots a row, for `layers` executions of a layer where a path is followed."""
    shape = (layers or config.num_layers, batch, config.num_kv_heads, size, config.head_dim)
    zeros = jnp.zeros(shape, dtype_of(config.activation_dtype))
    return KVCache(k=zeros, v=zeros, positions=jnp.full((batch, size), -1, jnp.int32))


def write_rows(buffer: jax.Array, rows: jax.Array, slots: jax.Array) -> jax.Array:
    """Write rows `[B, G, T, K]` into slots `[B, T]` of `[B, G, S, K]`; slots outside 0..S-1 are dropped."""
    def one(target: jax.Array, values: jax.Array, where: jax.Array) -> jax.Array:
        # A negative index would wrap around, so it is sent past the end, where `drop` applies.
        where = jnp.where(where < 0, target.shape[1], where)
        return target.at[:, where].set(values, mode="drop")

    return jax.vmap(one)(buffer, rows.astype(buffer.dtype), slots)
