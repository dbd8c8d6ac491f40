"""The optimiser chain from a config, all of it optax."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import optax

from jaxllm.config import check


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with clipping and a schedule.

    Attributes:
      learning_rate: peak rate.
      schedule: shape after the warm-up; `cosine` and `linear` end at `final_ratio` of the peak.
      warmup_steps: linear warm-up from 0.
      final_ratio: last rate over peak rate.
      b1, b2, eps, weight_decay: AdamW; decay touches matrices only.
      clip_norm: global gradient norm above which gradients are scaled down, None for none.
    """

    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: int = 100
    final_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        check(self.learning_rate > 0, "optimizer.learning_rate", self.learning_rate, "must be positive")
        check(self.warmup_steps >= 0, "optimizer.warmup_steps", self.warmup_steps, "must not be negative")
        check(0 <= self.final_ratio <= 1, "optimizer.final_ratio", self.final_ratio, "must lie in [0, 1]")
        for name in ("b1", "b2"):
            check(0 <= getattr(self, name) < 1, f"optimizer.{name}", getattr(self, name), "must lie in [0, 1)")
        check(self.clip_norm is None or self.clip_norm > 0, "optimizer.clip_norm", self.clip_norm,
              "must be positive, or null for no clipping")


def learning_rate(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Rate as a function of the step, for a run of `total_steps` optimiser steps."""
    peak, end = config.learning_rate, config.learning_rate * config.final_ratio
    after = max(1, total_steps - config.warmup_steps)
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(peak, after, alpha=config.final_ratio)
    elif config.schedule == "linear":
        main = optax.linear_schedule(peak, end, after)
    else:
        main = optax.constant_schedule(peak)
    if config.warmup_steps == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, peak, config.warmup_steps), main], [config.warmup_steps])


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Clipping, AdamW with decay on matrices, and the schedule."""
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    steps.append(optax.adamw(learning_rate(config, total_steps), b1=config.b1, b2=config.b2, eps=config.eps,
                             weight_decay=config.weight_decay, mask=_matrices))
    return optax.chain(*steps)


def _matrices(params: Any) -> Any:
    """True for kernels and embeddings; norm scales and biases are not decayed (they are stacked 2-D)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
