"""Policy losses on log-probabilities, the log-probabilities, and both as a loss for `training.make_step`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxllm import models
from jaxllm.config import ConfigError, check, nearest
from jaxllm.models import ModelConfig, api
from jaxllm.rl.advantages import Aggregation, Normalization
from jaxllm.rl.batch import RLBatch
from jaxllm.training import router_losses
from jaxllm.training.losses import Head, by_pieces

Loss = Literal["cispo", "grpo", "dapo", "gspo", "gspo_token", "reinforce"]
Ratio = Literal["bypass", "decoupled"]
Pair = tuple[jax.Array, jax.Array]

# Lower and upper clip of the ratio around 1, of the papers that the losses are from. ScaleRL took 4e-3 and 5e-3 for
# gspo.
CLIPS = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "gspo_token": (3e-4, 4e-4)}
# Differences of log-probabilities beyond this are taken as this: exp stays finite, and so does the loss.
MAX_LOG_RATIO = 20.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is maximised. The defaults are ScaleRL's. Hashable.

    Attributes:
      loss: `cispo` -sg(min(r, eps_max)) A log pi; `grpo` and `dapo` -min(r A, clip(r) A), apart in their clips only;
        `gspo` the same with the sample's r, the geometric mean of its tokens' ratios; `gspo_token` with gradients by
        token; `reinforce` -A log pi.
      eps_low, eps_high: r is clipped to [1 - eps_low, 1 + eps_high]; None takes the loss's own, see `CLIPS`.
      eps_max: upper cut of cispo's ratio.
      dual_clip: bound on r for negative advantages, above 1; None for none (all but cispo and reinforce).
      aggregation: what counts as one in the mean, see `token_weights`.
      normalization: of advantages, see `group_advantages`.
      advantage_eps: added to the standard deviation there.
      drop_zero_variance: leave out prompts whose samples all have one reward.
      temperature: the sampler's; logits are divided by it here too.
      ratio: `bypass` r = policy / sampler; `decoupled` r = policy / old, times min(old / sampler, tis_cap) without
        gradient, where old is the trainer's policy before the first update on the batch.
      tis_cap: that cap.
      kl_coef: weight of the k3 estimate of the divergence from a reference policy, 0 for none.
    """

    loss: Loss = "cispo"
    eps_low: float | None = None
    eps_high: float | None = None
    eps_max: float = 5.0
    dual_clip: float | None = None
    aggregation: Aggregation = "prompt"
    normalization: Normalization = "batch"
    advantage_eps: float = 1e-4
    drop_zero_variance: bool = True
    temperature: float = 1.0
    ratio: Ratio = "bypass"
    tis_cap: float = 2.0
    kl_coef: float = 0.0

    def __post_init__(self) -> None:
        for field, names in (("loss", Loss), ("aggregation", Aggregation), ("normalization", Normalization),
                             ("ratio", Ratio)):
            value = getattr(self, field)
            check(value in get_args(names), field, value, nearest(str(value), get_args(names)))
        for field in ("eps_max", "temperature", "tis_cap"):
            check(getattr(self, field) > 0, field, getattr(self, field), "must be above 0")
        for field in ("advantage_eps", "kl_coef"):
            check(getattr(self, field) >= 0, field, getattr(self, field), "must be at least 0")
        for field in ("eps_low", "eps_high"):
            value = getattr(self, field)
            check(value is None or self.loss in CLIPS, field, value,
                  f"{self.loss} doesn't clip by it; leave it out" + "; cispo has eps_max" * (self.loss == "cispo"))
            check(value is None or value >= 0, field, value, "must be at least 0")
        check(self.dual_clip is None or self.loss in CLIPS, "dual_clip", self.dual_clip,
              f"{self.loss} doesn't clip by it; leave it out")
        check(self.dual_clip is None or self.dual_clip > 1, "dual_clip", self.dual_clip, "must be above 1")

    @property
    def clips(self) -> tuple[float, float]:
        """`eps_low` and `eps_high` as they are used; of a loss that clips."""
        low, high = CLIPS[self.loss]
        return low if self.eps_low is None else self.eps_low, high if self.eps_high is None else self.eps_high


def rl_loss(model_config: ModelConfig, config: LossConfig):
    """The policy loss of an `RLBatch`, for `training.make_step`; with a mixture's router losses."""
    def loss_fn(params: Any, batch: RLBatch, key: jax.Array):
        del key
        out = hidden_states(params, model_config, batch)
        logp, entropy = logprobs(params, model_config, out.hidden, batch.tokens, config.temperature, entropy=True)
        total, count, metrics = policy_loss(logp, batch, config)
        metrics["rl/entropy"] = jnp.sum(entropy * batch.loss_mask), jnp.sum(batch.loss_mask)
        total, further = router_losses(model_config, out.aux, total, count)
        return total, count, metrics | further

    return loss_fn


def hidden_states(params: Any, model_config: ModelConfig, batch: RLBatch) -> Any:
    """The model's output on a batch, without its head; a mixture's tokens take the experts of `batch.routes`."""
    routes = None if batch.routes is None else jnp.moveaxis(batch.routes, 2, 0)  # [B, T, L, k] -> [L, B, T, k]
    return models.apply(params, model_config, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids,
                        head=False, routes=routes)


