"""The optimiser chain from a config, all of it optax."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import optax
import optax.contrib

from jaxllm.config import ConfigError, check, nearest


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with clipping and a schedule.

    Attributes:
      name: `adamw`, or `muon` for the blocks' matrices with Adam (Nesterov) on embedding, head, norms, biases.
        Muon's updates are scaled to AdamW's usual root mean square of 0.2 (Moonlight, arXiv 2502.16982), so that one
        rate serves both.
      learning_rate: peak rate.
      schedule: shape after the warm-up; `cosine` and `linear` end at `final_ratio` of the peak.
      warmup_steps: linear warm-up from 0.
      final_ratio: last rate over peak rate.
      b1, b2, eps, weight_decay: AdamW's; decay touches matrices only, under `muon` the blocks' only.
      clip_norm: global gradient norm above which gradients are scaled down, None for none.
      freeze: names of parameters that stay as they are, such as `router` or `embed`: all whose path holds one of them.
        They have no optimiser state, and their gradients do not count for `clip_norm` (`train/grad_norm` has them).
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 3e-4
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: int = 100
    final_ratio: float = 0.0
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    freeze: tuple[str, ...] = ()

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
    """Clipping, then AdamW or Muon with decay on matrices, and the schedule; nothing of it for frozen parameters.

    Its `init` raises `ConfigError` where `config.freeze` names what the parameters do not have, or all they have.
    """
    steps = [] if config.clip_norm is None else [optax.clip_by_global_norm(config.clip_norm)]
    rate = learning_rate(config, total_steps)
    if config.name == "muon":
        steps.append(optax.contrib.muon(
            rate, eps=config.eps, weight_decay=config.weight_decay, adam_b1=config.b1, adam_b2=config.b2,
            consistent_rms=0.2, muon_weight_dimension_numbers=_blocks_matrices))
    else:
        steps.append(optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay,
                                 mask=_matrices))
    if not config.freeze:
        return optax.chain(*steps)
    return optax.chain(optax.masked(optax.chain(*steps), functools.partial(_frozen, config.freeze, False)),
                       optax.masked(optax.set_to_zero(), functools.partial(_frozen, config.freeze, True)))


def updates_made(opt_state: Any) -> int:
    """How many updates a state of `make_optimizer` has behind it: the schedule goes by them."""
    return max(int(count) for _, count in optax.tree.get_all_with_path(opt_state, "count"))


def _frozen(names: tuple[str, ...], value: bool, params: Any) -> Any:
    """`value` for each parameter whose path holds one of `names`, else the opposite."""
    paths = [{key.key for key in path} for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    known = set().union(*paths)
    for name in names:
        if name not in known:
            raise ConfigError(f"optimizer.freeze={list(names)!r}: no trained parameter is named {name!r}; "
                              f"{nearest(name, known)}")
    if all(path & set(names) for path in paths):
        raise ConfigError(f"optimizer.freeze={list(names)!r}: leaves nothing to train; name fewer parameters")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: (not {key.key for key in path}.isdisjoint(names)) == value, params)


def _blocks_matrices(params: Any) -> Any:
    """For each kernel of the stacked blocks which axes a matrix's rows and columns are; None elsewhere."""
    def one(path: Any, leaf: Any) -> Any:
        if path[0].key != "layers" or path[-1].key != "kernel":
            return None
        if path[1].key == "moe" and leaf.ndim == 4:  # [L, E, in, out]: one matrix per expert
            return optax.contrib.MuonDimensionNumbers((2,), (3,))
        inputs = 2 if path[-2].key == "o" else 1  # attention's output sums over heads and head width
        return optax.contrib.MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, leaf.ndim)))

    return jax.tree_util.tree_map_with_path(one, params)


def _matrices(params: Any) -> Any:
    """True for kernels and embeddings; norm scales and biases are not decayed (they are stacked 2-D)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
