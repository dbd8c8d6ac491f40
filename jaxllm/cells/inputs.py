"""Cells opened for reading in blocks of rows: AnnData, h5ad and zarr; X, a layer or .raw; CSR, CSC and dense.

Files are never read whole: a block's rows, names and obs values are. CSC on disk has no rows to read; it is copied
once into a temporary CSR (`reblock`), two passes over the file in bounded memory.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.cells.matrices import summed
from jaxllm.config import ConfigError, nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from anndata import AnnData
    from scipy.sparse import csr_matrix

BLOCK = 2048  # rows; random rows of compressed files are read some fifteen times slower
CSC_ENTRIES = 1 << 22  # entries moved at a time by `reblock`


class Source:
    """One matrix of cells.

    Attributes:
      label: for errors, the path or `AnnData`.
      cells: number of rows.
      genes: column names, or those of the var column asked for.
      columns: obs columns and their kinds: string, int64, float64 or bool.
      advice: the other matrices there, in words.
      is_csc: on disk by columns; `block` needs `reblock` first.
    """

    label: str
    cells: int
    genes: list[str]
    columns: dict[str, str]
    advice: str
    is_csc: bool = False

    def names(self, start: int, stop: int) -> list[str]:
        """Cell names of rows `start` to `stop`."""
        raise NotImplementedError

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        """An obs column's values of those rows."""
        raise NotImplementedError

    def block(self, start: int, stop: int) -> csr_matrix:
        """Those rows [stop - start, V] of the matrix, as stored."""
        raise NotImplementedError

    def blocks(self, start: int = 0, stop: int | None = None, rows: int = BLOCK) -> Iterator[tuple[int, csr_matrix]]:
        """(first row, rows) of contiguous blocks."""
        end = self.cells if stop is None else stop
        for first in range(start, end, rows):
            yield first, self.block(first, min(end, first + rows))

    def check_columns(self, wanted: tuple[str, ...]) -> None:
        """Refuse obs columns that are not there."""
        for name in wanted:
            if name not in self.columns:
                raise ConfigError(f"{self.label}: has no obs column {name!r}; {nearest(name, self.columns)}")


def open_source(data: str | Path | AnnData, *, layer: str | None = None, raw: bool = False,
                symbols: str | None = None) -> Source:
    """Open a matrix of cells.

    Args:
      data: an .h5ad file, a .zarr directory, or AnnData in memory or backed.
      layer: read this layer instead of X.
      raw: read .raw instead of X.
      symbols: var column of gene names; the var index where None.

    Raises:
      ConfigError: it cannot be read, or holds no such layer, .raw or column.
    """
    if layer is not None and raw:
        raise ConfigError(f"layer={layer!r}: choose it or raw=true, not both")
    if not isinstance(data, (str, Path)):
        return _Memory(data, "AnnData", layer, raw, symbols)
    path = Path(data)
    if not path.exists():
        raise ConfigError(f"{path}: is not there")
    try:
        group = _open(path)
        if _is_legacy(group):
            return _Memory(_read_legacy(path), str(path), layer, raw, symbols)
        return _Stored(group, str(path), layer, raw, symbols)
    except ConfigError:
        raise
    except Exception as err:
        raise _unreadable(path, err) from None


def _unreadable(label: Any, err: Exception) -> ConfigError:
    return ConfigError(f"{label}: cannot be read as AnnData ({' '.join(str(err).split())[:200]}); the file may be cut "
                       "short or damaged: copy it again")


def _open(path: Path) -> Any:
    if path.is_dir():
        import zarr

        return zarr.open_group(str(path), mode="r")
    import h5py

    return h5py.File(path, "r")


def _is_legacy(group: Any) -> bool:
    """Written before anndata 0.7: obs is one compound array, or its categories lie elsewhere."""
    return "column-order" not in group["obs"].attrs or "__categories" in group["obs"]


def _read_legacy(path: Path) -> AnnData:
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.read_h5ad(path) if path.is_file() else anndata.read_zarr(path)


