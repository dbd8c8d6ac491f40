"""Rotary wavelengths: plain RoPE and its stretches for longer rows."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> jax.Array:
    """Radians per position of each rotated pair, float32 `[R/2]` of rotated width R, shortest wavelength first.

    `RopeScaling` says what its kinds do. Llama 3.1's keeps wavelengths below `original_max_length / high_freq_factor`,
    and the turns per original context interpolate linearly between the two bounds.
    """
    half, scaling = config.rotary_dim // 2, config.rope_scaling
    plain = base(config) ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is None or scaling.kind == "dynamic":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    assert scaling.original_max_length is not None
    turns = scaling.original_max_length * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(kept, 0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling.factor)


def base(config: ModelConfig) -> float:
    """Base of the wavelengths: `rope_theta`, or what dynamic NTK makes of it for rows of `max_length`."""
    scaling, width = config.rope_scaling, config.rotary_dim
    if scaling is None or scaling.kind != "dynamic" or width == 2:  # a single pair turns once a radian at any base
        return config.rope_theta
    assert scaling.original_max_length is not None
    longer = max(1.0, config.max_length / scaling.original_max_length)
    return config.rope_theta * (scaling.factor * longer - (scaling.factor - 1)) ** (width / (width - 2))
