"""The batch a policy is trained on: what was sampled, by whom, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from flax import struct

from jaxllm.config import check
from jaxllm.rl.advantages import group_advantages, group_report, token_weights

if TYPE_CHECKING:  # losses takes batches
    from jaxllm.rl.losses import LossConfig


@struct.dataclass
class RLBatch:
    """One sample (prompt, response, whatever the environment put in) to a row; rows of padding to fill up.

    Every array is `[B, T]` or longer, those that say something of the whole row too: one sharding then holds for all
    of them, rows and tokens may be split in any way, and a turn may have an advantage of its own.

    Attributes:
      tokens: int32 `[B, T]`.
      positions: int32 `[B, T]`.
      segment_ids: int32 `[B, T]`, 1 on the sample, 0 on padding.
      loss_mask: float32 `[B, T]`, 1 on tokens the policy sampled; 0 on prompt, tool results, injected tokens, padding.
      sampler_logprobs: float32 `[B, T]`, log-probability of token t under the policy that sampled it, at the sampler's
        temperature; 0 elsewhere.
      advantages: float32 `[B, T]`.
      weights: float32 `[B, T]` of `token_weights`; their sum is the loss's denominator.
      staleness: float32 `[B, T]`, updates the trainer has made since the weights that sampled token t.
      old_logprobs: float32 `[B, T]` under the trainer's policy before the first update on this batch (ratio
        "decoupled"); None takes the policy as it is, right for one update a batch.
      reference_logprobs: float32 `[B, T]` under the reference policy, for the KL term.
      routes: int32 `[B, T, L, k]`, experts the sampler took, to be taken again; -1 where the router is to choose.
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    loss_mask: Any
    sampler_logprobs: Any
    advantages: Any
    weights: Any
    staleness: Any
    old_logprobs: Any = None
    reference_logprobs: Any = None
    routes: Any = None


def assemble(config: LossConfig, tokens: np.ndarray, lengths: np.ndarray, loss_mask: np.ndarray,
             sampler_logprobs: np.ndarray, versions: np.ndarray, rewards: np.ndarray, group: np.ndarray, *,
             version: int, old_logprobs: np.ndarray | None = None, reference_logprobs: np.ndarray | None = None,
             routes: np.ndarray | None = None) -> tuple[RLBatch, dict[str, float]]:
    """A numpy batch of everything the update learns from, and `group_report` of it.

    Args:
      config: normalization and aggregation.
      tokens: int `[B, T]`, padded on the right.
      lengths: int `[B]`, tokens of each row; 0 for a row of padding.
      loss_mask, sampler_logprobs: `[B, T]`, as in `RLBatch`.
      versions: int `[B, T]`, version of the weights that sampled each token.
      rewards: `[B]`.
      group: int `[B]`, the prompt's index in the batch, -1 for padding rows and samples to leave out. All
        other samples of a prompt must be here.
      version: of the trainer's weights now.
      old_logprobs, reference_logprobs, routes: as in `RLBatch`.
    """
    b, t = tokens.shape
    for name, value in (("loss_mask", loss_mask), ("sampler_logprobs", sampler_logprobs), ("versions", versions)):
        check(value.shape == (b, t), name, value.shape, f"must be {(b, t)}, as tokens")
    for name, value in (("lengths", lengths), ("rewards", rewards), ("group", group)):
        check(value.shape == (b,), name, value.shape, f"must be {(b,)}, one for each row of tokens")
    scored = rewards[group >= 0]
    check(bool(np.isfinite(scored).all()), "rewards", scored[~np.isfinite(scored)],
          "must be finite; group -1 leaves a sample out")
    positions = np.broadcast_to(np.arange(t, dtype=np.int32), (b, t))
    inside = positions < lengths[:, None]
    mask = loss_mask * (inside & (positions > 0) & (group >= 0)[:, None])
    advantages, keep = group_advantages(rewards, group, config.normalization, config.advantage_eps,
                                        config.drop_zero_variance)
    batch = RLBatch(
        tokens=tokens.astype(np.int32), positions=positions.copy(), segment_ids=inside.astype(np.int32),
        loss_mask=mask.astype(np.float32), sampler_logprobs=np.where(mask > 0, sampler_logprobs, 0).astype(np.float32),
        advantages=np.repeat(advantages[:, None], t, 1), weights=token_weights(mask, group, keep, config.aggregation),
        staleness=np.where(mask > 0, version - versions, 0).astype(np.float32), old_logprobs=old_logprobs,
        reference_logprobs=reference_logprobs, routes=routes)
    return batch, group_report(rewards, group, keep)
