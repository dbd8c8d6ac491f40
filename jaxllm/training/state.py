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

SPIKE_WINDOW = 32  # losses whose median a spike is measured against


@struct.dataclass
class TrainState:
    """Step, parameters, optimiser state. No key: randomness is `fold_in(key(seed), step)`.

    Attributes:
      step: int32 scalar, optimiser steps done; also the data cursor.
      params: parameter tree.
      opt_state: optax state.
      skipped: int32 scalar, updates left out so far because they were not finite or a spike.
      losses: float32 `[SPIKE_WINDOW]`, the last finite losses, NaN where there are none yet.
      base: what stays as it is under adapters (`ModelConfig.lora`), which are then all of `params`; None without.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array
    losses: jax.Array
    base: Any = None

    @property
    def model(self) -> Any:
        """The model's whole parameter tree, as `models.apply` takes it."""
        return self.params if self.base is None else models.join_adapters(self.params, self.base)


def new_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step from `params`."""
    params, base = trained(params)
    return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params),
                      skipped=jnp.zeros((), jnp.int32), losses=jnp.full(SPIKE_WINDOW, jnp.nan, jnp.float32), base=base)


def trained(params: Any) -> tuple[Any, Any]:
    """What of a model's parameters is trained, and what is not: adapters alone where it has some, else all and None."""
    adapters, base = models.split_adapters(params)
    return (adapters, base) if adapters else (params, None)


def init_state(config: ModelConfig, optimizer: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """A fresh state, for use inside `jit`; `place_state` makes one on a mesh."""
    return new_state(models.init(config, key), optimizer)


def place_state(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, seed: int = 0,
) -> tuple[TrainState, TrainState]:
    """A fresh state made where it lies, no device holding more than its part; and its `state_shardings`."""
    layout = state_shardings(config, optimizer, mesh)
    make = jax.jit(lambda key: init_state(config, optimizer, key), out_shardings=layout)
    return make(jax.random.key(seed)), layout


def state_shardings(
    config: ModelConfig, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Mapping[str, Any] = RULES,
) -> TrainState:
    """`TrainState` of shardings: optimiser moments lie as their parameters, the rest is replicated."""
    shapes = models.abstract(config)
    params, base = trained(shardings(models.logical_axes(config), mesh, rules, shapes))
    shapes, _ = trained(shapes)
    whole: Any = replicated(mesh)

    def masked(leaf: Any) -> bool:  # a parameter that another optimiser of the chain takes
        return isinstance(leaf, optax.MaskedNode)

    opt_state = optax.tree_map_params(optimizer, lambda leaf, s: leaf if masked(leaf) else s,
                                      jax.eval_shape(optimizer.init, shapes), params,
                                      transform_non_params=lambda _: whole, is_leaf=masked)
    return TrainState(step=whole, params=params, opt_state=opt_state, skipped=whole, losses=whole, base=base)
