"""Losses as (sum, denominator) pairs, so that accumulation and sharding stay exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.data.batch import Batch
from jaxllm.models import ModelConfig, RouterStats, api

Head = Callable[[jax.Array], jax.Array]  # hidden `[..., D]` to float32 logits `[..., V]`


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p(target), float32 `[...]`, of logits `[..., V]` and int targets `[...]`."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


# More logits than this on one device are never in memory at once: the loss goes piece by piece.
MAX_LOGITS = 1 << 26


def token_losses(params: Any, config: ModelConfig, hidden: jax.Array,
                 targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each token and whether the likeliest is right, both float32 `[B, T]`.

    Args:
      params, config: the model, for its head.
      hidden: `[B, T, D]`, normalised; row t predicts `targets[:, t]`.
      targets: int `[B, T]`.

    Where it would be large, `[B, T, V]` never exists: pieces of T are scanned, and the backward pass makes each
    piece's logits again.
    """
    loss, right = api.with_head(_token_losses, params, config, hidden, targets)
    return loss, right


def _token_losses(head: Head, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    def one(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        logits = head(hidden)
        return cross_entropy(logits, targets), (jnp.argmax(logits, -1) == targets).astype(jnp.float32)

    return by_pieces(one, head, hidden, targets)


def by_pieces(one: Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]], head: Head, hidden: jax.Array,
              targets: jax.Array) -> tuple[jax.Array, ...]:
    """`one(hidden, targets)`, arrays `[B, T]`, on pieces of T where the logits of `head` would pass `MAX_LOGITS`.

    The backward pass makes each piece's logits again. For use inside `models.api.with_head`.
    """
    b, t = targets.shape
    vocab = jax.eval_shape(head, hidden).shape[-1]
    pieces = min(t, -(-b * t * vocab // MAX_LOGITS))
    if pieces <= 1:
        return one(hidden, targets)
    length = -(-t // pieces)
    pad = length * pieces - t

    def split(x: jax.Array) -> jax.Array:  # [B, T, ...] -> [pieces, B, length, ...]
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, pieces, length, *x.shape[2:]), 1, 0)

    out = jax.lax.map(lambda piece: jax.checkpoint(one)(*piece), (split(hidden), split(targets)))
    return tuple(jnp.moveaxis(x, 0, 1).reshape(b, length * pieces)[:, :t] for x in out)


def router_losses(
    config: ModelConfig, aux: RouterStats | None, total: jax.Array, count: jax.Array,
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """The sum of losses with a mixture's own losses on top, and its `moe/...` metrics as (sum, denominator) pairs.

    The added loss is `balance_coef` and `z_coef` times the mean over layers, weighted by `count` so that it is divided
    out as one term of the mean loss. `moe/load_cv` is the standard deviation of the experts' loads over their mean, of
    each layer and of all on average, `moe/load_max` the busiest expert's load over the mean. Balance and z are those of
    the whole batch, or of each part of it under gradient accumulation. A dense model's total (`aux` None) comes back as
    it is.
    """
    if aux is None:
        return total, {}
    balance, z = jnp.mean(aux.balance), jnp.mean(aux.z)
    added = config.balance_coef * balance + config.z_coef * z
    even = jnp.maximum(jnp.mean(aux.load, axis=-1), 1e-8)  # [L], as all that follow
    spread, most = jnp.std(aux.load, axis=-1) / even, jnp.max(aux.load, axis=-1) / even
    means = {"moe/balance": balance, "moe/z": z, "moe/load_cv": jnp.mean(spread), "moe/loss": added}
    for layer in range(aux.load.shape[0]):
        means |= {f"moe/load_cv_layer_{layer}": spread[layer], f"moe/load_max_layer_{layer}": most[layer]}
    return total + count * added, {name: (count * value, count) for name, value in means.items()}


def causal_loss(config: ModelConfig):
    """Next-token loss on the tokens with a loss weight, within their own document; with a mixture's router losses."""
    def loss_fn(params: Any, batch: Batch, key: jax.Array):
        del key
        total, count, metrics, aux = _next_token(params, config, batch)
        total, further = router_losses(config, aux, total, count)
        return total, count, metrics | further

    return loss_fn


def causal_objective(config: ModelConfig):
    """The causal objective as the loop takes it."""
    from jaxllm.training.feed import Objective

    return Objective(loss=causal_loss(config),
                     validate=lambda params, batch, key: _next_token(params, config, batch)[:2])


def _next_token(params: Any, config: ModelConfig, batch: Batch):
    """Sum of losses, their weight, metrics, router statistics."""
    out = models.apply(params, config, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids,
                       head=False)
    # Row i predicts token i + 1; the first token of a document has no row that predicts it. All rows stay: T - 1 of
    # them would not divide over a mesh.
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    weight = jnp.pad(batch.loss_weights[:, 1:] * same, ((0, 0), (0, 1)))
    loss, right = token_losses(params, config, out.hidden, jnp.roll(batch.tokens, -1, axis=1))
    total, count = jnp.sum(loss * weight), jnp.sum(weight)
    return total, count, {"train/accuracy": (jnp.sum(right * weight), count)}, out.aux
