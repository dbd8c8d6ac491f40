"""Mixing sources in exact proportions, by index alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol


class Indexed(Protocol):
    """Anything with items by index."""

    def __getitem__(self, index: int) -> Any:
        """The `index`-th item."""
        ...


class Mixture:
    """An endless sequence that draws from endless `parts` by `weights`.

    Each part's items come in their own order, none left out. Over every `period` draws the shares are
    exact, and evenly spread in between. (Grain's `mix` also goes by index, but rounds weights of
    0.7 and 0.3 to 233 and 100.)
    """

    def __init__(self, parts: Sequence[Indexed], weights: Sequence[float]) -> None:
        """Weights are taken as the decimals they are written as, and need not add to 1."""
        self._parts = parts
        self.shares = whole_shares(weights)
        self.period = sum(self.shares)

    def __getitem__(self, index: int) -> Any:
        """The `index`-th draw."""
        part, place = pick(index, self.shares)
        return self._parts[part][place]


def whole_shares(weights: Sequence[float]) -> tuple[int, ...]:
    """The smallest whole numbers in the same proportions: (0.7, 0.3) gives (7, 3)."""
    exact = [Fraction(repr(float(w))) for w in weights]
    scale = math.lcm(*(f.denominator for f in exact))
    whole = [int(f * scale) for f in exact]
    return tuple(w // math.gcd(*whole) for w in whole)


def pick(index: int, shares: Sequence[int]) -> tuple[int, int]:
    """Which part draw `index` takes from, and how many draws that part had before.

    The first part has ceil(k p / total) of the first k draws; what it leaves is shared out among the
    others in the same way.
    """
    left = sum(shares)
    for part, share in enumerate(shares):
        taken = -(-index * share // left)
        if -(-(index + 1) * share // left) > taken:
            return part, taken
        index -= taken
        left -= share
    raise AssertionError("the last part takes what is left")
