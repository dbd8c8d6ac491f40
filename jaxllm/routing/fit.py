"""Training the routers, without the model: what they read never changes.

The base is frozen and the labelled route is executed while its states are collected, so that a router's inputs are
those of Dr.LLM's teacher forcing (arXiv 2510.12773) in every epoch. One pass stores them; all layers' routers then
train together under `vmap`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxllm.models import ModelConfig
from jaxllm.routing.config import FitConfig
from jaxllm.routing.counts import CLASSES
from jaxllm.routing.forward import pad_rows, sweep
from jaxllm.routing.problems import Reading
from jaxllm.routing.router import RouterConfig, init_routers, router_logits


class Features(NamedTuple):
    """What routers read along labelled routes: pooled `[N, L, W, D]`, bool held `[N, W]`, labels int8 `[N, L]`."""

    pooled: Any
    held: Any
    labels: Any


def collect(params: Any, model: ModelConfig, read: Sequence[Reading], counts: np.ndarray, config: RouterConfig, *,
            batch: int, chunk: int, bucket: int) -> Features:
    """One pass over what routers read, each along its labelled route `counts` `[N, L]`."""
    pooled, held = [], []
    for start in range(0, len(read), batch):
        part = read[start:start + batch]
        tokens, lengths = pad_rows([r.tokens for r in part], batch, bucket)
        prompts, routes = np.ones(batch, np.int32), np.zeros((batch, model.num_layers), np.int8)
        prompts[:len(part)], routes[:len(part)] = [r.prompt for r in part], counts[start:start + len(part)]
        swept = sweep(params, tokens, lengths, routes, model=model, chunk=chunk, prompt_lengths=prompts,
                      windows=config.windows, features=True)
        assert swept.features is not None
        pooled.append(np.asarray(swept.features)[:, :len(part)].swapaxes(0, 1))
        held.append(np.arange(config.windows) < prompts[:len(part), None])
    return Features(np.concatenate(pooled), np.concatenate(held), np.asarray(counts, np.int8))


def class_weights(labels: np.ndarray, beta: float) -> np.ndarray:
    """Weights float32 `[3]` by effective number (Cui et al. 2019): (1 - beta) / (1 - beta^n), of mean 1.

    A class without labels weighs nothing and is left out of the mean.
    """
    n = np.bincount(labels.ravel().astype(int), minlength=len(CLASSES)).astype(np.float64)
    weights = np.where(n > 0, (1 - beta) / np.maximum(1 - beta**np.maximum(n, 1), 1e-12), 0.0)
    return (weights / weights[n > 0].mean()).astype(np.float32)


def focal_loss(logits: jax.Array, labels: jax.Array, weights: jax.Array, gamma: float) -> jax.Array:
    """-alpha_c (1 - p_c)^gamma log p_c of float32 logits `[..., 3]` and labels int `[...]` (Lin et al. 2017)."""
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None].astype(jnp.int32), axis=-1)[..., 0]
    return -weights[labels] * (1 - jnp.exp(logp)) ** gamma * logp


def layer_logits(routers: Any, pooled: jax.Array, held: jax.Array) -> jax.Array:
    """Logits `[N, L, 3]` of all layers' routers for pooled `[N, L, W, D]`, held `[N, W]`."""
    return jax.vmap(router_logits, in_axes=(0, 1, None), out_axes=1)(routers, pooled, held)


def fit_routers(features: Features, router: RouterConfig, config: FitConfig) -> tuple[Any, dict[str, Any]]:
    """Routers, and how they did on the problems held out: see `agreement`.

    Args:
      features: of `collect`.
      router: shape.
      config: training.
    """
    n, layers, _, d = features.pooled.shape
    order = np.random.default_rng(config.seed).permutation(n)
    held_out = int(n * config.validation)
    train, test = order[held_out:], order[:held_out]
    weights = class_weights(features.labels[train], config.beta)
    per_epoch = max(len(train) // min(config.batch, len(train)), 1)
    total = per_epoch * config.epochs
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, min(config.warmup, total // 4),
                                                  total)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    key = jax.random.key(config.seed)
    routers = init_routers(router, layers, d, key)
    state = (routers, optimizer.init(routers))
    data = Features(*(jnp.asarray(x[train]) for x in features))
    losses = []
    for epoch in range(config.epochs):
        state, loss = _epoch(state, data, jnp.asarray(weights), jax.random.fold_in(key, epoch + 1), optimizer=optimizer,
                             batch=min(config.batch, len(train)), gamma=config.gamma)
        losses.append(loss)
    report: dict[str, Any] = {
        "labels": {name: int((features.labels == i).sum()) for i, name in enumerate(CLASSES)},
        "class_weights": weights.tolist(), "loss": [float(x) for x in losses], "train": len(train)}
    for name, rows in (("train", train), ("validation", test)):
        if len(rows):
            logits = np.asarray(layer_logits(state[0], jnp.asarray(features.pooled[rows]),
                                             jnp.asarray(features.held[rows])))
            report[f"{name}_agreement"] = agreement(logits.argmax(-1), features.labels[rows])
    return state[0], report


@functools.partial(jax.jit, static_argnames=("optimizer", "batch", "gamma"), donate_argnames=("state",))
def _epoch(state: Any, data: Features, weights: jax.Array, key: jax.Array, *, optimizer: optax.GradientTransformation,
           batch: int, gamma: float) -> tuple[Any, jax.Array]:
    """One pass over the rows in a random order; the last rows that fill no batch wait for another epoch."""
    rows = jax.random.permutation(key, len(data.labels))
    rows = rows[:len(rows) // batch * batch].reshape(-1, batch)

    def loss(routers: Any, index: jax.Array) -> jax.Array:
        logits = layer_logits(routers, data.pooled[index], data.held[index])
        return jnp.mean(focal_loss(logits, data.labels[index], weights, gamma))

    def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        routers, moments = state
        value, grads = jax.value_and_grad(loss)(routers, index)
        updates, moments = optimizer.update(grads, moments, routers)
        return (optax.apply_updates(routers, updates), moments), value

    state, losses = lax.scan(step, state, rows)
    return state, jnp.mean(losses)


def agreement(chosen: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Share of decisions `[N, L]` that are the labels', F1 of each class and their mean, and what saying "once" gives.

    F1 of a class that is neither labelled nor chosen is left out.
    """
    f1 = {}
    for i, name in enumerate(CLASSES):
        hit, said, true = ((chosen == i) & (labels == i)).sum(), (chosen == i).sum(), (labels == i).sum()
        if said + true:
            f1[name] = float(2 * hit / (said + true))
    return {"accuracy": float((chosen == labels).mean()), "always_once": float((labels == 1).mean()), "f1": f1,
            "macro_f1": float(np.mean(list(f1.values())))}
