"""Which cells are learned from: by cell with a seed, and by condition for held-out combinations."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

import numpy as np

from jaxllm.cells.shards import Cells
from jaxllm.config import check, nearest

Part = Literal["train", "validation", "test"]


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How cells are shared out.

    Without `folds` and `stratify` a cell's place depends on the seed and its name alone, whatever other cells there
    are, and shares are met on average. With them shares are exact, and places depend on the other cells too.

    Attributes:
      seed: of the order.
      validation, test: shares of the cells.
      folds: cross-validation in so many folds in place of `test`; None for one split.
      fold: which of them is the test.
      stratify: obs column whose values every fold gets an even share of; None for none.
      held_out_column: obs column of conditions that are kept out of training.
      held_out: its values; their cells are all in `test`, and no others are if `test` is 0.
    """

    seed: int = 0
    validation: float = 0.1
    test: float = 0.1
    folds: int | None = None
    fold: int = 0
    stratify: str | None = None
    held_out_column: str | None = None
    held_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("validation", "test"):
            check(0 <= getattr(self, name) < 1, f"split.{name}", getattr(self, name), "must lie in [0, 1)")
        check(self.validation + self.test < 1, "split.test", self.test, "leaves nothing to learn from")
        check(self.folds is None or self.folds >= 2, "split.folds", self.folds, "must be at least 2")
        check(0 <= self.fold < (self.folds or 1), "split.fold", self.fold,
              f"must lie in 0..folds-1, folds={self.folds}")
        check(bool(self.held_out) == (self.held_out_column is not None), "split.held_out", self.held_out,
              "goes with split.held_out_column")


def split_cells(cells: Cells, config: SplitConfig) -> dict[Part, np.ndarray]:
    """Row numbers of each part, int64, ascending.

    Raises:
      ConfigError: no such column or value.
    """
    rank = _ranks(cells.names, config.seed)
    if config.stratify is not None:
        # One stratum after the other, each in its own order: neighbours go to different folds.
        values = cells.texts(config.stratify)
        order = np.lexsort((rank, values))
        share = np.empty(len(cells))
        if config.folds is None:
            for value in np.unique(values):
                mine = order[values[order] == value]
                share[mine] = (np.arange(len(mine)) + 0.5) / len(mine)
        place = np.empty(len(cells), np.int64)
        place[order] = np.arange(len(cells))
    else:
        place = np.argsort(np.argsort(rank, kind="stable"), kind="stable")
        share = rank / 2.0**64
    held = np.zeros(len(cells), bool)
    if config.held_out_column is not None:
        conditions = cells.texts(config.held_out_column)
        known = sorted(set(conditions))
        for value in config.held_out:
            check(value in known, "split.held_out", value, f"no cell has it in {config.held_out_column!r}; "
                  f"{nearest(value, known)}")
        held = np.isin(conditions, config.held_out)
    if config.folds is not None:
        test = place % config.folds == config.fold
        # Within the others by another draw, so that it does not hang on the fold.
        again = _ranks(cells.names, config.seed + 1)
        validation = np.zeros(len(cells), bool)
        left = np.flatnonzero(~test & ~held)
        validation[left[np.argsort(again[left], kind="stable")][:round(config.validation * len(left))]] = True
    else:
        test = share < config.test
        validation = ~test & (share < config.test + config.validation)
    test, validation = test | held, validation & ~held
    parts: dict[Part, np.ndarray] = {"train": ~(test | validation), "validation": validation, "test": test}
    return {name: np.flatnonzero(mask) for name, mask in parts.items()}


def _ranks(names: np.ndarray, seed: int) -> np.ndarray:
    """A hash of each name, uint64 `[N]`; cells of one name are told apart by their number among them."""
    seen: dict[str, int] = {}
    out = np.empty(len(names), np.uint64)
    for i, name in enumerate(names.tolist()):
        number = seen[name] = seen.get(name, -1) + 1
        digest = hashlib.blake2b(f"{seed}\0{name}\0{number}".encode(), digest_size=8).digest()
        out[i] = int.from_bytes(digest, "little")
    return out
