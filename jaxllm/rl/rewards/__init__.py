"""Rewards: verifiers, a guard around whatever a reward may do, shaping by length, and HERO.

Entry points: `Sample`, `Reward`; `ExactMatch`, `RegexMatch`, `MathVerify`, `CodeReward`, `TaskReward`, `load_reward`;
`RewardGuard`, `GuardConfig`, `Scores`, `RewardError`, `score`; `overlong`, `length_penalty`, `rescale`;
`hero_rewards`, `HeroConfig`, `Spread`, `check_normalisation`. Scores are NumPy on the host; nothing here needs JAX.
"""

from jaxllm.rl.rewards.code import CodeReward
from jaxllm.rl.rewards.guard import Failure, Failures, GuardConfig, RewardError, RewardGuard, Scores, score
from jaxllm.rl.rewards.hero import HeroConfig, HeroResult, Spread, check_normalisation, hero_rewards, stratify
from jaxllm.rl.rewards.protocol import Reward, Sample
from jaxllm.rl.rewards.shaping import length_penalty, overlong, rescale
from jaxllm.rl.rewards.verifiers import ExactMatch, MathVerify, RegexMatch, TaskReward, load_reward

__all__ = ["CodeReward", "ExactMatch", "Failure", "Failures", "GuardConfig", "HeroConfig", "HeroResult", "MathVerify",
           "RegexMatch", "Reward", "RewardError", "RewardGuard", "Sample", "Scores", "Spread", "TaskReward",
           "check_normalisation", "hero_rewards", "length_penalty", "load_reward", "overlong", "rescale", "score",
           "stratify"]