def policy_loss(logprobs: jax.Array, batch: RLBatch,
                config: LossConfig) -> tuple[jax.Array, jax.Array, dict[str, Pair]]:
    """Sum of the losses of all tokens by their weights, sum of weights, metrics as (sum, denominator) pairs.

    Args:
      logprobs: float32 `[B, T]`, log-probability of token t under the policy, at the sampler's temperature.
      batch: one sample to a row.
      config: which loss. Aggregation and advantages are in the batch already.

    Metrics are means over sampled tokens, those of prompts that don't count too: `rl/ratio` and `rl/ratio_square` of
    what the loss uses (effective share of samples = ratio^2 / ratio_square), `rl/ratio_outside` the share of tokens
    with policy / sampler outside [0.9, 1.1], `rl/mismatch_k1` and `rl/mismatch_k3` two estimates of KL(sampler ||
    policy), `rl/staleness`. `rl/clipped` is over tokens with a weight, `rl/kl` and `rl/tis_weight` where they apply.
    """
    mask, weights, advantages = batch.loss_mask, batch.weights, batch.advantages
    stop = jax.lax.stop_gradient

    def difference(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(mask > 0, jnp.clip(a - b, -MAX_LOG_RATIO, MAX_LOG_RATIO), 0.0)

    def mean(x: jax.Array, by: jax.Array = mask) -> Pair:
        return jnp.sum(stop(x) * by), jnp.sum(by)

    drift = difference(logprobs, batch.sampler_logprobs)
    metrics = {"rl/mismatch_k1": mean(-drift), "rl/mismatch_k3": mean(_k3(drift)),
               "rl/ratio_outside": mean(jnp.abs(jnp.exp(drift) - 1) > 0.1), "rl/staleness": mean(batch.staleness)}
    if config.ratio == "bypass":
        log_ratio, truncated = drift, None
    else:
        old = stop(logprobs if batch.old_logprobs is None else batch.old_logprobs)
        log_ratio = difference(logprobs, old)
        truncated = jnp.minimum(jnp.exp(difference(old, batch.sampler_logprobs)), config.tis_cap)
        metrics["rl/tis_weight"] = mean(truncated)

    if config.loss in ("gspo", "gspo_token"):
        length = jnp.maximum(jnp.sum(mask, 1, keepdims=True), 1)
        whole = jnp.sum(log_ratio * mask, 1, keepdims=True) / length
        by_token = config.loss == "gspo_token"  # the sample's value, the token's gradient
        log_ratio = jnp.where(mask > 0, stop(whole) + log_ratio - stop(log_ratio) if by_token else whole, 0.0)
    ratio = jnp.exp(log_ratio)

    if config.loss == "reinforce":
        loss, clipped = -advantages * logprobs, jnp.zeros_like(ratio)
    elif config.loss == "cispo":
        loss = -stop(jnp.minimum(ratio, config.eps_max)) * advantages * logprobs
        clipped = ratio > config.eps_max
    else:
        loss, clipped = _clipped(ratio, advantages, *config.clips, config.dual_clip)
    if truncated is not None:
        loss = truncated * loss
    if config.kl_coef:
        if batch.reference_logprobs is None:
            raise ConfigError(f"kl_coef={config.kl_coef!r}: needs reference_logprobs in the batch, or 0")
        kl = _k3(difference(batch.reference_logprobs, logprobs))
        loss = loss + config.kl_coef * kl
        metrics["rl/kl"] = mean(kl)
    metrics |= {"rl/ratio": mean(ratio), "rl/ratio_square": mean(ratio**2),
                "rl/clipped": mean(clipped, (weights > 0).astype(jnp.float32))}
    return jnp.sum(loss * weights), jnp.sum(weights), metrics


def _clipped(ratio: jax.Array, advantages: jax.Array, low: float, high: float, dual: float | None) -> Pair:
    """The clipped surrogate's loss, and where its gradient is cut; `[B, T]`."""
    objective = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - low, 1 + high) * advantages)
    cut = jnp.where(advantages > 0, ratio > 1 + high, (advantages < 0) & (ratio < 1 - low))
    if dual is not None:
        objective = jnp.where(advantages < 0, jnp.maximum(objective, dual * advantages), objective)
        cut |= (advantages < 0) & (ratio > dual)
    return -objective, cut


def _k3(log_ratio: jax.Array) -> jax.Array:
    """Schulman's k3 of log(q / p), for samples of p: unbiased for KL(p || q), and never negative."""
    return jnp.expm1(log_ratio) - log_ratio


def logprobs(params: Any, config: ModelConfig, hidden: jax.Array, tokens: jax.Array, temperature: float = 1.0,
             *, entropy: bool = False) -> Any:
    """Log-probability of every token given those before it, float32 `[B, T]`; with `entropy`, (that, entropy `[B, T]`).

    Args:
      params, config: the model, for its head.
      hidden: `[B, T, D]`, normalised; row t - 1 predicts token t. The first token of a row has 0.
      tokens: int32 `[B, T]`.
      temperature: divides the logits, as it does in the sampler.
      entropy: also the entropy, in nats and without a gradient, of the distribution that token t was drawn from.

    Where it would be large, `[B, T, V]` never exists, in the backward pass neither.
    """
    def one(head: Head, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        logits = head(hidden) / temperature
        normalizer = jax.nn.logsumexp(logits, axis=-1)
        found = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] - normalizer
        if not entropy:
            return (found,)
        logits, normalizer = jax.lax.stop_gradient((logits, normalizer))
        return found, normalizer - jnp.sum(jnp.exp(logits - normalizer[..., None]) * logits, axis=-1)

    def local(head: Head, hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
        return by_pieces(functools.partial(one, head), head, hidden, targets)

    # All rows go through the head, the last for nothing: T - 1 of them would not divide over a mesh.
    out = api.with_head(local, params, config, hidden, jnp.roll(tokens, -1, axis=1))
    found = tuple(jnp.roll(x, 1, axis=1).at[:, 0].set(0.0) for x in out)
    return found if entropy else found[0]
