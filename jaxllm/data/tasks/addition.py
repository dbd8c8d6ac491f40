"""Addition of two numbers, digit by digit."""

from __future__ import annotations

import dataclasses
import random
from typing import Any, Literal

from jaxllm.config import check
from jaxllm.data.tasks.base import Example, Task, permuted, spaced


@dataclasses.dataclass(frozen=True)
class AdditionConfig:
    """Settings of `addition`.

    Attributes:
      digits: of each number, leading zeros included; 100**digits problems.
      notations: 2 for answers in either of two notations, which demonstrations use at random.
      verifier: which notations `score` accepts: all of them (`full`), the plain one alone (`plain`), or that of the
        demonstration alone (`reference`), as verifiers by rules miss right answers that are written otherwise.
    """

    digits: int = 3
    notations: int = 1
    verifier: Literal["full", "plain", "reference"] = "full"

    def __post_init__(self) -> None:
        check(1 <= self.digits <= 9, "task.addition.digits", self.digits, "must lie in 1..9")
        check(self.notations in (1, 2), "task.addition.notations", self.notations, "must be 1 or 2")
        check(self.verifier in ("full", "plain", "reference"), "task.addition.verifier", self.verifier,
              "use full, plain or reference")


class Addition(Task):
    """`1 2 3 + 4 5 6 =`, answered by the sum's digits, least significant first: `9 7 5 0`.

    There is one digit more than each number has. The second notation is the word MSD and the digits most significant
    first: `MSD 0 5 7 9`.
    """

    def __init__(self, config: AdditionConfig, seed: int) -> None:
        """Problem `index` is that of number `seed + index`."""
        self._config, self._seed, self.total = config, seed, 100 ** config.digits

    def example(self, index: int) -> Example:
        """Problem `index`, its notation drawn from the problem's number."""
        number, width = (self._seed + index) % self.total, self._config.digits
        left, right = divmod(permuted(number, self.total), 10 ** width)
        answer = spaced(left + right, width + 1)
        notation = random.Random(f"addition:{number}").randrange(self._config.notations)
        response = f"MSD {answer}" if notation else answer[::-1]
        return Example(prompt=f"{spaced(left, width)} + {spaced(right, width)} =", response=response,
                       entry={"answer": answer[::-1], "reference": response})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 when the whole text is the sum in a notation that the verifier accepts, else 0.0."""
        words, plain, verifier = text.split(), entry["answer"].split(), self._config.verifier
        if verifier == "reference":
            return float(words == entry["reference"].split())
        second = self._config.notations == 2 and verifier == "full"
        return float(words == plain or (second and words == ["MSD", *reversed(plain)]))
