"""The masked-diffusion objective of LLaDA (arXiv 2502.09992): corruption, loss, likelihood bound.

Pretraining masks any token, SFT only the response; both are read off `Batch.loss_weights`. Beside
LLaDA's uniform masking a share of rows can be masked as semi-autoregressive decoders meet them
(block-wise SFT, arXiv 2508.19529): clean up to a cut, partly masked in a window, masked beyond.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.config import check
from jaxllm.data.batch import Batch
from jaxllm.models import ModelConfig, RouterStats
from jaxllm.training.losses import router_losses, token_losses


@dataclasses.dataclass(frozen=True)
class MaskedDiffusionConfig:
    """How rows are masked.

    Attributes:
      min_ratio: smallest masking ratio t of a row; 1/t weights the loss.
      block_share: share of rows masked block-wise, 0 for LLaDA's objective alone.
      block_length: tokens of the partly masked window of such a row.
      whole_share: share of block-wise rows whose window is masked whole.
      end_share: share of block-wise rows whose window holds the answer's end (its first EOS), which windows
        at random places seldom meet.
      cut_share: share of rows that end at a random place right of their last learned token, so that
        predictions do not come to hang on how many masks follow (LLaDA trains on random lengths too).
      frozen_share: share of rows in which known tokens see nothing to their right, so that the keys and
        values which caching decoders keep stay what they were when a token was committed.
      stratified: spread t over the batch evenly instead of drawing each row's alone (same mean, less
        variance).
    """

    min_ratio: float = 1e-3
    block_share: float = 0.0
    block_length: int = 32
    whole_share: float = 0.25
    end_share: float = 0.0
    cut_share: float = 0.0
    frozen_share: float = 0.0
    stratified: bool = True

    def __post_init__(self) -> None:
        check(0 < self.min_ratio < 1, "objective.min_ratio", self.min_ratio, "must lie in (0, 1)")
        check(0 <= self.block_share <= 1, "objective.block_share", self.block_share, "must lie in [0, 1]")
        for name in ("whole_share", "end_share", "cut_share", "frozen_share"):
            check(0 <= getattr(self, name) <= 1, f"objective.{name}", getattr(self, name), "must lie in [0, 1]")
        check(self.block_length >= 1, "objective.block_length", self.block_length, "must be at least 1")


def corrupt(
    key: jax.Array, maskable: jax.Array, config: MaskedDiffusionConfig, answers: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Draw which tokens are masked, and what each counts.

    Args:
      key: PRNG key.
      maskable: bool `[B, T]`, tokens that may be masked.
      config: ratios and shares.
      answers: int `[B]`, maskable tokens up to and including the first EOS; windows start within them. Needed for
        `end_share`; without it windows start anywhere in the maskable tokens.

    Returns:
      masked: bool `[B, T]`. weight: float32 `[B, T]`, 1/t on a masked token of a uniform row; on a
      block-wise row the row's maskable count over its masked window tokens, so that both kinds of row
      weigh the same; 0 elsewhere. Expected weight of a row = its maskable count.
    """
    b, t = maskable.shape
    k_ratio, k_uniform, k_kind, k_cut, k_whole, k_block, k_shuffle = jax.random.split(key, 7)
    ratio = jax.random.uniform(k_ratio, (b,))
    if config.stratified:
        ratio = jax.random.permutation(k_shuffle, (ratio[0] + jnp.arange(b) / b) % 1.0)
    ratio = config.min_ratio + (1 - config.min_ratio) * ratio
    uniform = maskable & (jax.random.uniform(k_uniform, (b, t)) < ratio[:, None])
    uniform_weight = uniform / ratio[:, None]
    if config.block_share == 0:
        return uniform, uniform_weight

    count = jnp.sum(maskable, axis=1, keepdims=True)
    index = jnp.cumsum(maskable, axis=1) - 1  # place within the row's maskable tokens
    # Windows that would start up to block_length - 1 before the answer start with it, so that its first tokens are
    # learned at least as often as others; none starts behind its end, where decoders have stopped.
    span = count if answers is None else answers[:, None]
    before = config.block_length - 1
    start = jnp.maximum(jnp.floor(jax.random.uniform(k_cut, (b, 1)) * (span + before)) - before, 0)
    if config.end_share > 0 and answers is not None:
        k_which, k_back = jax.random.split(jax.random.fold_in(k_cut, 1))
        back = 1 + jnp.floor(jax.random.uniform(k_back, (b, 1)) * config.block_length)
        at_end = jax.random.uniform(k_which, (b, 1)) < config.end_share
        start = jnp.where(at_end, jnp.maximum(answers[:, None] - back, 0), start)
    inside = maskable & (index >= start) & (index < start + config.block_length)
    whole = jax.random.uniform(k_whole, (b, 1)) < config.whole_share
    window = inside & (whole | (jax.random.uniform(k_block, (b, t)) < ratio[:, None]))
    blockwise = window | (maskable & (index >= start + config.block_length))
    block_weight = window * (count / jnp.maximum(jnp.sum(window, axis=1, keepdims=True), 1))

    is_block = jax.random.uniform(k_kind, (b, 1)) < config.block_share
    return jnp.where(is_block, blockwise, uniform), jnp.where(is_block, block_weight, uniform_weight)


def cut(key: jax.Array, learned: jax.Array, segment_ids: jax.Array, share: float) -> jax.Array:
    """Segment ids `[B, T]` in which a `share` of rows ends, as padding, anywhere after its last `learned` token."""
    b, t = learned.shape
    k_row, k_end = jax.random.split(key)
    index = jnp.arange(t)
    first = jnp.max(jnp.where(learned, index + 1, 0), axis=1)  # the least length
    end = first + jnp.floor(jax.random.uniform(k_end, (b,)) * (t + 1 - first)).astype(jnp.int32)
    kept = (index < end[:, None]) | (jax.random.uniform(k_row, (b, 1)) >= share)
    return jnp.where(kept, segment_ids, 0)


