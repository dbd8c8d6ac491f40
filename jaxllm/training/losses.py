"""Losses as (sum, denominator) pairs, so that accumulation and sharding stay exact."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.data.batch import Batch
from jaxllm.models import ModelConfig


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p(target), float32 `[...]`, of logits `[..., V]` and int targets `[...]`."""
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def causal_loss(config: ModelConfig):
    """Next-token loss on the tokens with a loss weight, within their own document."""
    def loss_fn(params: Any, batch: Batch, key: jax.Array):
        del key
        out = models.apply(params, config, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids)
        # Row i predicts token i + 1; the first token of a document has no row that predicts it.
        same = batch.segment_ids[:, 1:] == batch.segment_ids[:, :-1]
        weight = batch.loss_weights[:, 1:] * same
        loss = cross_entropy(out.logits[:, :-1], batch.tokens[:, 1:])
        right = (jnp.argmax(out.logits[:, :-1], -1) == batch.tokens[:, 1:]).astype(jnp.float32)
        total, count = jnp.sum(loss * weight), jnp.sum(weight)
        return total, count, {"train/accuracy": (jnp.sum(right * weight), count)}

    return loss_fn


def causal_objective(config: ModelConfig):
    """The causal objective as the loop takes it."""
    from jaxllm.training.loop import Objective  # the loop imports this room's public names

    loss = causal_loss(config)
    return Objective(loss=loss, validate=lambda params, batch, key: loss(params, batch, key)[:2])
