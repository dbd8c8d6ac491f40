"""What a training run carries from step to step, and how it lies on a mesh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.models import ModelConfig
from jaxllm.parallel import RULES, replicated, shardings


@struct.dataclass
class TrainState:
    """Step, parameters, optimiser state. No key: randomness is `fold_in(key(seed), step)`.

    Attributes:
      step: int32 scalar, optimiser steps done; also the data cursor.
      params: parameter tree.
      opt_state: optax state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state; call it inside `jit` with `state_shardings` to make it in place."""
    params = models.init(config, key)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Mapping[str, Any] = RULES,
) -> TrainState:
    """`TrainState` of shardings: optimiser moments lie as their parameters, the rest is replicated."""
    shapes = models.abstract(config)
    params = shardings(models.logical_axes(config), mesh, rules, shapes)
    whole: Any = replicated(mesh)

    def masked(leaf: Any) -> bool:  # a parameter that another optimiser of the chain takes
        return isinstance(leaf, optax.MaskedNode)

    opt_state = optax.tree_map_params(optimizer, lambda leaf, s: leaf if masked(leaf) else s,
                                      jax.eval_shape(optimizer.init, shapes), params,
                                      transform_non_params=lambda _: whole, is_leaf=masked)
    return TrainState(step=whole, params=params, opt_state=opt_state)
