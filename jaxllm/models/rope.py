"""Rotary wavelengths: plain RoPE and Llama 3.1's stretched one."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> jax.Array:
    """Radians per position of each rotated pair, float32 `[K/2]`, shortest wavelength first.

    With `rope_scaling` (Llama 3.1): wavelengths beyond `original_max_length / low_freq_factor` are
    stretched by `factor`, those below `original_max_length / high_freq_factor` kept, and the turns
    per original context interpolate linearly in between.
    """
    half = config.head_dim // 2
    plain = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_max_length * plain / (2 * math.pi)
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = jnp.clip(kept, 0.0, 1.0)
    return plain * (kept + (1 - kept) / scaling.factor)
