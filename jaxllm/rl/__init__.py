"""Reinforcement learning on what a policy sampled itself: batches, group-relative advantages, losses.

Papers: ScaleRL and its CISPO with prompt mean (arXiv 2510.13786), GRPO (2402.03300), DAPO (2503.14476),
GSPO (2507.18071), Dr. GRPO (2503.20783).

Entry points: `LossConfig`, `assemble` (host: rewards to an `RLBatch`), `rl_loss` (what `training.make_step` takes).
`RLConfig` and `train_policy` are a whole run, `Groups` and `Generator` its pipeline. `Rollouts` drives the generation
engine, `make_batch` turns its episodes into rows, `Curriculum` says which prompts are next. Below them
`group_advantages`, `token_weights`, `logprobs` and `policy_loss`. Reward models: `reward_run` trains one, `RewardModel`
scores text and `scores` tokens. Not here: multi-turn agents, a critic, several processes.
"""

from jaxllm.rl.advantages import group_advantages, group_report, token_weights
from jaxllm.rl.batch import RLBatch, assemble
from jaxllm.rl.config import EvaluationConfig, PipelineConfig, PromptsConfig, RewardConfig, RLConfig
from jaxllm.rl.curriculum import Curriculum
from jaxllm.rl.feed import RLFeed, rl_objective
from jaxllm.rl.generator import Generator
from jaxllm.rl.groups import Group, Groups
from jaxllm.rl.losses import LossConfig, logprobs, policy_loss, rl_loss
from jaxllm.rl.reward_model import (
    PreferenceConfig,
    RewardModel,
    RewardTrainConfig,
    pair_losses,
    preference_objective,
    reward_run,
    scores,
)
from jaxllm.rl.rollout import RolloutConfig, Rollouts, Thinking, make_batch
from jaxllm.rl.run import measure_policy, train_policy

__all__ = ["Curriculum", "EvaluationConfig", "Generator", "Group", "Groups", "LossConfig", "PipelineConfig",
           "PreferenceConfig", "PromptsConfig", "RLBatch", "RLConfig", "RLFeed", "RewardConfig", "RewardModel",
           "RewardTrainConfig", "RolloutConfig", "Rollouts", "Thinking", "assemble", "group_advantages", "group_report",
           "logprobs", "make_batch", "measure_policy", "pair_losses", "policy_loss", "preference_objective",
           "reward_run", "rl_loss", "rl_objective", "scores", "token_weights", "train_policy"]
