"""From rewards to advantages and token weights, in numpy on the host, where the whole batch is seen at once.

Both need sums over prompts and over the batch, which a micro-batch or one device's rows don't have. What comes out
belongs to single tokens, so a loss may be split in any way and still add up.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from jaxllm.config import check, nearest

Normalization = Literal["none", "group", "batch"]
Aggregation = Literal["token", "sample", "prompt"]


def group_advantages(rewards: np.ndarray, group: np.ndarray, normalization: Normalization = "batch",
                     eps: float = 1e-4, drop_zero_variance: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """How much better each sample did than the others of its prompt, float32 `[B]`, and which count, bool `[B]`.

    Args:
      rewards: `[B]`, of one sample each.
      group: int `[B]`, the sample's prompt; any numbers, groups of any sizes, -1 for padding rows.
      normalization: divide the differences from the group's mean by nothing (Dr. GRPO), by the standard deviation of
        the `group` (GRPO), or by that of all advantages of the `batch` (ScaleRL). Both are of the population: divided
        by n, not n - 1.
      eps: added to the standard deviation.
      drop_zero_variance: leave out prompts whose samples all have one reward, from the batch's deviation too. There is
        nothing to learn from them, and counted in the mean they would make the update smaller.

    Without a sample left, advantages are 0.
    """
    names = get_args(Normalization)
    check(normalization in names, "normalization", normalization, nearest(str(normalization), names))
    rewards, group = np.asarray(rewards, np.float64), np.asarray(group)
    real = group >= 0
    _, index = np.unique(np.where(real, group, -1), return_inverse=True)  # padding is a group of its own
    size = np.bincount(index)
    low, high = np.full(len(size), np.inf), np.full(len(size), -np.inf)
    np.minimum.at(low, index, rewards)
    np.maximum.at(high, index, rewards)
    keep = real & (low < high)[index] if drop_zero_variance else real
    centred = rewards - (np.bincount(index, rewards) / size)[index]
    # Equal rewards may differ from their own mean in the last bit, which a small deviation would blow up.
    centred[(low == high)[index] | ~keep] = 0.0
    if normalization == "group":
        centred /= np.sqrt(np.bincount(index, centred**2) / size)[index] + eps
    elif normalization == "batch":
        # Advantages of a group add up to 0, so their mean over the batch is 0 too.
        centred /= np.sqrt(np.sum(centred**2) / max(np.count_nonzero(keep), 1)) + eps
    return centred.astype(np.float32), keep


def token_weights(loss_mask: np.ndarray, group: np.ndarray, keep: np.ndarray,
                  aggregation: Aggregation = "prompt") -> np.ndarray:
    """The weight of each token in the loss, float32 `[B, T]`. Their sum is what the sum of losses is divided by.

    Args:
      loss_mask: `[B, T]`, 1 on sampled tokens.
      group: int `[B]`, the sample's prompt.
      keep: bool `[B]`; other rows weigh nothing, and so leave the denominator.
      aggregation: every `token` weighs 1 (DAPO); the tokens of a `sample` together (GRPO), 1 / |y_i| each; those of
        all samples of a `prompt` together (ScaleRL), 1 / sum_g |y_g| each.

    Samples or prompts without a sampled token don't count. The first token of a row weighs nothing: no row predicts it.
    """
    names = get_args(Aggregation)
    check(aggregation in names, "aggregation", aggregation, nearest(str(aggregation), names))
    mask = np.asarray(loss_mask, np.float64) * np.asarray(keep, bool)[:, None]
    mask[:, 0] = 0.0
    count = mask.sum(1)
    if aggregation == "token":
        count = np.ones_like(count)
    elif aggregation == "prompt":
        _, index = np.unique(group, return_inverse=True)
        count = np.bincount(index, count)[index]
    return (mask / np.where(count > 0, count, 1.0)[:, None]).astype(np.float32)


def group_report(rewards: np.ndarray, group: np.ndarray, keep: np.ndarray) -> dict[str, float]:
    """Numbers of the batch that only the host sees whole: rewards, and how many prompts are left to learn from."""
    rewards, group, keep = np.asarray(rewards), np.asarray(group), np.asarray(keep, bool)
    real = group >= 0
    prompts, kept = len(np.unique(group[real])), len(np.unique(group[real & keep]))
    return {"rl/reward": float(np.mean(rewards[real])) if prompts else 0.0, "rl/kept_prompts": float(kept),
            "rl/kept_share": kept / max(prompts, 1)}
