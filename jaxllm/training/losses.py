"""Losses as (sum, denominator) pairs, so that accumulation and sharding stay exact."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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


def token_losses(params: Any, config: ModelConfig, hidden: jax.Array, targets: jax.Array, once: Sequence[int] = (),
                 named: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of each token and whether the likeliest is right, both float32 `[B, T]`.

    Args:
      params, config: the model, for its head.
      hidden: `[B, T, D]`, normalised; row t predicts `targets[:, t]`.
      targets: int `[B, T]`.
      once: K token ids, and
      named: bool `[B, T, K]`, those that may not follow any more; a target always may.

    Where it would be large, `[B, T, V]` never exists: pieces of T are scanned, and the backward pass makes each
    piece's logits again.
    """
    local = functools.partial(_token_losses, tuple(once))
    loss, right = api.with_head(local, params, config, hidden, (targets, named))
    return loss, right


def _token_losses(once: tuple[int, ...], head: Head, hidden: jax.Array, asked: Any) -> tuple[jax.Array, ...]:
    def one(hidden: jax.Array, asked: tuple[jax.Array, jax.Array | None]) -> tuple[jax.Array, ...]:
        logits, (targets, named) = head(hidden), asked
        if named is not None:
            barred = _spread(named & (jnp.array(once) != targets[..., None]), once, logits.shape[-1])
            logits = jnp.where(barred, -jnp.inf, logits)
        return cross_entropy(logits, targets), (jnp.argmax(logits, -1) == targets).astype(jnp.float32)

    return by_pieces(one, head, hidden, asked)


def _spread(marked: jax.Array, ids: tuple[int, ...], vocab: int) -> jax.Array:
    """Marks of K token ids, bool `[..., K]`, among the whole vocabulary `[..., V]`."""
    if ids == tuple(range(ids[0], ids[-1] + 1)):  # tokens that were added together; ten times as quick
        return jnp.pad(marked, (*((0, 0),) * (marked.ndim - 1), (ids[0], vocab - ids[-1] - 1)))
    return jnp.zeros((*marked.shape[:-1], vocab), bool).at[..., jnp.array(ids)].set(marked)


def by_pieces(one: Callable[[jax.Array, Any], tuple[jax.Array, ...]], head: Head, hidden: jax.Array,
              targets: Any) -> tuple[jax.Array, ...]:
    """`one(hidden, targets)`, arrays `[B, T]`, on pieces of T where the logits of `head` would pass `MAX_LOGITS`.

    Targets may be several arrays `[B, T, ...]`.

    The backward pass makes each piece's logits again. For use inside `models.api.with_head`.
    """
    b, t = hidden.shape[:2]
    vocab = jax.eval_shape(head, hidden).shape[-1]
    pieces = min(t, -(-b * t * vocab // MAX_LOGITS))
    if pieces <= 1:
        return one(hidden, targets)
    length = -(-t // pieces)
    pad = length * pieces - t

    def split(x: jax.Array) -> jax.Array:  # [B, T, ...] -> [pieces, B, length, ...]
        x = jnp.pad(x, ((0, 0), (0, pad), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(b, pieces, length, *x.shape[2:]), 1, 0)

    out = jax.lax.map(lambda piece: jax.checkpoint(one)(*piece), (split(hidden), jax.tree.map(split, targets)))
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


def causal_loss(config: ModelConfig, once: Sequence[int] = ()):
    """Next-token loss on the tokens with a loss weight, within their own document; with a mixture's router losses.

    Tokens of `once` that were learned earlier in the document cannot follow again, as where sampling bars them.
    """
    def loss_fn(params: Any, batch: Batch, key: jax.Array):
        del key
        total, count, metrics, aux = _next_token(params, config, batch, once)
        total, further = router_losses(config, aux, total, count)
        return total, count, metrics | further

    return loss_fn


def causal_objective(config: ModelConfig, once: Sequence[int] = ()):
    """The causal objective as the loop takes it; `once` as in `causal_loss`."""
    from jaxllm.training.feed import Objective

    return Objective(loss=causal_loss(config, once),
                     validate=lambda params, batch, key: _next_token(params, config, batch, once)[:2])


def _named_before(batch: Batch, once: Sequence[int]) -> jax.Array:
    """Which of `once` (K ids) the learned tokens of the document hold up to and with t: bool `[B, T, K]`."""
    fresh = jnp.pad(batch.segment_ids[:, 1:] != batch.segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    ids = jnp.array(once)

    def one(named: jax.Array, each: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        token, learned, fresh = (x[:, None] for x in each)
        named = named & ~fresh | learned & (token == ids)
        return named, named

    # A step a token beats the parallel prefix, which goes over all of it once for each power of two in T.
    steps = tuple(jnp.asarray(x).T for x in (batch.tokens, batch.loss_weights > 0, fresh))
    return jnp.moveaxis(jax.lax.scan(one, jnp.zeros((len(batch.tokens), len(once)), bool), steps)[1], 0, 1)


def _next_token(params: Any, config: ModelConfig, batch: Batch, once: Sequence[int]):
    """Sum of losses, their weight, metrics, router statistics."""
    out = models.apply(params, config, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids,
                       head=False)
    # Row i predicts token i + 1; the first token of a document has no row that predicts it. All rows stay: T - 1 of
    # them would not divide over a mesh.
    same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
    weight = jnp.pad(batch.loss_weights[:, 1:] * same, ((0, 0), (0, 1)))
    named = _named_before(batch, once) if once else None
    loss, right = token_losses(params, config, out.hidden, jnp.roll(batch.tokens, -1, axis=1), once, named)
    total, count = jnp.sum(loss * weight), jnp.sum(weight)
    return total, count, {"train/accuracy": (jnp.sum(right * weight), count)}, out.aux
