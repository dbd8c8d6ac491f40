"""Scores of a gene program, one number a cell, from expression or straight from a sentence."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.cells.matrices import dense, padded
from jaxllm.config import check

MHC_I = ("HLA-A", "HLA-B", "HLA-C", "B2M", "TAP1", "TAP2", "TAPBP", "PSMB8", "PSMB9", "NLRC5")
"""Antigen presentation by MHC class I: its chains, the peptide's way to them, and their transactivator."""
MINIMUM = 3


@dataclasses.dataclass(frozen=True)
class ProgramScore:
    """Mean z-score of a program's genes less that of background genes; z by the cells it was fitted on.

    Treated and control cells must go through one and the same fit.

    Attributes:
      program: the genes found.
      missing: those that were not, or that do not vary.
      columns: their columns [P].
      background: columns [B] of genes expressed as much.
      mean: [P + B] of log expression of `columns`, then of `background`.
      scale: [P + B] standard deviations.
      genes: number of columns that cells must have.
    """

    program: tuple[str, ...]
    missing: tuple[str, ...]
    columns: np.ndarray
    background: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    genes: int

    def __call__(self, expression: Any) -> np.ndarray:
        """Scores [N] of log expression [N, G], dense or sparse, in the gene order of the fit."""
        check(expression.shape[1] == self.genes, "expression", f"{expression.shape[1]} columns",
              f"the score was fitted on {self.genes} genes; bring them into the same order")
        x = dense(expression[:, np.concatenate([self.columns, self.background])])
        z, own = (x - self.mean) / self.scale, len(self.columns)
        return z[:, :own].mean(1) - (z[:, own:].mean(1) if len(self.background) else 0.0)


def fit_program(reference: Any, genes: Sequence[str], program: Sequence[str] = MHC_I, matched: int = 5
                ) -> ProgramScore:
    """Fit a program's score on reference cells, such as the control cells of all contexts.

    The background of each program gene are the `matched` genes outside the program with the nearest mean expression
    (the idea of Tirosh et al. 2016, Science 352:189, without its random draw): it takes away what moves all genes of
    that level, such as depth.

    Args:
      reference: [N, G] log expression.
      genes: [G] names.
      program: names of its genes, in any case.
      matched: background genes for each; 0 for none.

    Raises:
      ConfigError: fewer than three of the program's genes are there and vary.
    """
    x = dense(reference, "reference")
    check(len(genes) == x.shape[1], "genes", f"{len(genes)} names", f"reference has {x.shape[1]} columns")
    check(len(x) > 1, "reference", f"{len(x)} rows", "give at least two cells")
    check(matched >= 0, "matched", matched, "must not be negative")
    mean, scale = x.mean(0), x.std(0)
    place = {name.upper(): i for i, name in enumerate(genes)}
    wanted = tuple(dict.fromkeys(program))
    kept = [name for name in wanted if name.upper() in place and scale[place[name.upper()]] > 0]
    missing = tuple(name for name in wanted if name not in kept)
    check(len(kept) >= MINIMUM, "program", f"{len(kept)} of {len(wanted)} genes",
          f"are there and vary; a score needs {MINIMUM} (missing: {', '.join(missing[:5])})")
    columns = np.array([place[name.upper()] for name in kept])
    inside = {place[name.upper()] for name in wanted if name.upper() in place}
    others = np.array([i for i in range(len(genes)) if i not in inside and scale[i] > 0], np.int64)
    near = [others[np.argsort(np.abs(mean[others] - mean[c]), kind="stable")[:matched]] for c in columns]
    background = np.unique(np.concatenate(near)).astype(np.int64)
    chosen = np.concatenate([columns, background])
    return ProgramScore(tuple(kept), missing, columns, background, mean[chosen], scale[chosen], len(genes))


def rank_score(ranked: Any, genes: Sequence[str], program: Sequence[str] = MHC_I, top: int = 200) -> np.ndarray:
    """A program's score straight from sentences: the area under its recovery curve over the first `top` ranks.

    1 when the program's genes stand first, 0 when none is among the first `top` (AUCell, Aibar et al. 2017, Nat.
    Methods 14:1083). It needs no fitted line and no other cells.

    Args:
      ranked: [N, K] gene ids by rank padded with -1, or N sequences of ids.
      genes: names by id.
      program: names of its genes, in any case.
      top: ranks that count.

    Returns:
      [N] in [0, 1].

    Raises:
      ConfigError: fewer than three of the program's genes are in the vocabulary, or an id is not.
    """
    check(top > 0, "top", top, "must be at least 1")
    ids = padded(ranked)
    check(ids.size == 0 or int(ids.max()) < len(genes), "ranked", int(ids.max(initial=-1)),
          f"no gene has this id, there are {len(genes)}")
    wanted = {name.upper() for name in program}
    inside = np.array([name.upper() in wanted for name in genes] + [False])  # the last for the padding, -1
    found = int(inside.sum())
    check(found >= MINIMUM, "program", f"{found} of {len(wanted)} genes", f"are in the vocabulary; a score needs "
          f"{MINIMUM}")
    weights = np.maximum(top - np.arange(ids.shape[1]), 0)
    most = top - np.arange(min(found, top))
    return inside[ids] @ weights / most.sum()
