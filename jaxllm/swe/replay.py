"""Positive-sample replay: late in a run, groups that teach nothing give way to recent ones that had a right sample.

Kimi-Dev (arXiv 2509.23045) adds recent positive samples to late batches. A batch of the core has fixed rows, so that
here a group whose samples all have one reward, from which no gradient comes, is replaced by a recent group with both
right and wrong ones; its samples keep the log-probabilities they were drawn with.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import check
from jaxllm.rl import Group, RLConfig, RLFeed, rl_objective
from jaxllm.training import TrainState, train


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
    """When and from where.

    Attributes:
      after: updates before the first replay.
      keep: groups that are remembered, the newest.
      share: of a batch that may be replayed.
    """

    after: int = 20
    keep: int = 64
    share: float = 0.5

    def __post_init__(self) -> None:
        check(self.after >= 0 and self.keep >= 1, "replay.keep", self.keep, "must be at least 1, after not negative")
        check(0 <= self.share <= 1, "replay.share", self.share, "must lie in [0, 1]")


def replayed(groups: list[Group], known: collections.deque[Group], most: int, draw: np.random.Generator) -> list[Group]:
    """A batch in which up to `most` groups without a gradient are replaced; `known` takes the others in."""
    mixed = [_mixed(group) for group in groups]
    asked = {group.prompt for group, keep in zip(groups, mixed, strict=True) if keep}
    old = [group for group in known if group.prompt not in asked]
    draw.shuffle(old)  # type: ignore[arg-type]
    out = []
    for group, keep in zip(groups, mixed, strict=True):
        if not keep and old and most > 0:
            out.append(old.pop())
            most -= 1
        else:
            out.append(group)
    known.extend(group for group, keep in zip(groups, mixed, strict=True) if keep)
    return out


def _mixed(group: Group) -> bool:
    scores = np.asarray(group.scores, np.float64)
    scores = scores[np.isfinite(scores)]
    return scores.size > 0 and float(scores.max()) > float(scores.min())


class ReplayFeed(RLFeed):
    """The core's feed with replay; what is remembered is not in the checkpoint, and a resumed run gathers anew."""

    def __init__(self, config: RLConfig, *others: Any, replay: ReplayConfig, run_dir: Path) -> None:
        super().__init__(config, *others, run_dir=run_dir)
        self._replay, self._known = replay, collections.deque[Group](maxlen=replay.keep)

    def _take(self, step: int, start: int) -> list[Group]:
        groups = super()._take(step, start)
        most = int(self._replay.share * len(groups)) if step >= self._replay.after else 0
        return replayed(groups, self._known, most, np.random.default_rng((self._config.seed, step)))


def train_with_replay(config: RLConfig, replay: ReplayConfig, run_dir: str | Path, *, resume: bool = False,
                      log: Callable[[str], None] = print) -> TrainState:
    """`jaxllm.rl.train_policy` with replay."""
    feed = functools.partial(ReplayFeed, replay=replay, run_dir=Path(run_dir))
    return train(config, rl_objective(config), run_dir, make_feed=feed, resume=resume, log=log)
