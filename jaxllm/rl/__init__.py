"""Reinforcement learning on what a policy sampled itself: batches, group-relative advantages, losses.

Papers: ScaleRL and its CISPO with prompt mean (arXiv 2510.13786), GRPO (2402.03300), DAPO (2503.14476),
GSPO (2507.18071), Dr. GRPO (2503.20783).

Entry points: `LossConfig`, `assemble` (host: rewards to an `RLBatch`), `rl_loss` (what `training.make_step` takes).
`Rollouts` drives the generation engine, `make_batch` turns its episodes into rows, `Curriculum` says which prompts are
next. Below them `group_advantages`, `token_weights`, `logprobs` and `policy_loss`.
"""

from jaxllm.rl.advantages import group_advantages, group_report, token_weights
from jaxllm.rl.batch import RLBatch, assemble
from jaxllm.rl.curriculum import Curriculum
from jaxllm.rl.losses import LossConfig, logprobs, policy_loss, rl_loss
from jaxllm.rl.rollout import RolloutConfig, Rollouts, Thinking, make_batch

__all__ = ["Curriculum", "LossConfig", "RLBatch", "RolloutConfig", "Rollouts", "Thinking", "assemble",
           "group_advantages", "group_report", "logprobs", "make_batch", "policy_loss", "rl_loss", "token_weights"]
