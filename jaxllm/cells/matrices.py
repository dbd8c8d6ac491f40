"""Cells as matrices for measuring: checked dense expression, features of ranks, principal components."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse, stats

from jaxllm.config import ConfigError, check


def dense(matrix: Any, name: str = "expression") -> np.ndarray:
    """`matrix` as a dense float64 [N, G] array.

    Args:
      matrix: dense [N, G], or any scipy sparse matrix.
      name: what errors call it.

    Raises:
      ConfigError: it is not two-dimensional, or holds NaN or infinity.
    """
    out = matrix.toarray() if sparse.issparse(matrix) else matrix
    try:
        out = np.asarray(out, np.float64)
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: holds something that is no number; give a matrix [cells, genes]") from None
    check(out.ndim == 2, name, f"shape {out.shape}", "give a matrix [cells, genes]")
    if not np.isfinite(out).all():
        row, column = np.argwhere(~np.isfinite(out))[0]
        raise ConfigError(f"{name}[{row}, {column}]={out[row, column]}: not a finite number; drop that cell or mend it")
    return out


def wide(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same values in a type that sums of them fit into: narrow counts would wrap around."""
    kind = {"b": np.int64, "i": np.int64, "u": np.int64}.get(matrix.dtype.kind)
    return matrix if kind is None else sparse.csr_matrix(matrix, dtype=kind)