def frozen(key: jax.Array, masked: jax.Array, share: float) -> jax.Array:
    """Bool `[B, T, T]`, what each row sees when in a `share` of rows known tokens see nothing to their right."""
    b, t = masked.shape
    free = jax.random.uniform(key, (b, 1)) >= share
    return (free | masked)[:, :, None] | jnp.tril(jnp.ones((t, t), bool))


def predictors(params: Any, config: ModelConfig, tokens: jax.Array, positions: jax.Array | None = None,
               segment_ids: jax.Array | None = None,
               visible: jax.Array | None = None) -> tuple[jax.Array, RouterStats | None]:
    """Hidden states `[B, T, D]` of which row i predicts token i, also for models that shift by one; and what a
    mixture's routers did."""
    out = models.apply(params, config, tokens, positions=positions, segment_ids=segment_ids, visible=visible,
                       head=False)
    return _unshifted(out.hidden, config, positions), out.aux


def _unshifted(hidden: jax.Array, config: ModelConfig, positions: jax.Array | None) -> jax.Array:
    if not config.shift_logits:
        return hidden
    shifted = jnp.concatenate([hidden[:, :1], hidden[:, :-1]], axis=1)
    if positions is None:
        return shifted
    # The first token of a packed document has only its own row; the one before belongs to another document.
    return jnp.where((positions == 0)[..., None], hidden, shifted)


def _seen(batch: Batch, masked: jax.Array, once: Sequence[int]) -> jax.Array | None:
    """Which of `once` (K ids) a row's learned tokens show, not being masked: bool `[B, T, K]`, alike for all t."""
    if not once:
        return None
    shown = (batch.loss_weights > 0) & ~masked
    named = jnp.any((batch.tokens[..., None] == jnp.array(once)) & shown[..., None], axis=1, keepdims=True)
    return jnp.broadcast_to(named, (*batch.tokens.shape, len(once)))


def masked_diffusion_loss(model: ModelConfig, config: MaskedDiffusionConfig, once: Sequence[int] = ()):
    """LLaDA's loss: cross-entropy on masked tokens over t, divided by the maskable tokens of the batch; a
    mixture's router losses on top.

    Tokens of `once` that a row's response shows are no choice for its masks, as in decoding with `DecodeConfig.once`;
    rows then hold one response each.
    """
    check(model.mask_id is not None, "model.mask_id", None, "a masked-diffusion model needs a mask token id")

    def loss_fn(params: Any, batch: Batch, key: jax.Array):
        maskable = batch.loss_weights > 0
        answers = None
        if model.eos_id is not None:
            ended = jnp.cumsum(maskable & (batch.tokens == model.eos_id), axis=1) > 0
            answers = jnp.minimum(jnp.sum(maskable & ~ended, axis=1) + 1, jnp.sum(maskable, axis=1))
        masked, weight = corrupt(key, maskable, config, answers)
        segments, visible = batch.segment_ids, None
        if config.cut_share > 0:
            segments = cut(jax.random.fold_in(key, 1), weight > 0, segments, config.cut_share)
        if config.frozen_share > 0:
            visible = frozen(jax.random.fold_in(key, 2), masked, config.frozen_share)
        noisy = jnp.where(masked, model.mask, batch.tokens)
        hidden, aux = predictors(params, model, noisy, batch.positions, segments, visible)
        loss, right = token_losses(params, model, hidden, batch.tokens, once, _seen(batch, masked, once))
        count = jnp.sum(batch.loss_weights)
        learned = (weight > 0).astype(jnp.float32)
        metrics = {"train/accuracy": (jnp.sum(right * learned), jnp.sum(learned))}
        total, further = router_losses(model, aux, jnp.sum(loss * weight * batch.loss_weights), count)
        return total, count, metrics | further

    return loss_fn


def elbo(params: Any, model: ModelConfig, batch: Batch, key: jax.Array, samples: int = 1,
         once: Sequence[int] = ()) -> tuple[jax.Array, jax.Array]:
    """Monte Carlo bound on -log p(response | prompt) in nats, as (sum, tokens) over the batch.

    LLaDA equation 6: for each row draw l uniformly from 1..L, mask exactly l of its L maskable tokens
    and weigh their cross-entropy by L / l; lower variance than drawing each token alone. Perplexity
    is exp(sum / tokens). `once` as in `masked_diffusion_loss`.
    """
    maskable = batch.loss_weights > 0
    count = jnp.sum(maskable, axis=1)

    def one(sample_key: jax.Array) -> jax.Array:
        k_number, k_order = jax.random.split(sample_key)
        u = (jax.random.uniform(k_number) + jnp.arange(len(count)) / len(count)) % 1.0
        number = jnp.minimum(1 + jnp.floor(u * count), jnp.maximum(count, 1))
        score = jnp.where(maskable, jax.random.uniform(k_order, maskable.shape), jnp.inf)
        rank = jnp.argsort(jnp.argsort(score, axis=1), axis=1)
        masked = maskable & (rank < number[:, None])
        noisy = jnp.where(masked, model.mask, batch.tokens)
        hidden = predictors(params, model, noisy, batch.positions, batch.segment_ids)[0]
        loss, _ = token_losses(params, model, hidden, batch.tokens, once, _seen(batch, masked, once))
        return jnp.sum(loss * masked * (count / number)[:, None])

    total = jnp.mean(jax.lax.map(one, jax.random.split(key, samples)))
    return total, jnp.sum(count).astype(jnp.float32)
