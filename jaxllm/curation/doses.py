"""Dose mixing: arms of a study with the same number of tokens, of which a share is junk.

Documents are drawn without replacement in an order that does not depend on the dose, so that a higher dose has the
junk of a lower one and more, and the control of a higher dose is part of a lower one's: what differs between arms is
the dose alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxllm.config import ConfigError, check


@dataclasses.dataclass(frozen=True)
class Arm:
    """Documents of one arm, in order of training.

    Attributes:
      junk: numbers of junk documents.
      control: numbers of control documents.
      order: [D, 2] (0 control or 1 junk, number), shuffled.
      tokens: of junk and control documents as drawn; the last of each kind may go beyond its share and is cut to `cut`.
      cut: tokens that are left out of the last document of (control, junk).
    """

    junk: np.ndarray
    control: np.ndarray
    order: np.ndarray
    tokens: int
    cut: tuple[int, int]


def mix(junk: Sequence[int], control: Sequence[int], dose: float, tokens: int, seed: int) -> Arm:
    """Documents of `tokens` tokens, `dose` of them junk.

    Args:
      junk: tokens of each junk document.
      control: of each control document.
      dose: share of tokens, 0 to 1.
      tokens: in all.
      seed: of which documents and of their order.

    Raises:
      ConfigError: a dose out of range, an arm without documents, or too few tokens for it; says how many there are.
    """
    check(0 <= dose <= 1, "dose", dose, "a share of tokens from 0 to 1")
    check(tokens >= 1, "tokens", tokens, "at least 1")
    wanted = (tokens - round(dose * tokens), round(dose * tokens))
    chosen: list[np.ndarray] = []
    cut = []
    for kind, (name, lengths, want) in enumerate(zip(("control", "junk"), (control, junk), wanted, strict=True)):
        sizes = np.asarray(lengths, np.int64)
        if want and not len(sizes):
            raise ConfigError(f"dose={dose:g}: no {name} documents, and {want:,} tokens of them are needed")
        if sizes.sum() < want:
            most = sizes.sum() / (dose if kind else 1 - dose)
            raise ConfigError(f"dose={dose:g}: {want:,} {name} tokens are needed, there are {sizes.sum():,}; at most "
                              f"tokens={int(most)} at this dose")
        order = np.random.default_rng([seed, kind]).permutation(len(sizes))
        total = np.cumsum(sizes[order])
        count = int(np.searchsorted(total, want)) + 1 if want else 0
        chosen.append(order[:count])
        cut.append(int(total[count - 1] - want) if count else 0)
    both = np.concatenate([np.stack([np.full(len(c), kind), c], 1) for kind, c in enumerate(chosen)]).astype(np.int64)
    order = np.random.default_rng([seed, 2]).permutation(len(both))
    return Arm(chosen[1], chosen[0], both[order], tokens, (cut[0], cut[1]))
