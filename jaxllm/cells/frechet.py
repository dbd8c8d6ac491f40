"""Fréchet distance of embedded cells; with embeddings of cells in place of those of pictures it is scFID.

|m1 - m2|² + trace(S1 + S2 - 2 (S1 S2)^(1/2)) of means and sample covariances (Heusel et al. 2017, arXiv 1706.08500;
of cells: C2S-Scale, bioRxiv 2025.04.14.648850).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxllm.cells.matrices import labels_of, pair
from jaxllm.config import ConfigError, check

Embedder = Callable[[Any, Sequence[str]], np.ndarray]
"""`embed(expression [N, G], genes) -> [N, E]`."""


@dataclasses.dataclass(frozen=True)
class Frechet:
    """A distance and what it rests on.

    Attributes:
      value: squared distance in the embedding's units; NaN where a side has fewer than two cells.
      n_real: real cells.
      n_generated: generated cells.
      dim: of the embedding.
    """

    value: float
    n_real: int
    n_generated: int
    dim: int

    @property
    def deficient(self) -> bool:
        """Whether a covariance is singular for want of cells: the value is then too high, more so the fewer there are.

        Compare it with others of equally many cells only.
        """
        return min(self.n_real, self.n_generated) <= self.dim


def frechet(real: Any, generated: Any) -> Frechet:
    """Fréchet distance of embeddings [N, E] and [M, E]; covariances may be singular.

    Raises:
      ConfigError: a side has fewer than two cells, or a value is not finite.
    """
    x, y = pair(real, generated)
    for name, found in (("real", x), ("generated", y)):
        check(len(found) > 1, name, f"{len(found)} rows", "a covariance needs two cells at least")
    shift = x.mean(0) - y.mean(0)
    # With S = R'R by QR of the centred cells, trace (S1 S2)^(1/2) is the sum of singular values of R1 R2': nothing is
    # squared, so a singular S costs no accuracy and no root of a negative rounding error is taken.
    r1, r2 = (np.asarray(np.linalg.qr((v - v.mean(0)) / np.sqrt(len(v) - 1), mode="r")) for v in (x, y))
    shared = np.linalg.svd(r1 @ r2.T, compute_uv=False).sum()
    value = float(shift @ shift + (r1 ** 2).sum() + (r2 ** 2).sum() - 2 * shared)
    return Frechet(value, len(x), len(y), x.shape[1])


def scfid(real: Any, generated: Any, embed: Embedder, genes: Sequence[str] = ()) -> Frechet:
    """Fréchet distance of cells in an embedder's space.

    Args:
      real: expression [N, G].
      generated: expression [M, G], in the same gene order and units.
      embed: called on each with `genes`.
      genes: [G] names.

    Raises:
      ConfigError: as `frechet`, or the embedder gives something else than a row a cell.
    """
    pair(real, generated)
    return frechet(_embedded(real, embed, genes, "real"), _embedded(generated, embed, genes, "generated"))


def scfid_by_class(real: Any, real_labels: Sequence[str] | np.ndarray, generated: Any,
                   generated_labels: Sequence[str] | np.ndarray, embed: Embedder, genes: Sequence[str] = ()
                   ) -> dict[str, Frechet]:
    """`scfid` within each label, of real cells with the label and of those generated for it.

    Returns:
      one a label of the real cells, in alphabetical order; NaN where a side has fewer than two cells.

    Raises:
      ConfigError: as `scfid`, or a generated label that no real cell has.
    """
    pair(real, generated)
    x, y = _embedded(real, embed, genes, "real"), _embedded(generated, embed, genes, "generated")
    of_x = labels_of(real_labels, len(x), "real_labels")
    of_y = labels_of(generated_labels, len(y), "generated_labels")
    if unknown := sorted(set(of_y.tolist()) - set(of_x.tolist())):
        raise ConfigError(f"generated_labels: {unknown[0]!r} is no label of the real cells; known: "
                          f"{', '.join(sorted(set(of_x)))}")
    out = {}
    for label in sorted(set(of_x)):
        a, b = x[of_x == label], y[of_y == label]
        out[label] = frechet(a, b) if min(len(a), len(b)) > 1 else Frechet(float("nan"), len(a), len(b), x.shape[1])
    return out


def _embedded(cells: Any, embed: Embedder, genes: Sequence[str], name: str) -> np.ndarray:
    found = np.asarray(embed(cells, genes), np.float64)
    check(found.ndim == 2 and found.shape[0] == cells.shape[0], name, f"embedding of shape {found.shape}",
          f"the embedder must give [{cells.shape[0]}, E], a row a cell")
    return found
