"""What a task is, and what the small generators of digits share."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any, Protocol

DIGITS = frozenset("0123456789")


@dataclasses.dataclass(frozen=True)
class Example:
    """One problem.

    Attributes:
      prompt: the question as the generator words it.
      response: the worked answer to learn, ending in the final answer.
      entry: what the scorer needs (reasoning-gym's entry for its tasks).
      pieces: the response in parts that blanks join, each with whether it is learned: what the task's environment
        writes is not. They are tokenised one by one. Empty for a response that is learned whole.
    """

    prompt: str
    response: str
    entry: dict[str, Any]
    pieces: tuple[tuple[str, bool], ...] = ()

    def __post_init__(self) -> None:
        if self.pieces and " ".join(text for text, _ in self.pieces) != self.response:
            raise ValueError(f"pieces {self.pieces} do not make up the response {self.response!r}")


class Task(Protocol):
    """What a data source must offer to be trained on and scored; a task that inherits from it has no environment.

    Attributes:
      pauses: words at which the policy hands over to the task's environment, whose words `reply` gives.
      thinking_end: the word that ends thinking and begins the answer, None where nothing is thought first.
    """

    pauses: tuple[str, ...] = ()
    thinking_end: str | None = None

    def example(self, index: int) -> Example:
        """The `index`-th problem."""
        ...

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 for an exactly right final answer in `text`; graded below that where the scorer grades."""
        ...

    def reply(self, response: str) -> str | None:
        """What the environment writes after `response`, which ends in one of `pauses`; None ends the episode."""
        return None


def permuted(number: int, total: int) -> int:
    """Where a fixed pseudo-random permutation of `0..total - 1` puts `number`: a Feistel network of four rounds.

    It permutes a power of four, the smallest that holds `total`; what falls outside is sent through again.
    """
    half = max((total - 1).bit_length() + 1, 2) // 2
    while True:
        left, right = number >> half, number & ((1 << half) - 1)
        for turn in range(4):
            mixed = hashlib.blake2b(f"{turn}:{right}".encode(), digest_size=8).digest()
            left, right = right, left ^ (int.from_bytes(mixed, "little") & ((1 << half) - 1))
        number = left << half | right
        if number < total:
            return number


def spaced(number: int, width: int) -> str:
    """The decimal digits of `number`, at least `width` of them, most significant first, blanks between."""
    return " ".join(f"{number:0{width}d}")
