"""Reinforcement learning on what a policy sampled itself: batches, group-relative advantages, losses.

Papers: ScaleRL and its CISPO with prompt mean (arXiv 2510.13786), GRPO (2402.03300), DAPO (2503.14476),
GSPO (2507.18071), Dr. GRPO (2503.20783).

Entry points: `LossConfig`, `assemble` (host: rewards to an `RLBatch`), `rl_loss` (what `training.make_step` takes).
Below them `group_advantages`, `token_weights`, `logprobs` and `policy_loss`.
"""

from jaxllm.rl.advantages import group_advantages, group_report, token_weights
from jaxllm.rl.batch import RLBatch, assemble
from jaxllm.rl.losses import LossConfig, logprobs, policy_loss, rl_loss

__all__ = ["LossConfig", "RLBatch", "assemble", "group_advantages", "group_report", "logprobs", "policy_loss",
           "rl_loss", "token_weights"]
