"""The pure training step: gradients, accumulation, update, and the updates that are left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxllm.parallel import RULES, on_mesh, replicated, token_sharding
from jaxllm.training.state import SPIKE_WINDOW, TrainState

# (params, batch, key) -> (sum of losses, denominator, further (sum, denominator) pairs by metric name)
LossFn = Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]]
Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, jax.Array]]]


def make_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, seed: int, accumulate: int = 1,
              spike_factor: float | None = None) -> Step:
    """A pure `step(state, batch) -> (state, metrics)`, not yet jitted.

    The batch's leading axis is split into `accumulate` equal parts, taken one after the other. Sums
    and denominators are added up apart, in float32, and divided once, so the result is that of the whole batch,
    however unevenly loss weights fall on the parts.

    An update whose loss, gradient or update is not finite, or whose loss is above `spike_factor` times the median of
    the last ones, leaves parameters and optimiser state as they were; `train/skipped` counts these.

    So does a batch in which nothing counts, whose denominator is 0: neither momentum nor weight decay moves anything.
    `train/empty` is 1 for such a step, which is none of the skipped ones.
    """
    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        def total(params: Any, part: Any, key: jax.Array) -> tuple[jax.Array, Any]:
            loss, denominator, metrics = loss_fn(dataclasses.replace(state, params=params).model, part, key)
            return loss, (denominator, metrics)

        grad_fn = jax.value_and_grad(total, has_aux=True)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        (loss, (denominator, metrics)), grads = _sums(grad_fn, state.params, batch, key, accumulate)
        nothing = denominator == 0
        denominator = jnp.maximum(denominator, 1e-8)
        loss = loss / denominator
        grads = jax.tree.map(lambda g: g / denominator, grads)
        grad_norm = optax.tree.norm(grads)
        # Moments are in the parameters' dtype, and must stay so.
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        update_norm = jnp.where(nothing, 0.0, _norm(updates))
        fine = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
        fine &= ~_is_spike(loss, state.losses, spike_factor)
        made = fine & ~nothing
        params = optax.apply_updates(state.params, updates)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(made, new, old), (params, opt_state),
                                         (state.params, state.opt_state))
        losses = state.losses.at[state.step % SPIKE_WINDOW].set(loss.astype(jnp.float32))
        state = TrainState(step=state.step + 1, params=params, opt_state=opt_state,
                           skipped=state.skipped + ~fine,
                           losses=jnp.where(jnp.isfinite(loss) & ~nothing, losses, state.losses), base=state.base)
        out = {name: s / jnp.maximum(d, 1e-8) for name, (s, d) in metrics.items()}
        out |= {"train/loss": loss, "train/grad_norm": grad_norm, "train/update_norm": update_norm,
                "train/param_norm": _norm(params), "train/skipped": state.skipped,
                "train/empty": (fine & nothing).astype(jnp.float32)}
        return state, out

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


def _sums(grad_fn: Callable[..., Any], params: Any, batch: Any, key: jax.Array, accumulate: int) -> Any:
    """What `grad_fn` gives, summed over the parts of the batch, gradients in float32."""
    def one(part: Any, key: jax.Array) -> Any:
        values, grads = grad_fn(params, part, key)
        return values, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    if accumulate == 1:
        return one(batch, key)
    parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)
    keys = jax.random.split(key, accumulate)

    def add(carry: Any, item: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, carry, one(*item)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts), keys[0])
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(add, zeros, (parts, keys))[0]


def _is_spike(loss: jax.Array, losses: jax.Array, factor: float | None) -> jax.Array:
    """Whether `loss` is above `factor` times the median of `losses`; False until these are all there."""
    if factor is None:
        return jnp.zeros((), bool)
    median = jnp.median(losses)  # NaN, and so no spike, while one is missing
    return (median > 0) & (loss > factor * median)


def _norm(tree: Any) -> jax.Array:
    """Euclidean norm of all leaves together, float32."""
    return optax.tree.norm(jax.tree.map(lambda x: x.astype(jnp.float32), tree))
