"""Cell sentences: a cell's expressed genes, most expressed first, over CSR rows at once.

Each entry becomes one 64-bit key, the value's bits above the tie's, and a row's keys are sorted together; names are
gathered as one Arrow buffer, so no Python string is built until one is asked for.

Counts tie often (half a cell's genes may have one molecule), so the order of ties is part of the result. By default it
is a hash of (seed, cell name, gene name): the same whatever the order of cells and genes, the block, the process, and
whichever other cells and genes are there. `tie_break="reference"` replays what the published package does, one shuffle
per cell from one generator, which depends on all cells before it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxllm.cells.matrices import summed
from jaxllm.config import ConfigError, check

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_matrix

TieBreak = Literal["hash", "gene", "reference"]
REFERENCE_SEED = 42  # the published package's, whatever it is asked for
SHORT = 1024  # entries of a row whose positions take ten of a key's bits, which leaves 22 of 32 for the tie
BLOCK_ENTRIES = 1 << 17  # entries sorted at a time: their keys stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Rows of genes in descending order of value, as flat arrays.

    Attributes:
      ends: [R + 1] int64; row r is `genes[ends[r]:ends[r + 1]]`.
      genes: column indices, int32.
      values: the values beside them, of the matrix's type; positive and not increasing within a row.
    """

    ends: np.ndarray
    genes: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Genes of each row [R]."""
        return np.diff(self.ends)

    def top(self, k: int | None) -> Ranked:
        """The first `k` genes of each row; all for None."""
        if k is None or not len(self) or self.lengths.max() <= k:
            return self
        lengths = np.minimum(self.lengths, k)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        kept = np.arange(ends[-1]) + np.repeat(self.ends[:-1] - ends[:-1], lengths)
        return Ranked(ends, self.genes[kept], self.values[kept])

    def rows(self, kept: np.ndarray) -> Ranked:
        """The rows where `kept` [R] holds."""
        if kept.all():
            return self
        entries = np.repeat(kept, self.lengths)
        ends = np.concatenate([[0], np.cumsum(self.lengths[kept])])
        return Ranked(ends, self.genes[entries], self.values[entries])

    def ids(self, length: int | None = None, pad: int = -1) -> np.ndarray:
        """Gene indices [R, length] int32 (the longest row's by default), cut to `length` and padded with `pad`."""
        width = int(self.lengths.max(initial=0)) if length is None else length
        cut = self.top(width)
        out = np.full((len(self), width), pad, np.int32)
        out[np.arange(width) < cut.lengths[:, None]] = cut.genes
        return out

    def lists(self, values: np.ndarray | None = None) -> pa.ListArray:
        """Gene indices as Arrow's list<int32>, or `values` (laid out as `self.values`) as a list of their type."""
        import pyarrow as pa

        return pa.ListArray.from_arrays(pa.array(self.ends.astype(np.int32)),
                                        pa.array(self.genes if values is None else values))

    def sentences(self, names: list[str] | tuple[str, ...], delimiter: str = " ") -> pa.StringArray:
        """One text per row: names of its genes joined by `delimiter`."""
        import pyarrow as pa

        # Every name without and with a delimiter before it: the gathered buffer is the sentences, end to end.
        table = pa.array([*names, *(delimiter + name for name in names)], pa.string())
        chosen = self.genes + np.int32(len(names))
        firsts = self.ends[:-1][self.lengths > 0]
        chosen[firsts] -= np.int32(len(names))
        words = table.take(pa.array(chosen))
        if isinstance(words, pa.ChunkedArray) or not len(words):  # 2 GiB of text, or none
            texts = [delimiter.join([names[g] for g in self.genes[a:b].tolist()]) for a, b in
                     zip(self.ends[:-1], self.ends[1:], strict=True)]
            return pa.array(texts, pa.string())
        _, offsets, text = words.buffers()
        ends = np.frombuffer(offsets, np.int32, len(words) + 1)[self.ends]
        return pa.StringArray.from_buffers(len(self), pa.py_buffer(ends), text)


def hashes(names: Iterable[str], seed: int | None = None) -> np.ndarray:
    """A 64-bit hash [N] uint64 of each name, the same on every machine; of cells with the `seed`, of genes without."""
    key = b"" if seed is None else str(seed).encode()
    return np.frombuffer(b"".join(
        hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names), "<u8").astype(np.uint64)


def rank(matrix: csr_matrix, cells: np.ndarray, genes: np.ndarray, top_k: int | None = None) -> Ranked:
    """Rank the positive entries of each row, ties by hash.

    Args:
      matrix: [R, G] CSR of any real type, each column at most once in a row; zeros and negatives are passed over.
      cells: `hashes` of the cells' names [R].
      genes: `hashes` of the genes' names [G].
      top_k: genes kept of each row; all for None.
    """
    parts = []
    for start, stop, ends, columns, values in _blocks(matrix):
        ends, columns, values = _positive(ends, columns, values)
        tie = np.repeat(cells[start:stop], np.diff(ends))
        tie += genes[columns]
        order = _order(values, _mix(tie), ends)
        parts.append(Ranked(ends, columns[order], values[order]).top(top_k))
    return _join(parts, matrix)


def rank_reference(matrix: csr_matrix, state: np.random.RandomState, top_k: int | None = None) -> Ranked:
    """Rank as the published package does: a shuffle of each row's stored entries, then a stable sort.

    Args:
      matrix: as for `rank`; its stored zeros and negatives take part in the shuffle and are then left out.
      state: advanced by one shuffle per row; start at `RandomState(REFERENCE_SEED)` and go on with the next block.
      top_k: genes kept of each row; all for None.
    """
    parts = []
    for _, _, ends, columns, values in _blocks(matrix):
        shuffled = np.arange(len(values))
        bounds = ends.tolist()
        for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
            state.shuffle(shuffled[begin:end])
        ends, columns, values = _positive(ends, columns[shuffled], values[shuffled])
        # The place after the shuffle is the tie: the upper bits, which are what is sorted by first.
        shift = np.uint64(64 - max(1, len(values)).bit_length())
        order = _order(values, np.arange(len(values), dtype=np.uint64) << shift, ends)
        parts.append(Ranked(ends, columns[order], values[order]).top(top_k))
    return _join(parts, matrix)


def skip_reference(lengths: Iterable[int], state: np.random.RandomState) -> None:
    """Advance `state` past rows of that many stored entries."""
    for n in lengths:
        state.shuffle(np.arange(n))


def rank_cells(matrix: Any, names: Sequence[str], genes: Sequence[str], *, tie_break: TieBreak = "hash", seed: int = 0,
               top_k: int | None = None) -> Ranked:
    """Rank a whole matrix in memory.

    Args:
      matrix: [N, G] values, sparse or dense; counts or anything that rises with them.
      names: N cell names.
      genes: G gene names.
      tie_break: order of equal values: `hash` of (seed, cell, gene); `gene`, a hash of (seed, gene), the same in every
        cell; `reference`, as the published package.
      seed: of the hash.
      top_k: genes kept of each cell; all for None.

    Raises:
      ConfigError: names and matrix differ in size, or gene names repeat.
    """
    from scipy.sparse import csr_matrix

    matrix = summed(csr_matrix(matrix))
    check(matrix.shape == (len(names), len(genes)), "matrix", matrix.shape,
          f"{len(names)} cell names and {len(genes)} gene names were given")
    check(len(set(genes)) == len(genes), "genes", len(genes), "names repeat; sum their columns first")
    if tie_break == "reference":
        return rank_reference(matrix, np.random.RandomState(REFERENCE_SEED), top_k)
    if tie_break not in ("hash", "gene"):
        raise ConfigError(f"tie_break={tie_break!r}: must be hash, gene or reference")
    return rank(matrix, hashes(tie_names(names, tie_break), seed), hashes(genes), top_k)


def tie_names(names: Sequence[str], tie_break: TieBreak) -> Sequence[str]:
    """What stands for each cell in the hash of its ties: its name, or nothing where all cells share one order."""
    return [""] * len(names) if tie_break == "gene" else names


def _blocks(matrix: csr_matrix) -> Iterator[tuple[int, int, np.ndarray, np.ndarray, np.ndarray]]:
    """(first row, end, ends, columns, values) of the stored entries, in blocks of whole rows."""
    indptr, indices, data = np.asarray(matrix.indptr), np.asarray(matrix.indices), np.asarray(matrix.data)
    rows = len(indptr) - 1
    start = 0
    while start < rows:
        stop = max(start + 1, int(np.searchsorted(indptr, indptr[start] + BLOCK_ENTRIES, "right")) - 1)
        begin, end = indptr[start], indptr[stop]
        ends = indptr[start:stop + 1].astype(np.int64) - int(begin)
        yield start, stop, ends, indices[begin:end].astype(np.int32, copy=False), data[begin:end]
        start = stop


def _positive(ends: np.ndarray, columns: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same rows without zeros and negatives."""
    kept = values > 0
    if kept.all():
        return ends, columns, values
    return np.concatenate([[0], np.cumsum(kept)])[ends], columns[kept], values[kept]


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014), in place."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def _order(values: np.ndarray, ties: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Positions that sort each row by descending value, then ascending tie (all its 64 bits)."""
    single = values.astype(np.float32)
    exact = values.dtype == np.float32 or bool((single == values).all())
    keys = (~single.view(np.uint32) if exact else _places(values, ends)).astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= ties >> np.uint64(32)
    order, ordered = _sort_short_rows(keys, ends) if np.diff(ends).max(initial=0) <= SHORT else _sort_rows(keys, ends)
    same = ordered[1:] == ordered[:-1]
    same[ends[1:-1][(ends[1:-1] > 0) & (ends[1:-1] < len(keys))] - 1] = False  # the last of one row, the next's first
    if same.any():  # the part of the tie that was sorted by is equal too: few rows
        for row in np.unique(np.searchsorted(ends, np.flatnonzero(same), "right") - 1):
            part = slice(ends[row], ends[row + 1])
            order[part] = np.lexsort((ties[part], -values[part].astype(np.float64))) + ends[row]
    return order


def _sort_rows(keys: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions that sort each row's keys, and the keys so sorted."""
    order = _argsort_rows(keys, ends)
    return order, keys[order]


def _sort_short_rows(keys: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same by all but the keys' last bits, which carry positions: sorting in place takes less than argsort."""
    lengths = np.diff(ends)
    bits = np.uint64(int(lengths.max(initial=0)).bit_length())
    starts = np.repeat(ends[:-1], lengths)
    keys >>= bits
    keys <<= bits
    keys |= (np.arange(len(keys)) - starts).view(np.uint64)
    bounds = ends.tolist()
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        keys[begin:end].sort()
    order = (keys & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64)
    order += starts
    keys >>= bits
    return order, keys


def _argsort_rows(keys: np.ndarray, ends: np.ndarray) -> np.ndarray:
    order = np.empty(len(keys), np.int64)
    bounds = ends.tolist()
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        order[begin:end] = keys[begin:end].argsort()
    order += np.repeat(ends[:-1], np.diff(ends))
    return order


def _places(values: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Dense place of each value in its row [n] uint32, 0 for the greatest: for what float32 cannot tell apart."""
    negated = -values if values.dtype.kind == "f" else -values.astype(np.int64)
    order = _argsort_rows(negated, ends)
    ordered = negated[order]
    step = np.concatenate([[False], ordered[1:] != ordered[:-1]])
    places = np.empty(len(values), np.uint32)
    # Steps are counted over all rows: within a row only their order matters.
    places[order] = np.cumsum(step, dtype=np.uint32)
    return places


def _join(parts: list[Ranked], matrix: csr_matrix) -> Ranked:
    if len(parts) == 1:
        return parts[0]
    shifts = np.cumsum([0, *(part.ends[-1] for part in parts)])
    ends = [part.ends[1:] + shift for part, shift in zip(parts, shifts, strict=False)]
    return Ranked(np.concatenate([[0], *ends]).astype(np.int64),
                  np.concatenate([np.zeros(0, np.int32), *(part.genes for part in parts)]),
                  np.concatenate([np.zeros(0, matrix.dtype), *(part.values for part in parts)]))
