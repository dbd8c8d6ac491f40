"""The last digit of a sum, after thinking that may be idle."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from jaxllm.config import check
from jaxllm.data.tasks.base import Example, Task, permuted

ANSWER, IDLE = "ANSWER", "HM"
IDLE_SHARE = 0.7


@dataclasses.dataclass(frozen=True)
class RunningSumConfig:
    """Settings of `running_sum`.

    Attributes:
      min_terms, max_terms: range of the number of digits; 10**min_terms problems of each.
      worked_share: share of the demonstrations that work the sum out; the others dither and guess.
      max_dither: most words of dithering, the number drawn evenly from 0 up.
    """

    min_terms: int = 4
    max_terms: int = 6
    worked_share: float = 0.3
    max_dither: int = 28

    def __post_init__(self) -> None:
        check(1 <= self.min_terms <= self.max_terms, "task.running_sum.min_terms", self.min_terms,
              f"must lie in 1..max_terms={self.max_terms}")
        check(0 <= self.worked_share <= 1, "task.running_sum.worked_share", self.worked_share, "must lie in [0, 1]")
        check(self.max_dither >= 0, "task.running_sum.max_dither", self.max_dither, "must not be negative")


class RunningSum(Task):
    """`3 7 2 9 =`, answered by thinking, ANSWER and one digit, that of the sum modulo 10.

    Worked: the sums so far, `3 0 2 1 ANSWER 1`. Dithering: HM, then HM and random digits, and a guess that is right one
    time in ten, `HM HM 4 HM ANSWER 7`.
    """

    thinking_end = ANSWER

    def __init__(self, config: RunningSumConfig, seed: int) -> None:
        """Problem `index` is that of number `seed + index`."""
        self._config, self._seed = config, seed
        self.total = (config.max_terms - config.min_terms + 1) * 10 ** config.min_terms

    def example(self, index: int) -> Example:
        """Problem `index`; how its demonstration thinks is drawn from the problem's number."""
        c, number = self._config, (self._seed + index) % self.total
        which, longer = divmod(permuted(number, self.total), c.max_terms - c.min_terms + 1)
        terms = c.min_terms + longer
        digits = f"{permuted(which, 10 ** terms):0{terms}d}"
        sums = [sum(map(int, digits[:stop])) % 10 for stop in range(1, terms + 1)]
        draw = random.Random(f"running_sum:{number}")
        if draw.random() < c.worked_share:
            thoughts, answer = [str(s) for s in sums], sums[-1]
        else:
            thoughts = [IDLE if i == 0 or draw.random() < IDLE_SHARE else str(draw.randrange(10))
                        for i in range(draw.randint(0, c.max_dither))]
            answer = draw.randrange(10)
        return Example(prompt=f"{' '.join(digits)} =", response=" ".join([*thoughts, ANSWER, str(answer)]),
                       entry={"answer": str(sums[-1])})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 when the right digit and nothing else follows the first ANSWER, else 0.0."""
        words = text.split()
        return float(ANSWER in words and words[words.index(ANSWER) + 1:] == [entry["answer"]])
