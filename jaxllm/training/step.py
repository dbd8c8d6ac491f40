"""The pure training step: gradients, accumulation, update."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.parallel import RULES, on_mesh, replicated, token_sharding
from jaxllm.training.state import TrainState

# (params, batch, key) -> (sum of losses, denominator, further (sum, denominator) pairs by metric name)
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, seed: int, accumulate: int = 1) -> Step:
    """A pure `step(state, batch) -> (state, metrics)`, not yet jitted.

    The batch's leading axis is split into `accumulate` equal parts, taken one after the other. Sums
    and denominators are added up apart and divided once, so the result is that of the whole batch,
    however unevenly loss weights fall on the parts.
    """
    def total(params, part, key):
        loss, denominator, metrics = loss_fn(params, part, key)
        return loss, (denominator, metrics)

    grad_fn = jax.value_and_grad(total, has_aux=True)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        if accumulate == 1:
            (loss, (denominator, metrics)), grads = grad_fn(state.params, batch, key)
        else:
            parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)
            keys = jax.random.split(key, accumulate)

            def add(carry, item):
                return jax.tree.map(jnp.add, carry, grad_fn(state.params, *item)), None

            shapes = jax.eval_shape(grad_fn, state.params, jax.tree.map(lambda x: x[0], parts), keys[0])
            zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
            ((loss, (denominator, metrics)), grads), _ = jax.lax.scan(add, zeros, (parts, keys))
        denominator = jnp.maximum(denominator, 1e-8)
        grads = jax.tree.map(lambda g: g / denominator.astype(g.dtype), grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        out = {name: s / jnp.maximum(d, 1e-8) for name, (s, d) in metrics.items()}
        out |= {"train/loss": loss / denominator, "train/grad_norm": optax.tree.norm(grads)}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state), out

    return step


def jit_step(step: Step, state_sharding: TrainState, mesh: Mesh, rules: Mapping[str, Any] = RULES) -> Step:
    """Jit a step with donated state and explicit shardings; activation constraints hold on `mesh`."""
    jitted = jax.jit(step, donate_argnums=0, in_shardings=(state_sharding, token_sharding(mesh, rules)),
                     out_shardings=(state_sharding, replicated(mesh)))

    def run(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        with on_mesh(mesh, rules):
            return jitted(state, batch)

    run.lower = jitted.lower  # type: ignore[attr-defined]
    return run