def _missing(label: str, layer: str | None, raw: bool, layers: list[str], has_raw: bool) -> None:
    if layer is not None and layer not in layers:
        raise ConfigError(f"{label}: has no layer {layer!r}; " + (nearest(layer, layers) if layers else "no layers"))
    if raw and not has_raw:
        raise ConfigError(f"{label}: has no .raw; layers: {', '.join(layers) or 'none'}")


def _advice(layer: str | None, raw: bool, layers: list[str], has_raw: bool) -> str:
    others = ["set raw=true (.raw is there)"] if has_raw and not raw else []
    others += [f"set layer={name}" for name in layers if name != layer]
    others += ["set layer= and raw=false to read X"] if layer is not None or raw else []
    return ", or ".join(others) or "neither .raw nor layers are there, so convert from the file with counts"


def _choose_symbols(label: str, symbols: str, var_columns: list[str]) -> None:
    if symbols not in var_columns:
        raise ConfigError(f"{label}: has no var column {symbols!r} for genes.symbols; "
                          + (nearest(symbols, var_columns) if var_columns else "var has no columns"))


class _Memory(Source):
    """AnnData in memory or backed."""

    def __init__(self, data: Any, label: str, layer: str | None, raw: bool, symbols: str | None):
        self.label, self._data = label, data
        layers = list(data.layers)
        has_raw = data.raw is not None
        _missing(label, layer, raw, layers, has_raw)
        self.advice = _advice(layer, raw, layers, has_raw)
        var = data.raw.var if raw else data.var
        matrix = data.layers[layer] if layer is not None else data.raw.X if raw else data.X
        if matrix is None:
            raise ConfigError(f"{label}: X is empty; {self.advice}")
        self.cells = len(data.obs)
        if symbols is not None:
            _choose_symbols(label, symbols, list(var.columns))
        self.genes = [str(g) for g in (var.index if symbols is None else var[symbols])]
        self.columns = {str(name): _kind_of(data.obs[name]) for name in data.obs.columns}
        self._read = _rows_of(matrix)
        self.is_csc = getattr(matrix, "format", None) == "csc" and hasattr(matrix, "group")
        self.matrix = matrix

    def names(self, start: int, stop: int) -> list[str]:
        return [str(name) for name in self._data.obs_names[start:stop]]

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        series = self._data.obs[name].iloc[start:stop]
        missing = series.isna().to_numpy()
        return _arrow(series.astype(object).to_numpy(), missing, self.columns[name])

    def block(self, start: int, stop: int) -> csr_matrix:
        return self._read(start, stop)


class _Stored(Source):
    """A file of AnnData's format since 0.7 (HDF5 or zarr)."""

    def __init__(self, group: Any, label: str, layer: str | None, raw: bool, symbols: str | None):
        self.label, self._group = label, group
        layers = list(group["layers"]) if "layers" in group else []
        _missing(label, layer, raw, layers, "raw" in group)
        self.advice = _advice(layer, raw, layers, "raw" in group)
        key = f"layers/{layer}" if layer is not None else "raw/X" if raw else "X"
        if key not in group:
            raise ConfigError(f"{label}: X is empty; {self.advice}")
        node = group[key]
        if "h5sparse_format" in node.attrs or "encoding-type" in node.attrs and "_matrix" in str(
                node.attrs["encoding-type"]):
            from anndata.io import sparse_dataset

            _check_whole(label, node)
            node = sparse_dataset(node)
        self.matrix = node
        self.cells = int(node.shape[0])
        var = group["raw/var" if raw else "var"]
        if symbols is not None:
            _choose_symbols(label, symbols, _order(var))
        width = int(node.shape[1])
        self.genes = ["" if bad else str(v) for v, bad in zip(
            *_values(var[symbols if symbols is not None else _text(var.attrs["_index"])], 0, width), strict=True)]
        obs = group["obs"]
        self.columns = {name: _kind(_values(obs[name], 0, 0)[0].dtype) for name in _order(obs)}
        self.is_csc = getattr(node, "format", None) == "csc"
        self._read = _rows_of(node)

    def names(self, start: int, stop: int) -> list[str]:
        obs = self._group["obs"]
        return [str(v) for v in _values(obs[_text(obs.attrs["_index"])], start, stop)[0]]

    def column(self, name: str, start: int, stop: int) -> pa.Array:
        return _arrow(*_values(self._group["obs"][name], start, stop), self.columns[name])

    def block(self, start: int, stop: int) -> csr_matrix:
        try:
            return self._read(start, stop)
        except (OSError, ValueError, KeyError) as err:
            raise _unreadable(self.label, err) from None


