"""Sliding windows: which keys lie near enough to a query, in the layers that ask; and which tokens a row holds."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig

Mask = jax.Array | None


def near_mask(config: ModelConfig, mask: Mask, positions: jax.Array, key_positions: jax.Array) -> Mask:
    """The mask of layers with a sliding window, `[B, 1, T, S]`; None for a model without any.

    Args:
      config: its `window` counts the query itself and those before it, or in a bidirectional model either side.
      mask: what the other layers see, broadcastable to `[B, 1, T, S]`; None for everything.
      positions, key_positions: int `[B, T]` and `[B, S]`; either may have one row for all.
    """
    if not config.window:
        return None
    distance = positions[:, :, None] - key_positions[:, None, :]
    near = distance < config.window if config.causal else jnp.abs(distance) <= config.window
    return near[:, None] if mask is None else mask & near[:, None]


def layer_masks(config: ModelConfig, mask: Mask, positions: jax.Array, key_positions: jax.Array) -> tuple[Mask, ...]:
    """`mask` for each layer, or `near_mask` where it has a window; for decoders that run layer by layer."""
    near = near_mask(config, mask, positions, key_positions)
    return tuple(near if own else mask for own in config.windowed)


def choose_mask(mask: Mask, near: Mask, windowed: jax.Array | None) -> Mask:
    """The mask of one of the layers in a scan: `near` where the bool scalar `windowed` says so.

    Without `windowed` all layers are alike: they have a window if there is `near`.
    """
    if near is None:
        return mask
    if windowed is None:
        return near
    return near | ~windowed if mask is None else jnp.where(windowed, near, mask)


def mixed_windows(config: ModelConfig) -> jax.Array | None:
    """Bool `[L]` for `choose_mask`, None where all layers are alike."""
    mixed = len(set(config.windowed)) > 1
    return jnp.array(config.windowed) if mixed else None


def held_tokens(tokens: jax.Array, inside: jax.Array, vocab: int) -> jax.Array:
    """Which of V tokens the places `inside`, bool `[B, N]`, of int rows `[B, N]` hold: bool `[B, V]`."""
    where = jnp.where(inside, tokens, vocab)  # past the end, where `drop` applies
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), vocab), bool).at[rows, where].set(True, mode="drop")
