"""GRPO-TCR's rewards (arXiv 2510.11701), its curation of prompts, and the three numbers that agents are told by.

The paper and the released code differ; the code's form is the default:
  code    right: 1. Wrong: min(-0.6, -1 + 0.1 n) for n rounds of tools, so that calls earn where the answer does not.
  paper   right: 1 + 0.1 n. Wrong: min(cap, -1 + 0.1 n).
Overlong responses lose up to 1 by `jaxllm.rl.rewards.overlong`, which counts results of tools among their tokens.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxllm.config import check


@dataclasses.dataclass(frozen=True)
class ToolRewardConfig:
    """A reward for the answer and for having called tools.

    Attributes:
      form: `code` or `paper`, as the module says; `outcome` for the answer alone (GRPO-T's).
      per_call: what a round of tools earns.
      cap: most that a wrong answer gets.
      price: taken off a right answer for each round, so that what is right without tools is better so.
    """

    form: Literal["code", "paper", "outcome"] = "code"
    per_call: float = 0.1
    cap: float = -0.6
    price: float = 0.0

    def __post_init__(self) -> None:
        check(self.form in ("code", "paper", "outcome"), "tool_reward.form", self.form, "use code, paper or outcome")
        check(self.per_call >= 0, "tool_reward.per_call", self.per_call, "must not be negative")
        check(0 <= self.price < 1, "tool_reward.price", self.price, "must lie in [0, 1)")
        check(-1 <= self.cap < 1, "tool_reward.cap", self.cap, "must lie in [-1, 1)")


def tool_rewards(right: ArrayLike, rounds: ArrayLike, config: ToolRewardConfig) -> NDArray[np.float32]:
    """Rewards of samples.

    Args:
      right: `[...]`, whether the answer was right; NaN (dropped) stays NaN.
      rounds: `[...]`, turns in which tools were called; `num_turns / 2 - 1` in the released code, whose turns are all
        messages of user and assistant.
      config: form and figures.
    """
    passed, n = np.asarray(right, np.float64), np.asarray(rounds, np.float64)
    earned = config.per_call * n
    if config.form == "outcome":
        right_one, wrong = np.ones_like(n), np.full_like(n, -1.0)
    else:
        right_one = 1 + earned if config.form == "paper" else np.ones_like(n)
        wrong = np.minimum(config.cap, -1 + earned)
    # However many rounds, right is worth more than wrong.
    out = np.where(passed == 1, np.maximum(right_one - config.price * n, wrong), wrong)
    return np.where(np.isnan(passed), np.nan, out).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Curation:
    """Prompts by how often the model before reinforcement learning solves them.

    Attributes:
      kept: indices to train on.
      unsolved, solved: dropped, since all their samples would have one reward.
      easy, hard: of the kept, pass rate of at least 0.75 and at most 0.25.
    """

    kept: tuple[int, ...]
    unsolved: tuple[int, ...]
    solved: tuple[int, ...]
    easy: tuple[int, ...]
    hard: tuple[int, ...]


def curate(passed: ArrayLike, *, easy: float = 0.75, hard: float = 0.25) -> Curation:
    """Model-aware curation: drop what the model never or always solves (the paper: 8 samples of the SFT model).

    Args:
      passed: `[prompts, samples]` of 1 and 0; NaN for samples that were not scored, and prompts without any are
        unsolved.
      easy, hard: bounds of pass rates, for the figures.
    """
    found = np.asarray(passed, np.float64)
    check(found.ndim == 2 and found.shape[1] >= 1, "passed", found.shape, "must be [prompts, samples]")
    counted = ~np.isnan(found)
    rates = np.where(counted, found, 0).sum(1) / np.maximum(counted.sum(1), 1)
    kept = (rates > 0) & (rates < 1)

    def of(mask: np.ndarray) -> tuple[int, ...]:
        return tuple(int(i) for i in np.flatnonzero(mask))

    return Curation(of(kept), of(rates == 0), of(rates == 1), of(kept & (rates >= easy)), of(kept & (rates <= hard)))


def pass_at_k(passed: ArrayLike, k: int) -> NDArray[np.float64]:
    """Chance that one of `k` samples is right, by prompt: 1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021).

    Args:
      passed: `[prompts, n]` of 1 and 0.
      k: at most n.
    """
    found = np.asarray(passed, np.float64)
    n = found.shape[-1]
    check(1 <= k <= n, "k", k, f"must lie in 1..{n}, the samples of a prompt")
    wrong = n - found.sum(-1)
    # C(w, k) / C(n, k) as a product, which neither overflows nor loses digits.
    steps = np.arange(k)
    return 1 - np.prod(np.clip((wrong[..., None] - steps) / (n - steps), 0, None), axis=-1)


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], right: ArrayLike) -> NDArray[np.float64]:
    """Whether the most frequent answer of each prompt's samples is right; ties share.

    Args:
      answers: `[prompts][k]`, as they are compared; None for samples without one, which have no vote.
      right: `[prompts, k]`, whether each is right.
    """
    passed, out = np.asarray(right, np.float64), []
    for mine, ok in zip(answers, passed, strict=True):
        votes = Counter(a for a in mine if a is not None)
        if not votes:
            out.append(0.0)
            continue
        most = max(votes.values())
        leading = [a for a, count in votes.items() if count == most]
        out.append(float(np.mean([ok[list(mine).index(a)] for a in leading])))
    return np.array(out)


def agent_scores(passed: ArrayLike, answers: Sequence[Sequence[Any]] | None = None) -> dict[str, float]:
    """avg@k, pass@k and, with answers, maj@k of `[prompts, k]` samples; means over prompts."""
    found = np.asarray(passed, np.float64)
    k = found.shape[1]
    out = {f"avg@{k}": float(found.mean()), f"pass@{k}": float(pass_at_k(found, k).mean())}
    if answers is not None:
        out[f"maj@{k}"] = float(maj_at_k(answers, found).mean())
    return out
