"""RMSNorm and LayerNorm, in float32 whatever goes in."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxllm.models.config import ModelConfig


class RMSNorm(nn.Module):
    """RMSNorm in float32, cast back to the input dtype before the scale (the Llama order).

    With `plus_one` the scale is one plus its parameter, which starts at zero, and the cast comes last (Gemma's order).
    """

    dim: int
    axis: str
    eps: float
    weight_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    plus_one: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of `[..., dim]`."""
        start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
        scale: Any = self.param("scale", nn.with_logical_partitioning(start, (self.axis,)), (self.dim,),
                                self.weight_dtype)
        h = x.astype(jnp.float32)
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        if self.plus_one:
            return (h * (1.0 + scale.astype(jnp.float32))).astype(x.dtype)
        return h.astype(x.dtype) * scale.astype(x.dtype)


class LayerNorm(nn.Module):
    """LayerNorm with scale and bias, cast back to the input dtype at the end."""

    dim: int
    axis: str
    eps: float
    weight_dtype: jnp.dtype = jnp.dtype(jnp.float32)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise the last axis of `[..., dim]`."""
        scale: Any = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, (self.axis,)),
                                (self.dim,), self.weight_dtype)
        bias: Any = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,)),
                               (self.dim,), self.weight_dtype)
        h = x.astype(jnp.float32)
        h = h - jnp.mean(h, axis=-1, keepdims=True)
        h = h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + self.eps)
        return (h * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


def make_norm(config: ModelConfig, dim: int, axis: str, weight_dtype: jnp.dtype) -> RMSNorm | LayerNorm:
    """The norm of `config` over `dim` entries that lie on the logical axis `axis`."""
    if config.norm == "layer":
        return LayerNorm(dim, axis, config.rms_norm_eps, weight_dtype)
    return RMSNorm(dim, axis, config.rms_norm_eps, weight_dtype, config.norm == "rms_plus_one")
