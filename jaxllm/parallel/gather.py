"""Weights gathered by hand, inside a `shard_map`, where the compiler's own choice would be repeated in a loop."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def gather_weights(weights: jax.Array, axes: tuple[str, ...], dim: int, dtype: Any) -> jax.Array:
    """Within a `shard_map`: the whole of weights that mesh `axes` split along `dim`, rounded to `dtype`.

    They travel in `dtype`. The gradient is summed over the devices in float32, and each gets its part of it.
    """
    return lax.all_gather(weights.astype(dtype), axes, axis=dim, tiled=True).astype(weights.dtype)


def _forward(weights: jax.Array, axes: tuple[str, ...], dim: int, dtype: Any) -> tuple[jax.Array, None]:
    return gather_weights(weights, axes, dim, dtype), None


def _backward(axes: tuple[str, ...], dim: int, dtype: Any, saved: None, gradient: jax.Array) -> tuple[jax.Array]:
    del dtype, saved
    part = lax.psum_scatter(gradient.astype(jnp.float32), axes, scatter_dimension=dim, tiled=True)
    return (part.astype(gradient.dtype),)


gather_weights.defvjp(_forward, _backward)
