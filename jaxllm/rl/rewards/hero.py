"""HERO (arXiv 2510.07242): a reward model's scores kept inside the bounds that a verifier sets.

Inside a prompt's group the reward model's scores of the wrong responses are mapped to `[-alpha, alpha]` and those of
the right ones to `[1 - beta, 1 + beta]`, so that every right response beats every wrong one; then the whole group is
scaled by a weight that grows with the spread of the reward model's scores on it.

The weight is one positive number per group, so dividing advantages by the group's own standard deviation cancels it:
`check_normalisation` refuses that. Formulas and defaults come from notes on the paper and a public port
(verl/utils/reward_score/hero.py), not from the paper's own text. Where they differ: a stratum whose scores are all
equal, one of a single member among them, goes to the middle of its interval rather than to the lower end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxllm.config import ConfigError, check, nearest

# w_min, w_max and k of the paper's appendix A.1, and of its main text.
PRESETS: dict[str, tuple[float, float, float]] = {"appendix": (0.4, 3.0, 6.0), "main": (0.5, 2.0, 5.0)}
NORMALISATIONS = ("batch", "none")


@dataclasses.dataclass(frozen=True)
class HeroConfig:
    """Bounds and weights.

    Attributes:
      alpha: half the width of the interval of wrong responses; 0.05 on verifiable data, 0.1 on mixed.
      beta: half the width of the interval of right ones; likewise.
      preset: a key of `PRESETS`, for those of the next three that are None.
      w_min, w_max: range of the weight.
      k: steepness of the weight in the spread.
      eps: scores that differ by no more than this are equal.
    """

    alpha: float = 0.05
    beta: float = 0.05
    preset: str = "appendix"
    w_min: float | None = None
    w_max: float | None = None
    k: float | None = None
    eps: float = 1e-6

    def __post_init__(self) -> None:
        check(self.preset in PRESETS, "hero.preset", self.preset, nearest(self.preset, PRESETS))
        check(self.alpha >= 0, "hero.alpha", self.alpha, "must not be negative")
        check(self.beta >= 0, "hero.beta", self.beta, "must not be negative")
        check(self.alpha < 1 - self.beta, "hero.alpha", self.alpha,
              f"must lie below 1 - beta={1 - self.beta:g}, or a wrong response may beat a right one")
        low, high, k = self.weights
        check(0 < low <= high, "hero.w_min", low, f"must lie in (0, w_max={high:g}]")
        check(k >= 0, "hero.k", k, "must not be negative")
        check(self.eps >= 0, "hero.eps", self.eps, "must not be negative")

    @property
    def weights(self) -> tuple[float, float, float]:
        """`w_min`, `w_max` and `k`, from the preset where not set."""
        low, high, k = PRESETS[self.preset]
        return (low if self.w_min is None else self.w_min, high if self.w_max is None else self.w_max,
                k if self.k is None else self.k)


@dataclasses.dataclass(frozen=True)
class Spread:
    """Running mean of the groups' standard deviations, of all prompts seen; belongs into the checkpoint.

    Attributes:
      count: groups seen.
      mean: mean of their standard deviations.
    """

    count: int = 0
    mean: float = 0.0

    def add(self, sigma: ArrayLike) -> Spread:
        """The state after groups of these standard deviations; NaN (nothing kept of a group) is passed over."""
        values = np.asarray(sigma, np.float64)
        values = values[np.isfinite(values)]
        if not values.size:
            return self
        count = self.count + values.size
        return Spread(count, self.mean + float((values - self.mean).sum()) / count)

    def to_dict(self) -> dict[str, Any]:
        """What `of` builds from, as JSON takes it."""
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Spread:
        """The state that `to_dict` wrote."""
        return cls(int(data["count"]), float(data["mean"]))


@dataclasses.dataclass(frozen=True)
class HeroResult:
    """Shaped rewards.

    Attributes:
      rewards: `[groups, n]` float32, weighted; NaN where not kept.
      weights: `[groups]` float32; 1 where nothing of a group is kept.
      sigma: `[groups]` float32, standard deviation of the reward model's kept scores; NaN where nothing is kept.
      spread: the state to go on with.
    """

    rewards: NDArray[np.float32]
    weights: NDArray[np.float32]
    sigma: NDArray[np.float32]
    spread: Spread


def hero_rewards(rule: ArrayLike, model: ArrayLike, spread: Spread, config: HeroConfig,
                 keep: ArrayLike | None = None) -> HeroResult:
    """Combine a verifier's and a reward model's scores of a batch of groups.

    The batch's own standard deviations enter the running mean before it is used, so that the first batch has one.

    Args:
      rule: `[groups, n]` the verifier's scores, 0 or 1.
      model: `[groups, n]` the reward model's scores, any finite range.
      spread: the state that the last call returned; `Spread()` at first.
      config: bounds and weights.
      keep: `[groups, n]` bool; samples to leave out are those that a reward failed on. Default: where both are finite.
    """
    rules, models = np.asarray(rule, np.float64), np.asarray(model, np.float64)
    check(rules.ndim == 2 and rules.shape == models.shape, "hero.rule", rules.shape,
          f"rule and model must both be [groups, n]; model is {models.shape}")
    finite = np.isfinite(rules) & np.isfinite(models)
    kept = finite if keep is None else finite & np.asarray(keep, bool)
    strange = rules[kept & (rules != 0) & (rules != 1)]
    check(not strange.size, "hero.rule", float(strange[0]) if strange.size else None,
          "the verifier's scores must be 0 or 1 (rescale after, not before)")
    sigma = _std(models, kept)
    spread = spread.add(sigma)
    low, high, k = config.weights
    # Written with tanh, which does not overflow: sigmoid(x) = (1 + tanh(x / 2)) / 2.
    weights = low + (high - low) * 0.5 * (1 + np.tanh(0.5 * k * (sigma - spread.mean)))
    weights = np.where(np.isnan(sigma), 1.0, weights)
    rewards = weights[:, None] * stratify(rules, models, config, kept)
    return HeroResult(rewards.astype(np.float32), weights.astype(np.float32), sigma.astype(np.float32), spread)


def stratify(rule: ArrayLike, model: ArrayLike, config: HeroConfig,
             keep: ArrayLike | None = None) -> NDArray[np.float64]:
    """Map the scores of each stratum of each group to its interval; `[groups, n]` each, NaN where not kept."""
    rules, models = np.asarray(rule, np.float64), np.asarray(model, np.float64)
    kept = np.isfinite(rules) & np.isfinite(models)
    if keep is not None:
        kept &= np.asarray(keep, bool)
    out = np.full(models.shape, np.nan)
    for value, centre, half in ((0.0, 0.0, config.alpha), (1.0, 1.0, config.beta)):
        member = kept & (rules == value)
        least = np.where(member, models, np.inf).min(axis=1, keepdims=True, initial=np.inf)
        most = np.where(member, models, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
        with np.errstate(invalid="ignore", divide="ignore"):
            span = most - least
            share = np.where(span > config.eps, (models - least) / span, 0.5)
        out = np.where(member, centre - half + 2 * half * share, out)
    return out


def check_normalisation(name: str) -> None:
    """Refuse advantages normalised in a way that undoes HERO's weights.

    Raises:
      ConfigError: `name` is `group`, or none of `NORMALISATIONS`.
    """
    if name == "group":
        raise ConfigError("normalization='group': dividing by a group's own standard deviation cancels HERO's weight "
                          "of the group; write batch or none")
    check(name in NORMALISATIONS, "normalization", name, nearest(name, NORMALISATIONS))


def _std(values: NDArray[np.float64], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Standard deviation (of the population) of each row's kept values; NaN where there are none."""
    count = kept.sum(axis=1)
    some = np.maximum(count, 1)
    mean = np.where(kept, values, 0).sum(axis=1) / some
    square = np.where(kept, values - mean[:, None], 0) ** 2
    return np.where(count > 0, np.sqrt(square.sum(axis=1) / some), np.nan)