def _rows_of(matrix: Any) -> Callable[[int, int], csr_matrix]:
    """A function of (start, stop) that gives rows as CSR; CSC in memory is turned once."""
    from scipy import sparse

    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = sparse.csr_matrix(matrix)
    return lambda start, stop: summed(sparse.csr_matrix(matrix[start:stop]))


def _check_whole(label: str, group: Any) -> None:
    """`ConfigError` if part of a sparse matrix is missing: a chunk that zarr does not find reads as zeros."""
    for name in ("data", "indices"):
        found, wanted = (getattr(group[name], key, 0) for key in ("nchunks_initialized", "nchunks"))
        if found < wanted:
            raise ConfigError(f"{label}: {wanted - found} of the {wanted} chunks of {group[name].name} are missing; "
                              "copy it again")
    ends, entries = np.asarray(group["indptr"][:], np.int64), group["data"].shape[0]
    if len(ends) == 0 or ends[-1] != entries or (np.diff(ends) < 0).any() or group["indices"].shape[0] != entries:
        raise ConfigError(f"{label}: the parts of its sparse matrix do not fit each other; the file may be cut short "
                          "or damaged: copy it again")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _order(frame: Any) -> list[str]:
    return [_text(name) for name in frame.attrs["column-order"]]


def _values(node: Any, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and where they are missing, of rows of one column of a stored data frame."""
    encoding = _text(node.attrs.get("encoding-type", "array"))
    if encoding == "categorical":
        codes = np.asarray(node["codes"][start:stop])
        categories, _ = _values(node["categories"], 0, node["categories"].shape[0])
        if not len(categories):
            categories = np.array([""], object)
        return categories[np.maximum(codes, 0)], codes < 0
    if encoding.startswith("nullable"):
        values, _ = _values(node["values"], start, stop)
        return values, np.asarray(node["mask"][start:stop], bool)
    values = node.asstr()[start:stop] if _is_text(node) and hasattr(node, "asstr") else node[start:stop]
    values = np.asarray(values)
    if values.dtype.kind not in "biuf":
        values = values.astype(object)
        return values, np.zeros(len(values), bool)
    return values, np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)


def _is_text(node: Any) -> bool:
    return node.dtype.kind in "OS"


def _kind(dtype: np.dtype) -> str:
    return {"b": "bool", "i": "int64", "u": "int64", "f": "float64"}.get(dtype.kind, "string")


def _kind_of(series: Any) -> str:
    import pandas as pd

    dtype = series.cat.categories.dtype if isinstance(series.dtype, pd.CategoricalDtype) else series.dtype
    if pd.api.types.is_bool_dtype(dtype):
        return "bool"
    if pd.api.types.is_integer_dtype(dtype):
        return "int64"
    return "float64" if pd.api.types.is_float_dtype(dtype) else "string"


def _arrow(values: np.ndarray, missing: np.ndarray, kind: str) -> pa.Array:
    import pyarrow as pa

    if kind == "string":
        return pa.array([None if bad else str(v) for v, bad in zip(values, missing, strict=True)], pa.string())
    cast = {"bool": bool, "int64": int, "float64": float}[kind]
    cells = [None if bad else cast(v) for v, bad in zip(values.tolist(), missing, strict=True)]
    return pa.array(cells, kind_type(kind))


def kind_type(kind: str) -> pa.DataType:
    """Arrow's type of an obs column's kind."""
    import pyarrow as pa

    return {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}[kind]


def stored_by_column(source: Source) -> Iterator[np.ndarray]:
    """The arrays of a CSC matrix on disk, in parts."""
    group = source.matrix.group  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("indptr", "indices", "data"):
        for at in range(0, group[name].shape[0], CSC_ENTRIES):
            yield np.ascontiguousarray(group[name][at:at + CSC_ENTRIES])


def reblock(source: Source, directory: Path) -> None:
    """Copy a CSC matrix on disk into CSR files in `directory`, which `use_reblocked` reads.

    Two passes over the file, `CSC_ENTRIES` entries at a time; the directory takes 8 bytes an entry (12 for float64).
    """
    group = source.matrix.group  # pyright: ignore[reportAttributeAccessIssue]
    indptr = np.asarray(group["indptr"][:], np.int64)
    total, data_type = int(indptr[-1]), group["data"].dtype
    lengths = np.zeros(source.cells, np.int64)
    for at in range(0, total, CSC_ENTRIES):
        lengths += np.bincount(group["indices"][at:at + CSC_ENTRIES], minlength=source.cells)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    directory.mkdir(parents=True, exist_ok=True)
    made = functools.partial(np.lib.format.open_memmap, mode="w+", shape=(total,))
    columns, data = made(directory / "indices.npy", dtype=np.int32), made(directory / "data.npy", dtype=data_type)
    place = ends[:-1].copy()
    for at in range(0, total, CSC_ENTRIES):
        stop = min(total, at + CSC_ENTRIES)
        rows = np.asarray(group["indices"][at:stop])
        column = np.searchsorted(indptr, np.arange(at, stop), "right") - 1
        order = np.argsort(rows, kind="stable")  # columns stay ascending within a row
        counts = np.bincount(rows, minlength=source.cells)
        within = np.arange(stop - at) - np.repeat(np.cumsum(counts) - counts, counts)
        target = place[rows[order]] + within
        columns[target] = column[order]
        data[target] = np.asarray(group["data"][at:stop])[order]
        place += counts
    columns.flush()
    data.flush()
    np.save(directory / "indptr.npy", ends)  # last: it marks the copy whole


def use_reblocked(source: Source, directory: Path) -> None:
    """Have `source` read its rows from what `reblock` wrote."""
    from scipy.sparse import csr_matrix

    ends, columns, data = (np.load(directory / f"{name}.npy", mmap_mode="r") for name in ("indptr", "indices", "data"))
    width = len(source.genes)

    def read(start: int, stop: int) -> csr_matrix:
        first, last = int(ends[start]), int(ends[stop])
        return csr_matrix((np.array(data[first:last]), np.array(columns[first:last]),
                           np.asarray(ends[start:stop + 1]) - first), (stop - start, width))

    source._read = read  # pyright: ignore[reportAttributeAccessIssue]


def uns_texts(path: str | Path, key: str) -> dict[str, str]:
    """Texts of `uns[key]`: by group where it is a mapping, else one of the whole file by the file's stem.

    Raises:
      ConfigError: the file cannot be read, has no such entry, or it holds something else than text.
    """
    from anndata.io import read_elem

    path = Path(path)
    group = _open(path)
    names = list(group["uns"]) if "uns" in group else []
    if key not in names:
        raise ConfigError(f"{path}: uns has no entry {key!r}; " + (nearest(key, names) if names else "it is empty"))
    value: Any = read_elem(group["uns"][key])
    found: dict[str, Any] = {str(k): v for k, v in value.items()} if isinstance(value, dict) else {path.stem: value}
    for name, text in found.items():
        if isinstance(text, np.ndarray) and text.shape == () or isinstance(text, np.generic):
            found[name] = text = text.item()
        if not isinstance(text, str) or not text.strip():
            raise ConfigError(f"{path}: uns[{key!r}] of {name!r} is {text!r}; expected a text")
    return found
