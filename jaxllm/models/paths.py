"""Which of a model's layers run, in which order and how often: P layer indices, of one path for all rows.

Two ways to the same numbers. `follow` hands out a model of P layers, whose weights are those of the path: whatever runs
layer by layer (the engine, all diffusion decoders) runs it without knowing, each execution with keys of its own, and
unstacked weights are not copied. `apply(..., path=...)` keeps the stack and looks each layer up while it scans, so that
the path may be data of a compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxllm.config import ConfigError
from jaxllm.models.cache import KVCache
from jaxllm.models.config import ModelConfig
from jaxllm.models.masks import mixed_windows
from jaxllm.models.transformer import block_class

DECIDE = -1  # a count of executions that is left to a router
MOST = 2  # executions of a layer


def check_path(config: ModelConfig, path: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """The path as whole numbers.

    Raises:
      ConfigError: no layer, or one that the model does not have.
    """
    found = tuple(int(i) for i in path)
    if not found:
        raise ConfigError(f"path: holds no layer; name at least one of 0..{config.num_layers - 1}")
    for place, layer in enumerate(found):
        if not 0 <= layer < config.num_layers:
            raise ConfigError(f"path[{place}]={layer}: the model's layers are 0..{config.num_layers - 1}")
    return found


def check_counts(counts: Sequence[int] | np.ndarray, layers: int, name: str = "counts") -> np.ndarray:
    """Counts as int8 `[L]`.

    Raises:
      ConfigError: another number of layers, a count outside 0..2, or no layer at all.
    """
    found = np.asarray(counts)
    if found.shape != (layers,):
        raise ConfigError(f"{name}: has the shape {found.shape}; a route of this model has {layers} counts")
    for layer in np.flatnonzero((found < 0) | (found > MOST) | (found != np.floor(found))):
        raise ConfigError(f"{name}[{layer}]={found[layer]}: a layer runs 0, 1 or 2 times")
    if not found.any():
        raise ConfigError(f"{name}: skips every layer; a route has at least one")
    return found.astype(np.int8)


def follow(params: Any, config: ModelConfig, path: Sequence[int] | np.ndarray) -> tuple[Any, ModelConfig]:
    """A model whose layers are those of `path`, in its order; unstacked weights are shared, stacked ones copied.

    All paths of one length are one program to a jitted function of both, unless layers differ in their windows.

    Raises:
      ConfigError: as `check_path`.
    """
    order = check_path(config, path)
    if isinstance(params["layers"], tuple):
        layers: Any = tuple(params["layers"][i] for i in order)
    else:
        layers = jax.tree.map(lambda leaf: jnp.take(leaf, jnp.array(order), axis=0), params["layers"])
    windowed = tuple(config.windowed[i] for i in order)
    changes = {"window": config.window if any(windowed) else 0, "window_layers": windowed if any(windowed) else ()}
    return {**params, "layers": layers}, dataclasses.replace(config, num_layers=len(order), **changes)


def apply_path(params: Any, config: ModelConfig, path: jax.Array, x: jax.Array, cache: KVCache | None, routes: Any,
               *shared: Any) -> tuple[jax.Array, Any, Any]:
    """Residual stream `[B, T, D]` of embedded tokens after the layers of `path` int32 `[P]`, caches and statistics.

    Args:
      params: stacked.
      config: description.
      path: of the layers, which may be traced.
      x: `[B, T, D]`.
      cache: of P layers.
      routes: int `[P, B, T, k]` or None.
      shared: what a block takes beside these, in its order.
    """
    windows = mixed_windows(config)

    def run(x: jax.Array, each: tuple[jax.Array, Any, Any]) -> tuple[jax.Array, Any]:
        index, layer_cache, forced = each
        layer = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, keepdims=False), params["layers"])
        windowed = None if windows is None else windows[index]
        return block_class(config)(config).apply({"params": layer}, x, layer_cache, forced, windowed, *shared)

    caches = None if cache is None else (cache.k, cache.v)
    x, (caches, stats) = lax.scan(run, x, (path, caches, routes))
    return x, caches, stats