def summed(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same cells with each gene stored once; what was stored in parts is added up, all else stays as it is."""
    if matrix.has_canonical_format:
        return matrix
    ordered = matrix.copy()
    ordered.sort_indices()
    if ordered.has_canonical_format:  # merely not in the order of the genes, which ties may go by
        return matrix
    ordered = wide(ordered)
    ordered.sum_duplicates()
    return ordered


def finite(matrix: Any, name: str = "expression") -> sparse.csr_matrix:
    """`matrix` as sparse float64, with the errors of `dense`."""
    if not sparse.issparse(matrix):
        return sparse.csr_matrix(dense(matrix, name))
    out = sparse.csr_matrix(matrix, dtype=np.float64)
    check(bool(np.isfinite(out.data).all()), name, "NaN or infinity", "drop those cells or mend them")
    return out


def pair(a: Any, b: Any, names: tuple[str, str] = ("real", "generated")) -> tuple[np.ndarray, np.ndarray]:
    """Two dense matrices with the same columns and at least one row each.

    Raises:
      ConfigError: as `dense`, or the columns differ in number, or one is empty.
    """
    x, y = dense(a, names[0]), dense(b, names[1])
    check(x.shape[1] == y.shape[1], names[1], f"{y.shape[1]} columns",
          f"{names[0]} has {x.shape[1]}; bring both into the same gene order")
    for name, found in zip(names, (x, y), strict=True):
        check(len(found) > 0, name, "no rows", "give at least one cell")
    return x, y


def labels_of(labels: Sequence[str] | np.ndarray, rows: int, name: str = "labels") -> np.ndarray:
    """Labels as an array [N] of text.

    Raises:
      ConfigError: there are not `rows` of them, or one is missing.
    """
    given = np.asarray(labels)
    check(given.shape == (rows,), name, f"shape {given.shape}", f"give one label for each of the {rows} cells")
    for i, value in enumerate(given.tolist()):
        if value is None or value != value or value == "":
            raise ConfigError(f"{name}[{i}]={value!r}: missing; drop that cell or label it")
    return given.astype(str)


def padded(ranked: Any) -> np.ndarray:
    """Ranked gene ids as one int64 array [N, K], most expressed first, -1 behind each cell's last.

    Args:
      ranked: an integer array [N, K] padded with negative ids, or N sequences of ids.

    Raises:
      ConfigError: it is neither.
    """
    if isinstance(ranked, np.ndarray) and ranked.ndim == 2 and ranked.dtype.kind in "iu":
        return np.where(ranked < 0, -1, ranked).astype(np.int64)
    try:
        rows = [np.asarray(row, np.int64).ravel() for row in ranked]
    except (TypeError, ValueError):
        raise ConfigError("ranked: holds something that is no gene id; give integers, a sequence a cell") from None
    out = np.full((len(rows), max((len(row) for row in rows), default=0)), -1, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = np.where(row < 0, -1, row)
    return out


def rank_features(ranked: Any, genes: int | None = None, top: int | None = None) -> sparse.csr_matrix:
    """What a sentence says, one number a gene: 1 - log(1 + rank) / log(1 + genes), 0 for a gene that is not in it.

    Rank 0 gives 1 and the last of all genes nearly 0, in steps that shrink as expression does; an absent gene is as
    if it stood behind all others. With it a logistic regression on whole sentences of the 700 labelled PBMCs gets
    the 0.823 known for ranks.

    Args:
      ranked: as for `padded`; or a sparse matrix [N, G] of counts or expression, whose positive entries are ranked
        within each row, tied ones by their mean rank.
      genes: size of the vocabulary; a sparse matrix has it.
      top: leave out genes from this rank on; None for whole sentences.

    Returns:
      [N, G] float64, sparse.

    Raises:
      ConfigError: `genes` is missing, or an id is not below it.
    """
    check(top is None or top > 0, "top", top, "use a number of genes above 0, or None for whole sentences")
    if sparse.issparse(ranked):
        matrix: Any = sparse.csr_matrix(ranked, dtype=np.float64, copy=True)
        matrix.data[matrix.data < 0] = 0
        matrix.eliminate_zeros()
        for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
            matrix.data[start:stop] = stats.rankdata(-matrix.data[start:stop]) - 1
        return _features(matrix, top)
    ids = padded(ranked)
    check(genes is not None and genes > 0, "genes", genes, "give the size of the vocabulary")
    assert genes is not None
    check(ids.size == 0 or int(ids.max()) < genes, "ranked", int(ids.max(initial=-1)),
          f"no gene has this id, there are {genes}")
    rows, positions = np.nonzero(ids >= 0)
    columns = ids[rows, positions]
    # Of a gene that stands twice, the first place counts.
    _, first = np.unique(rows * genes + columns, return_index=True)
    ranks = sparse.csr_matrix((positions[first].astype(np.float64), (rows[first], columns[first])), (len(ids), genes))
    return _features(ranks, top)


def _features(ranks: sparse.csr_matrix, top: int | None) -> sparse.csr_matrix:
    """What `rank_features` says of stored ranks, 0 and up."""
    places: Any = ranks.data
    values = 1 - np.log1p(places) / np.log1p(ranks.shape[1])  # pyright: ignore[reportOptionalSubscript]
    ranks.data = values if top is None else np.where(places < top, values, 0.0)
    return ranks


@dataclasses.dataclass(frozen=True)
class Components:
    """Principal components fitted on one set of cells, to be applied to any other.

    Attributes:
      mean: [G], subtracted first.
      axes: [G, E], orthonormal columns in descending order of variance.
      explained: [E] shares of the variance.
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def apply(self, matrix: Any) -> np.ndarray:
        """Coordinates [N, E] of cells [N, G]."""
        x = dense(matrix)
        check(x.shape[1] == len(self.mean), "expression", f"{x.shape[1]} columns",
              f"the components are of {len(self.mean)} genes; bring them into the same order")
        return (x - self.mean) @ self.axes


def components(real: Any, n: int = 50, seed: int = 0) -> Components:
    """Fit principal components on real cells [N, G] (scikit-learn's PCA, seeded); at most min(N, G) of the `n`.

    Raises:
      ConfigError: there are fewer than two cells, or `n` is below 1.
    """
    from sklearn.decomposition import PCA

    x = dense(real, "real")
    check(n > 0, "components", n, "use at least 1")
    check(len(x) > 1, "real", f"{len(x)} rows", "components need at least two cells")
    found: Any = PCA(min(n, *x.shape), random_state=seed).fit(x)
    return Components(found.mean_, found.components_.T, found.explained_variance_ratio_)
