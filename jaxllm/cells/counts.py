"""What a matrix holds (counts, shares of a total, logarithms of them), and what it must not hold to be ranked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxllm.config import ConfigError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from jaxllm.cells.inputs import Source

Kind = Literal["counts", "linear", "ln", "log2", "log10"]
KINDS = ("counts", "linear", "ln", "log2", "log10")
BASES = {"ln": np.e, "log2": 2.0, "log10": 10.0}
MAX_LOG = {"ln": 25.0, "log2": 36.0, "log10": 11.0}  # beyond, no total of molecules is that large
INTEGRAL = 1e-3  # how far a count may be from a whole number: text keeps 0.999999999999999
SAMPLE_ROWS, SAMPLE_PLACES = 64, 4


@dataclasses.dataclass(frozen=True)
class Scale:
    """What values are.

    Attributes:
      kind: counts; linear (shares of a total, such as CPM or TPM); or log(1 + x) of either, by base.
      target: what each cell's values sum to, before the logarithm, where that is the same in all cells; else None.
      stated: by the config, not found out.
    """

    kind: Kind
    target: float | None = None
    stated: bool = False


def detect(source: Source) -> Scale:
    """Find out what a source holds, from up to 256 cells in four places.

    Counts are whole numbers. Values made from counts are whole multiples of the least of their cell once the right
    logarithm is undone; normalised values sum to the same total in every cell.

    Raises:
      ConfigError: values that cannot be ranked, or that fit nothing: the kind has to be stated.
    """
    blocks = []
    for first in sorted({int(f) for f in np.linspace(0, max(0, source.cells - SAMPLE_ROWS), SAMPLE_PLACES)}):
        block = source.block(first, min(source.cells, first + SAMPLE_ROWS))
        check_block(block, source, first)
        blocks.append(block)
    rows = [values[values > 0] for block in blocks
            for values in np.split(np.asarray(block.data, np.float64), np.asarray(block.indptr)[1:-1])]
    rows = [values for values in rows if len(values)]
    if not rows or all(_whole(values).all() for values in rows):
        return Scale("counts")
    undone = {"linear": rows} | {
        kind: [undo(values, kind) for values in rows] for kind in BASES if max(v.max() for v in rows) < MAX_LOG[kind]}
    targets = {kind: _common_total(values) for kind, values in undone.items()}
    for kind, values in undone.items():
        if _multiples(values):
            return Scale(kind, targets[kind])  # pyright: ignore[reportArgumentType]
    for kind, target in targets.items():
        if target is not None:
            return Scale(kind, target)  # pyright: ignore[reportArgumentType]
    if len(undone) == 1:
        return Scale("linear")
    raise ConfigError(f"{source.label}: its values are no counts, and neither their totals nor their steps tell what "
                      f"was done to them; state it as input={'|'.join(KINDS[1:])}, or give counts: {source.advice}")


def undo(values: np.ndarray, kind: str) -> np.ndarray:
    """Values before log(1 + x), in float64; counts and linear values as they are."""
    if kind not in BASES:
        return values
    return np.expm1(np.asarray(values, np.float64) * np.log(BASES[kind]))


def _whole(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "biu":
        return np.ones(len(values), bool)
    return np.abs(values - np.rint(values)) <= INTEGRAL


def _common_total(rows: Sequence[np.ndarray]) -> float | None:
    if len(rows) < 3:
        return None
    totals = np.array([values.sum() for values in rows])
    return float(np.median(totals)) if totals.std() < 1e-3 * totals.mean() else None


def _multiples(rows: Sequence[np.ndarray]) -> bool:
    """Whether small values are whole multiples of the least of their cell, enough of them more than once it."""
    ratios = np.concatenate([values / values.min() for values in rows])
    ratios = ratios[ratios < 20]
    whole = np.abs(ratios - np.rint(ratios)) < 0.02
    return int((ratios > 1.5).sum()) >= 10 and bool(whole[ratios > 1.5].mean() > 0.98)


def check_block(block: csr_matrix, source: Source, first: int, scale: Scale | None = None) -> None:
    """Refuse values that have no rank or are not what the source was found to hold.

    Raises:
      ConfigError: NaN, infinity, a negative value, or a fraction among counts; names cell, gene and remedy.
    """
    data = np.asarray(block.data)
    finite = np.isfinite(data) if data.dtype.kind == "f" else np.ones(len(data), bool)
    if not finite.all():
        where = _where(block, ~finite, source, first)
        raise ConfigError(f"{source.label}: holds a value that is not finite ({where}); mend the file, or give another "
                          f"matrix: {source.advice}")
    if len(data) and data.min() < 0:
        where = _where(block, data < 0, source, first)
        raise ConfigError(f"{source.label}: holds negative values ({where}); scaled or centred data "
                          f"have no ranks; give counts: {source.advice}")
    if scale is not None and scale.kind == "counts" and not _whole(data).all():
        how = "as input=counts says" if scale.stated else "as its first cells do"
        raise ConfigError(f"{source.label}: does not hold counts throughout, {how} "
                          f"({_where(block, ~_whole(data), source, first)}); state input=linear or another kind")


def _where(block: csr_matrix, bad: np.ndarray, source: Source, first: int) -> str:
    """The first bad entry in words."""
    at = int(np.flatnonzero(bad)[0])
    row = int(np.searchsorted(np.asarray(block.indptr), at, "right")) - 1
    name = source.names(first + row, first + row + 1)[0]
    return f"{np.asarray(block.data)[at]:g} in cell {name}, gene {source.genes[int(np.asarray(block.indices)[at])]}"


def linear(block: csr_matrix, scale: Scale) -> csr_matrix:
    """A block's values on the scale where they add up: counts whole, logarithms undone (float64)."""
    data = np.asarray(block.data)
    if scale.kind == "counts":
        data = np.rint(data) if data.dtype.kind == "f" else data
        if data.dtype.itemsize > 4 or data.dtype.kind == "f":
            single = data.astype(np.float32)
            data = single if bool((single == data).all()) else data.astype(np.float64)
    else:
        data = undo(data, scale.kind)
    return type(block)((data, block.indices, block.indptr), block.shape)


def recover_counts(matrix: Any, kind: str = "ln", label: str = "matrix") -> csr_matrix:
    """Molecule counts [N, G] float32 of log(1 + target c / n): multiples of each cell's least value, taken as 1.

    Args:
      matrix: CSR or dense, zeros where nothing was counted.
      kind: which logarithm; `linear` for none.
      label: for errors.

    Raises:
      ConfigError: a value is no whole multiple of the least of its cell.
    """
    from scipy.sparse import csr_matrix

    matrix = csr_matrix(matrix)
    ends = np.asarray(matrix.indptr)
    values = undo(np.asarray(matrix.data, np.float64), kind)
    filled = np.flatnonzero(np.diff(ends))
    least = np.ones(len(ends) - 1)
    if len(filled):
        least[filled] = np.minimum.reduceat(np.where(values > 0, values, np.inf), ends[filled])
    ratios = values / np.repeat(least, np.diff(ends))
    counts = np.rint(ratios)
    # Stored logarithms are often rounded, to three decimals for one: the error grows with the count.
    off = np.abs(ratios - counts) > np.maximum(0.1, 0.01 * counts)
    if off.any():
        raise ConfigError(f"{label}: counts cannot be recovered from it, {int(off.sum()):,} of {len(off):,} values are "
                          f"no whole multiple of the least of their cell (such as {ratios[off][0]:.3f} times); set "
                          "recover_counts=false")
    return csr_matrix((counts.astype(np.float32), matrix.indices, ends), matrix.shape)
