"""Multiplication, directly or by a calculator that the policy calls."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from jaxllm.config import check
from jaxllm.data.tasks.base import DIGITS, Example, Task, permuted, spaced

CALL, RESULT, DIRECT = "CALL", "RES", "DIRECT"


@dataclasses.dataclass(frozen=True)
class MultiplicationConfig:
    """Settings of `multiplication`.

    Attributes:
      terms: products that are summed, each with a call of its own; 8100**terms problems.
      tool_share: share of the demonstrations that call the calculator; the others answer directly.
      tool_price: taken off the score of a right answer for every call.
      one_digit_share: share of the problems whose factors are 1 to 9, which a small model can learn to answer directly.
        There are but 81**terms of these, so that sets of problems that are disjoint otherwise share them.
    """

    terms: int = 1
    tool_share: float = 0.2
    tool_price: float = 0.0
    one_digit_share: float = 0.0

    def __post_init__(self) -> None:
        check(1 <= self.terms <= 4, "task.multiplication.terms", self.terms, "must lie in 1..4")
        for name in ("tool_share", "one_digit_share"):
            check(0 <= getattr(self, name) <= 1, f"task.multiplication.{name}", getattr(self, name),
                  "must lie in [0, 1]")
        check(0 <= self.tool_price < 1 / self.terms, "task.multiplication.tool_price", self.tool_price,
              f"must lie in [0, 1/terms={1 / self.terms:g}), or a right answer may score as a wrong one")


class Multiplication(Task):
    """`3 4 * 5 6 =`, answered by four digits: factors 10 to 99, or 1 to 9 with a leading zero.

    Directly: `DIRECT 1 9 0 4`. By the calculator: `CALL 3 4 5 6 RES 1 9 0 4 1 9 0 4`, of which the environment writes
    the four digits after RES, the product of what the policy wrote after CALL; demonstrations do not have them learned.
    Two terms, `3 4 * 5 6 + 1 2 * 7 8 =`, take two calls one after the other and five digits of answer.
    """

    pauses = (RESULT,)
    error = "0 0 0 0"  # digits, for no demonstration would put a word of its own into the vocabulary

    def __init__(self, config: MultiplicationConfig, seed: int) -> None:
        """Problem `index` is that of number `seed + index`."""
        self._config, self._seed, self.total = config, seed, 8100 ** config.terms

    def example(self, index: int) -> Example:
        """Problem `index`; how its demonstration answers is drawn from the problem's number."""
        c, number = self._config, (self._seed + index) % self.total
        draw = random.Random(f"multiplication:{number}")
        least, choices = (1, 9) if draw.random() < c.one_digit_share else (10, 90)
        count = choices ** (2 * c.terms)
        code = permuted(number % count, count)
        factors = [least + code // choices**i % choices for i in range(2 * c.terms)]
        pairs = list(zip(factors[::2], factors[1::2], strict=True))
        answer = spaced(sum(a * b for a, b in pairs), len(str(c.terms * 99 * 99)))
        pieces: list[tuple[str, bool]] = []
        if draw.random() < c.tool_share:
            for a, b in pairs:
                pieces += [(f"{CALL} {spaced(a, 2)} {spaced(b, 2)} {RESULT}", True), (spaced(a * b, 4), False)]
            pieces.append((answer, True))
        return Example(prompt=" + ".join(f"{spaced(a, 2)} * {spaced(b, 2)}" for a, b in pairs) + " =",
                       response=" ".join(text for text, _ in pieces) or f"{DIRECT} {answer}",
                       entry={"answer": answer, "factors": factors}, pieces=tuple(pieces))

    def reply(self, response: str) -> str | None:
        """The product of the arguments of the last call, `error` if they are not four digits.

        None after anything but a call, and for more calls than there are products.
        """
        words = response.split()
        if words[-1:] != [RESULT] or CALL not in words or words.count(RESULT) > self._config.terms:
            return None
        arguments = words[len(words) - words[::-1].index(CALL):-1]
        product = _product(arguments)
        return self.error if product is None else spaced(product, 4)

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0, less the price of calls, for the right digits and nothing else after DIRECT or after calls; else 0.0.

        A call counts only with its four arguments and what the environment replies to them.
        """
        words, at, calls = text.split(), 0, 0
        while words[at:at + 1] == [CALL]:
            product = _product(words[at + 1:at + 5])
            if product is None or words[at + 5:at + 10] != [RESULT, *f"{product:04d}"]:
                return 0.0
            at, calls = at + 10, calls + 1
        if calls > self._config.terms:
            return 0.0
        if calls == 0:
            if words[:1] != [DIRECT]:
                return 0.0
            at = 1
        right = words[at:] == entry["answer"].split()
        return 1.0 - calls * self._config.tool_price if right else 0.0


def _product(arguments: list[str]) -> int | None:
    """Of the two numbers of two digits each; None if they are not that."""
    if len(arguments) != 4 or not DIGITS.issuperset(arguments):
        return None
    a, b, c, d = map(int, arguments)
    return (10 * a + b) * (10 * c + d)
