"""Converted cells, opened for reading: Arrow shards mapped into memory, and their manifest.

A directory of cells holds `cells-00000.arrow` and so on (Arrow streams; `datasets.load_from_disk` opens them), with the
columns cell_name, genes (indices, most expressed first), expression, cell_sentence and the obs columns kept, and
`manifest.json`:

  genes, gene_cells             vocabulary, and in how many cells each is expressed
  cells, read_cells, empty_cells, repeated_names    counts: kept, read, without a gene, of a name that came before
  collisions, unknown_genes     columns of one input that share a name; those that no table knows
  line, normalization           expression by rank, and what expression is
  columns, kinds                obs columns kept
  inputs                        path, bytes, SHA-256, cells and kind of values of each input
  shards                        file, bytes, SHA-256, cells, input and rows of each
  settings, made_from, format   the `ConvertConfig`; SHA-256 of settings and inputs; version
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.cells.expression import Line
from jaxllm.config import ConfigError, nearest
from jaxllm.files import read_json, sha256

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy.sparse import csr_matrix

FORMAT = "jaxllm cells 1"  # changes whenever older shards would be read wrongly
MANIFEST = "manifest.json"
UNFINISHED = ".{}.unfinished"  # beside the directory, until the conversion is whole


def open_cells(directory: str | Path, *, verify: bool = False) -> Cells:
    """Open a directory that `convert` wrote.

    Args:
      directory: as given to `convert`.
      verify: also compare each shard's SHA-256 with the manifest's, which reads them whole.

    Raises:
      ConfigError: no conversion is there, it was not finished, or a shard is missing or damaged.
    """
    path = Path(directory)
    if not (path / MANIFEST).is_file():
        if path.with_name(UNFINISHED.format(path.name)).is_dir():
            raise ConfigError(f"{path}: its conversion is not finished; run the same jaxllm cells convert again to "
                              "go on with it")
        raise ConfigError(f"{path}: holds no {MANIFEST}; give a directory that jaxllm cells convert wrote")
    manifest = read_json(path / MANIFEST)
    problem = broken(path, manifest, verify)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}; convert again with jaxllm cells convert")
    return Cells(path, manifest)


class Cells:
    """Cells of one conversion, in input order, mapped into memory.

    Attributes:
      directory: where they are.
      manifest: what `convert` returned.
      genes: the vocabulary; gene indices point into it.
      line: expression by rank, as fitted at conversion.
      columns: obs columns kept.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory = directory
        self.manifest = manifest
        self.genes: tuple[str, ...] = tuple(manifest["genes"])
        self.line = Line.of(manifest["line"])
        self.columns: tuple[str, ...] = tuple(manifest["columns"])
        self._batches = list(_batches(directory, manifest["shards"]))
        self._starts = [0]
        for batch in self._batches:
            self._starts.append(self._starts[-1] + batch.num_rows)
        self._parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}

    def __len__(self) -> int:
        return self._starts[-1]

    @functools.cached_property
    def names(self) -> np.ndarray:
        """Cell names [N] as given; not made unique."""
        return self._column("cell_name")

    @functools.cached_property
    def index(self) -> dict[str, int]:
        """Gene index by symbol."""
        return {gene: i for i, gene in enumerate(self.genes)}

    def ranked(self, i: int) -> np.ndarray:
        """Gene indices of cell `i` [n] int32, most expressed first; zeros are never among them."""
        return self._row("genes", i)

    def expression(self, i: int) -> np.ndarray:
        """Normalised expression of cell `i` [n] float32, beside `ranked(i)`.

        Raises:
          ConfigError: converted with expression=false.
        """
        self._need_expression()
        return self._row("expression", i)

    def sentence(self, i: int, genes: int | None = None, delimiter: str = " ") -> str:
        """Gene names of cell `i`, the first `genes` of them."""
        return delimiter.join([self.genes[g] for g in self.ranked(i)[:genes]])

    def labels(self, column: str) -> np.ndarray:
        """An obs column [N]: numbers as numbers (missing: NaN), text as `str` (missing: "").

        Raises:
          ConfigError: no such column was kept.
        """
        if column not in self.columns:
            raise ConfigError(f"{self.directory}: obs column {column!r} was not kept; {nearest(column, self.columns)}"
                              if self.columns else f"{self.directory}: no obs columns were kept, not {column!r}")
        return self._column(column)

    def texts(self, column: str) -> np.ndarray:
        """An obs column [N] as text: whole numbers without a point also where some are missing; missing as "".

        Raises:
          ConfigError: as `labels`.
        """
        values = self.labels(column)
        if values.dtype.kind == "f":
            whole = bool(np.all(np.isnan(values) | (values == np.floor(values))))
            return np.array(["" if np.isnan(v) else str(int(v) if whole else v) for v in values.tolist()], dtype=str)
        return np.array(["" if v is None else str(v) for v in values.tolist()], dtype=str)

    def matrix(self, rows: Iterable[int] | None = None) -> csr_matrix:
        """Normalised expression [n, G] float32 of `rows` (all by default), column indices sorted.

        Raises:
          ConfigError: converted with expression=false.
        """
        from scipy.sparse import csr_matrix

        self._need_expression()
        chosen = range(len(self)) if rows is None else [int(i) for i in np.asarray(list(rows)).reshape(-1)]
        columns, values = [self.ranked(i) for i in chosen], [self.expression(i) for i in chosen]
        ends = np.cumsum([0, *(len(c) for c in columns)])
        matrix = csr_matrix((np.concatenate([np.zeros(0, np.float32), *values]),
                             np.concatenate([np.zeros(0, np.int32), *columns]), ends), (len(columns), len(self.genes)))
        matrix.sort_indices()
        return matrix

    def _need_expression(self) -> None:
        if not self.manifest["settings"]["expression"]:
            raise ConfigError(f"{self.directory}: holds ranks only (expression=false); convert again with "
                              "expression=true, or use line(ranks)")

    def _row(self, name: str, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(f"cell {i} of {len(self)}")
        i %= len(self)
        if name not in self._parts:
            self._parts[name] = [_ends_and_values(batch.column(name)) for batch in self._batches]
        part = bisect.bisect_right(self._starts, i) - 1
        ends, values = self._parts[name][part]
        row = i - self._starts[part]
        return values[ends[row]:ends[row + 1]]

    def _column(self, name: str) -> np.ndarray:
        import pyarrow as pa

        if not self._batches:
            return np.zeros(0, str)
        column = pa.chunked_array([batch.column(name) for batch in self._batches])
        if pa.types.is_string(column.type):
            return np.array(["" if v is None else v for v in column.to_pylist()], dtype=str)
        return column.to_numpy()


def _batches(directory: Path, shards: list[dict[str, Any]]) -> Iterable[pa.RecordBatch]:
    import pyarrow as pa

    for shard in shards:
        path = directory / shard["file"]
        try:
            with pa.ipc.open_stream(pa.memory_map(str(path))) as stream:
                yield from (batch for batch in stream if batch.num_rows)
        except pa.ArrowInvalid as err:
            raise ConfigError(f"{path}: damaged ({err}); convert again with jaxllm cells convert") from None


def _ends_and_values(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Offsets and values of a list array, without a copy."""
    return column.offsets.to_numpy(), column.values.to_numpy()


def broken(path: Path, manifest: Any, verify: bool = False) -> str | None:
    """What is wrong with a conversion's own files; None if nothing is."""
    needed = {"format", "genes", "line", "columns", "shards", "settings", "cells"}
    if not isinstance(manifest, dict) or needed - manifest.keys():
        return f"{MANIFEST} lacks {sorted(needed - set(manifest))[0]}" if isinstance(manifest, dict) else \
            f"{MANIFEST} holds no mapping"
    if manifest["format"] != FORMAT:
        return f"{MANIFEST} has the format {manifest['format']!r}, this version reads {FORMAT!r}"
    for shard in manifest["shards"]:
        file = path / shard["file"]
        if not file.is_file():
            return f"{file.name} is missing"
        if file.stat().st_size != shard["bytes"]:
            return f"{file.name} has {file.stat().st_size:,} bytes, not {shard['bytes']:,}"
        if verify and sha256(file) != shard["sha256"]:
            return f"{file.name} is damaged (its SHA-256 is not the manifest's)"
    if manifest["cells"] != sum(shard["cells"] for shard in manifest["shards"]):
        return f"{MANIFEST} counts {manifest['cells']:,} cells, its shards hold another number"
    return None
