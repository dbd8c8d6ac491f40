"""The per-token variant, for comparison: routers decide anew at every generated token, as Dr.LLM's released code does.

The prompt has one decision a layer; each token behind it decides by its own state. Keys exist where a layer was
executed only, each execution's apart. All rows are computed and then masked, so this measures quality, not speed.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxllm.models import ModelConfig, api
from jaxllm.models.layers import attend
from jaxllm.models.masks import choose_mask, mixed_windows, near_mask
from jaxllm.models.rows import settle_counts
from jaxllm.routing.router import decide, router_logits, windowed_mean


@functools.partial(jax.jit, static_argnames=("model", "windows"))
def per_token_sweep(params: Any, tokens: jax.Array, prompt_lengths: jax.Array, *, model: ModelConfig, routers: Any,
                    windows: int = 8, lean: jax.Array | float = -0.5) -> tuple[jax.Array, jax.Array]:
    """Residual stream `[B, T, D]` and counts int8 `[B, T, L]` of tokens that each go their own way.

    Args:
      params: stacked, of a causal model.
      tokens: int32 `[B, T]`; what follows a row's end is not seen from before it.
      prompt_lengths: int32 `[B]`, tokens decided together, at least two; all but the last are read for that.
      model: description.
      routers: of `init_routers`.
      windows: W, of the prompt's decision.
      lean: as in `decide`.
    """
    b, t = tokens.shape
    positions = jnp.arange(t, dtype=jnp.int32)[None]
    prompt = positions < prompt_lengths[:, None]
    order = jnp.tril(jnp.ones((1, 1, t, t), bool))
    near, tables = near_mask(model, order, positions, positions), api.tables(model, positions)

    def one(carry: tuple[jax.Array, jax.Array], each: Any) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        (x, before), (index, layer, router, windowed) = carry, each
        pooled, held = windowed_mean(x, prompt_lengths - 1, windows)
        together = decide(router_logits(router, pooled, held), lean)
        alone = decide(router_logits(router, x[:, :, None], jnp.ones((b, t, 1), bool)), lean)
        taken = settle_counts(jnp.where(prompt, together[:, None], alone), before, index == model.num_layers - 1)
        mask = choose_mask(order, near, windowed)
        for executed in (0, 1):
            needed = taken > executed
            seen = needed[:, None, None] if mask is None else mask & needed[:, None, None]
            q, k, v = api.project(layer, model, x, tables)
            y = api.finish_routed(layer, model, x, attend(q, k, v, seen, cap=model.attention_cap), needed)[0]
            x = jnp.where(needed[:, :, None], y, x)
        return (x, before + taken), taken

    begin = api.embed(params, model, tokens), jnp.zeros((b, t), jnp.int32)
    (x, _), taken = lax.scan(one, begin, (jnp.arange(model.num_layers), params["layers"], routers,
                                          mixed_windows(model)))
    return x, jnp.moveaxis(taken, 0, -1)
