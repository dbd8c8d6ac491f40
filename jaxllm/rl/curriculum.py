"""Which prompts come next: every one once an epoch, in an order of its own, without those that are solved."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxllm.config import ConfigError, check


class AllSolved(ConfigError):
    """No prompt is left to ask."""


@dataclasses.dataclass
class Curriculum:
    """Prompts 0..size-1 by epochs, with No-Positive-Resampling (ScaleRL, arXiv 2510.13786).

    A prompt whose last pass rate reached `solved` is left out of all later epochs. The order is a function of seed and
    epoch; with `to_dict` in the checkpoint a resumed run draws what an uninterrupted one would.

    Attributes:
      size: number of prompts.
      seed: of the orders.
      solved: pass rate from which a prompt is left out; None leaves none out.
      epoch, cursor: where the order stands.
      rates: the last pass rate of each prompt that was tried.
    """

    size: int
    seed: int = 0
    solved: float | None = 0.9
    epoch: int = 0
    cursor: int = 0
    rates: dict[int, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self.size >= 1, "prompts", self.size, "the set of prompts is empty; RL needs at least one")
        check(self.solved is None or 0 < self.solved <= 1, "solved", self.solved, "must lie in (0, 1], or null")

    def draw(self, count: int) -> list[int]:
        """The next `count` prompts.

        Raises:
          AllSolved: every prompt is solved.
        """
        drawn: list[int] = []
        order = self._order()
        while len(drawn) < count:
            if self.cursor == self.size:
                self.epoch, self.cursor = self.epoch + 1, 0
                order = self._order()
                if not any(map(self._wanted, range(self.size))):
                    raise AllSolved(f"solved={self.solved}: all {self.size} prompts have reached this pass rate; add "
                                      "harder prompts, or end the run here")
            prompt = int(order[self.cursor])
            self.cursor += 1
            if self._wanted(prompt):
                drawn.append(prompt)
        return drawn

    def record(self, prompt: int, rate: float) -> None:
        """Remember the pass rate of a prompt's samples, in place of the one before."""
        self.rates[prompt] = float(rate)

    @property
    def left(self) -> float:
        """Share of the prompts that are not solved."""
        if self.solved is None:
            return 1.0
        return 1 - sum(rate >= self.solved for rate in self.rates.values()) / self.size

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        return {**dataclasses.asdict(self), "rates": {str(k): v for k, v in self.rates.items()}}

    @classmethod
    def of(cls, saved: dict[str, Any]) -> Curriculum:
        """The one that `to_dict` was made of."""
        return cls(**{**saved, "rates": {int(k): v for k, v in saved["rates"].items()}})

    def _wanted(self, prompt: int) -> bool:
        # Within the first epoch nothing is drawn twice, so its own rates cannot leave anything out.
        return self.epoch == 0 or self.solved is None or self.rates.get(prompt, 0.0) < self.solved

    def _order(self) -> np.ndarray:
        return np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
