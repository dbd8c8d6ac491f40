"""Experts of one layer: blocks of sorted rows against all experts on all tokens, forward and with gradients."""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm.bench.timing import Timings, paired
from jaxllm.config import check
from jaxllm.models.config import Dispatch
from jaxllm.models.moe import experts, route
from jaxllm.tracking import environment

SIDES: tuple[Dispatch, Dispatch] = ("dense", "blocks")


def moe_dispatch(tokens: int = 2048, num_experts: int = 32, per_token: int = 4, d_model: int = 512,
                 d_expert: int = 256, repeats: int = 15, dtype: str = "float32") -> dict[str, Any]:
    """Seconds of the dense oracle and of sorted blocks on the same random tokens, sides taken in turn.

    Both sides are compiled alone, get routes as inputs and give either the output or the gradients of its mean square
    to inputs, weights and all kernels.

    Args:
      tokens, num_experts, per_token, d_model, d_expert: shapes.
      repeats: timed calls of each side.
      dtype: of inputs and kernels.

    Returns:
      settings; `forward` and `gradient`, seconds by side; `moe_blocks_vs_dense` and `moe_blocks_vs_dense_grad`, the
      median over repeats of dense seconds over blocks seconds.
    """
    check(repeats >= 1, "repeats", repeats, "must be at least 1")
    args = _inputs(tokens, num_experts, per_token, d_model, d_expert, jnp.dtype(dtype))
    forward = paired({side: functools.partial(jax.jit(functools.partial(_apply, side)), *args) for side in SIDES},
                     repeats)
    gradient = paired({side: functools.partial(jax.jit(jax.value_and_grad(functools.partial(_loss, side),
                                                                          argnums=(0, 2, 3))), *args)
                       for side in SIDES}, repeats)
    settings = {"tokens": tokens, "num_experts": num_experts, "per_token": per_token, "d_model": d_model,
                "d_expert": d_expert, "repeats": repeats, "dtype": dtype}
    return {"bench": "moe", "settings": settings, "environment": environment(), "forward": forward,
            "gradient": gradient, "moe_blocks_vs_dense": _ratio(forward), "moe_blocks_vs_dense_grad": _ratio(gradient)}


def _inputs(tokens: int, num_experts: int, per_token: int, d_model: int, d_expert: int,
            dtype: Any) -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
    keys = jax.random.split(jax.random.key(0), 5)
    ids, weights, _ = route(jax.random.normal(keys[0], (tokens, num_experts)), per_token, "softmax_renormalized")
    shapes = {"gate": (d_model, d_expert), "up": (d_model, d_expert), "down": (d_expert, d_model)}
    params = {name: (jax.random.normal(key, (num_experts, *shape)) * shape[0]**-0.5).astype(dtype)
              for key, (name, shape) in zip(keys[1:4], shapes.items(), strict=True)}
    return jax.random.normal(keys[4], (tokens, d_model)).astype(dtype), ids, weights, params


def _apply(side: Dispatch, x: jax.Array, ids: jax.Array, weights: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    return experts(x, ids, weights, params, side)


def _loss(side: Dispatch, x: jax.Array, ids: jax.Array, weights: jax.Array, params: dict[str, jax.Array]) -> jax.Array:
    return jnp.mean(jnp.square(_apply(side, x, ids, weights, params).astype(jnp.float32)))


def _ratio(seconds: Timings) -> float:
    return statistics.median(d / b for d, b in zip(seconds["dense"], seconds["blocks"], strict=True))
