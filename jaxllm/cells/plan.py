"""What a conversion will do, worked out before its first shard: everything that a shard needs and cannot see itself.

The plan lies in the conversion's directory, so that any process of any machine that sees the directory can write any
shard, in any order, with the same result.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxllm.cells.counts import KINDS, Scale, check_block, detect, linear, recover_counts
from jaxllm.cells.expression import TARGET, row_totals, sample
from jaxllm.cells.genes import GeneConfig, make_vocabulary, merge_columns
from jaxllm.cells.inputs import Source, open_source, reblock, stored_by_column, use_reblocked
from jaxllm.cells.sentences import REFERENCE_SEED, TieBreak, hashes, skip_reference
from jaxllm.cells.shards import FORMAT
from jaxllm.config import ConfigError, build, check, to_dict
from jaxllm.files import aside, read_json, sha256, write_json

RESERVED = ("cell_name", "cell_sentence", "expression", "genes")
PLAN, ARRAYS = "plan.json", "plan.npz"
NAMES_BLOCK = 1 << 16
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclasses.dataclass(frozen=True)
class ConvertConfig:
    """A conversion of cells to shards.

    Attributes:
      inputs: .h5ad files and .zarr directories, in the order of the result.
      layer: layer to read instead of X.
      raw: read .raw instead of X.
      input: what the values are: counts, linear (CPM, TPM), ln, log2 or log10 (of 1 + x); auto finds out or refuses.
      recover_counts: turn log(1 + target c / n) back into counts c before all else.
      genes: how columns get their names.
      target: sum of a cell after scaling, `median` for the median of all cells' totals, `none` for unscaled values.
      tie_break: order of equal values: `hash` of (seed, cell, gene); `gene`, a hash of (seed, gene), the same in every
        cell, which is easier to learn for a model that writes cells; or `reference`, as the published package.
      seed: of the hash and of the sample that the line is fitted on.
      top_k: genes kept of each cell; all where None.
      empty: cells without an expressed gene: left out (`drop`), kept with an empty sentence (`keep`) or an error
        (`refuse`); counted in any case.
      obs: obs columns kept; all where None.
      text: whether sentences are stored as text beside the gene indices.
      delimiter: between genes of the text.
      expression: whether normalised expression is stored.
      fit_cells: cells sampled for the line; all where None.
      shard_cells: input cells per shard.
      block_cells: input cells read at a time.
      workers: processes of this machine that write shards; 1 for this one alone.
      overwrite: replace another conversion that is there.
    """

    inputs: tuple[str, ...] = ()
    layer: str | None = None
    raw: bool = False
    input: Literal["auto", "counts", "linear", "ln", "log2", "log10"] = "auto"
    recover_counts: bool = False
    genes: GeneConfig = GeneConfig()
    target: float | Literal["median", "none"] = TARGET
    tie_break: TieBreak = "hash"
    seed: int = 0
    top_k: int | None = None
    empty: Literal["drop", "keep", "refuse"] = "drop"
    obs: tuple[str, ...] | None = None
    text: bool = True
    delimiter: str = " "
    expression: bool = True
    fit_cells: int | None = 1024
    shard_cells: int = 16384
    block_cells: int = 2048
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self):
        check(self.input in ("auto", *KINDS), "input", self.input, f"must be auto, {', '.join(KINDS)}")
        check(self.layer is None or not self.raw, "layer", self.layer, "choose it or raw=true, not both")
        check(self.target in ("median", "none") if isinstance(self.target, str) else self.target > 0, "target",
              self.target, "must be above 0, median or none")
        check(self.tie_break in get_args(TieBreak), "tie_break", self.tie_break, "must be hash, gene or reference")
        check(self.empty in ("drop", "keep", "refuse"), "empty", self.empty, "must be drop, keep or refuse")
        check(self.delimiter != "", "delimiter", self.delimiter, "must not be empty")
        check(len(set(self.inputs)) == len(self.inputs), "inputs", self.inputs, "name each file once")
        check(not (self.recover_counts and self.input == "counts"), "recover_counts", True, "input=counts are counts")
        for name, least in (("top_k", 1), ("fit_cells", 1), ("shard_cells", 1), ("block_cells", 1), ("workers", 1)):
            value = getattr(self, name)
            check(value is None or value >= least, name, value, f"must be at least {least}")
        for name in self.obs or ():
            check(name not in RESERVED, "obs", name, "is a name the shards use themselves; rename the column")


@dataclasses.dataclass(frozen=True)
class Plan:
    """See the module.

    Attributes:
      config: the settings.
      made_from: SHA-256 of the settings that tell in the result and of the inputs' content.
      sources: per input: label, path, cells, first (its first cell's number in all), kind, bytes, sha256, ...
      genes: the vocabulary.
      columns: per input, gene index of each column, -1 where left out.
      collisions: names that several columns share.
      unknown: columns that no table knows.
      obs: kept obs columns and their kinds.
      target: sum of a cell after scaling; None for unscaled.
      shards: (input, first row, end) of each.
      repeats: number of every cell, counted over all inputs, whose name came before, and how often it did.
      fit_rows: numbers of the cells that the line is fitted on.
      states: of the reference's generator at each shard's start: keys [S, 624] and positions [S]; or empty.
    """

    config: ConvertConfig
    made_from: str
    sources: list[dict[str, Any]]
    genes: tuple[str, ...]
    columns: tuple[np.ndarray, ...]
    collisions: dict[str, list[str]]
    unknown: tuple[str, ...]
    obs: dict[str, str]
    target: float | None
    shards: list[tuple[int, int, int]]
    repeats: tuple[np.ndarray, np.ndarray]
    fit_rows: np.ndarray
    states: tuple[np.ndarray, np.ndarray]

    def scale(self, source: int) -> Scale:
        """What an input's values are."""
        entry = self.sources[source]
        return Scale(entry["kind"], entry["total"], self.config.input != "auto")


def open_inputs(config: ConvertConfig, data: Sequence[Any] = ()) -> list[Source]:
    """The inputs of a config, or AnnData given instead."""
    if data and config.inputs:
        raise ConfigError("inputs: give files or AnnData, not both")
    if not data and not config.inputs:
        raise ConfigError("inputs: name at least one .h5ad file or .zarr directory")
    sources = [open_source(item, layer=config.layer, raw=config.raw, symbols=config.genes.symbols)
               for item in (data or config.inputs)]
    for source in sources:
        source.check_columns(config.obs or ())
    return sources


def fingerprint(config: ConvertConfig, sources: Sequence[Source], progress: Progress) -> tuple[str, list[dict]]:
    """SHA-256 of all the result depends on, and per input its path, size and SHA-256."""
    files = []
    for source, path in zip(sources, config.inputs or (None,) * len(sources), strict=True):
        parts = _files_of(path) if path else []
        stats = [p.stat() for p in parts]
        digest = _hash_files(Path(path or ""), parts, progress) if path else _hash_memory(source)
        files.append({
            "label": source.label, "path": path and str(Path(path).resolve()), "sha256": digest,
            "bytes": sum(s.st_size for s in stats), "mtime_ns": max((s.st_mtime_ns for s in stats), default=0)})
    settings = to_dict(config)
    for name in ("inputs", "workers", "overwrite"):
        del settings[name]
    tables = [config.genes.gene_table, config.genes.ortholog_table, config.genes.vocabulary]
    made_from = {"format": FORMAT, "settings": settings, "inputs": [f["sha256"] for f in files],
                 "tables": [_hash_tables(table) for table in tables if table]}
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest(), files


def moved(entry: dict[str, Any]) -> bool:
    """Whether an input is another than when it was hashed, by size and time."""
    if entry["path"] is None:
        return False
    stats = [p.stat() for p in _files_of(entry["path"])]
    return (sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)) != (entry["bytes"], entry["mtime_ns"])


def _files_of(path: str | Path) -> list[Path]:
    path = Path(path)
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _hash_files(root: Path, parts: list[Path], progress: Progress) -> str:
    total, done = sum(p.stat().st_size for p in parts), 0
    if parts == [root]:
        progress("hashing", total, total)
        return sha256(root)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part.relative_to(root)}\0{sha256(part)}\n".encode())
        done += part.stat().st_size
        progress("hashing", done, total)
    return digest.hexdigest()


def _hash_tables(path: str) -> str:
    try:
        return sha256(Path(path) / "manifest.json" if Path(path).is_dir() else path)
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror})") from None


def _hash_memory(source: Source) -> str:
    digest = hashlib.sha256("\0".join([*source.genes, *source.names(0, source.cells)]).encode())
    for part in stored_by_column(source) if source.is_csc else ():
        digest.update(part.tobytes())
    for _, block in () if source.is_csc else source.blocks():
        for part in (block.data, block.indices, block.indptr):
            digest.update(np.ascontiguousarray(part).tobytes())
    for name, kind in source.columns.items():
        digest.update(f"{name} {kind} {source.column(name, 0, source.cells).to_pylist()}".encode())
    return digest.hexdigest()


def make_plan(config: ConvertConfig, sources: list[Source], made_from: str, files: list[dict], directory: Path,
              progress: Progress) -> Plan:
    """Work the plan out and write it into `directory`; `sources` are ready for `block` then.

    Raises:
      ConfigError: for everything that can be refused before the first shard.
    """
    prepare_sources(sources, files, directory)
    first = np.cumsum([0, *(source.cells for source in sources)])
    total = int(first[-1])
    if not total:
        raise ConfigError(f"{sources[0].label}: holds no cells")
    entries = []
    for source, file, begin in zip(sources, files, first, strict=False):
        scale = detect(source) if config.input == "auto" else Scale(config.input, stated=True)
        if config.recover_counts and scale.kind == "counts":
            raise ConfigError(f"{source.label}: holds counts already; set recover_counts=false")
        entries.append({**file, "cells": source.cells, "first": int(begin), "kind": scale.kind, "total": scale.target,
                        "columns": len(source.genes)})
    vocabulary = make_vocabulary([(s.label, s.genes) for s in sources], config.genes, config.delimiter)
    shards = [(i, start, min(source.cells, start + config.shard_cells)) for i, source in enumerate(sources)
              for start in range(0, source.cells, config.shard_cells)]
    empty = np.zeros((0, 624), np.uint32), np.zeros(0, np.int64)
    plan = Plan(config, made_from, entries, vocabulary.genes, vocabulary.columns, vocabulary.collisions,
                vocabulary.unknown, _obs(config, sources), None if isinstance(config.target, str) else config.target,
                shards, _repeats(sources), sample(total, config.fit_cells, config.seed), empty)
    if config.target == "median":
        plan = dataclasses.replace(plan, target=_median_total(plan, sources, progress))
    if config.tie_break == "reference":
        plan = dataclasses.replace(plan, states=_states(plan, sources, progress))
    _save(plan, directory)
    return plan


def prepare_sources(sources: list[Source], files: list[dict], directory: Path) -> None:
    """Have matrices that lie by columns on disk copied by rows into `directory`."""
    for source, file in zip(sources, files, strict=True):
        if source.is_csc:
            place = directory / f"csr-{file['sha256'][:16]}"
            if not (place / "indptr.npy").is_file():
                reblock(source, place)
            use_reblocked(source, place)


def values_of(block: Any, source: Source, row: int, scale: Scale, recover: bool) -> Any:
    """A block that was read, checked and brought to the scale where values add up."""
    check_block(block, source, row, scale)
    return recover_counts(block, scale.kind, source.label) if recover else linear(block, scale)


def _obs(config: ConvertConfig, sources: list[Source]) -> dict[str, str]:
    """Kept obs columns and their kinds, text where inputs differ."""
    kinds: dict[str, set[str]] = {}
    for source in sources:
        for name in source.columns if config.obs is None else config.obs:
            if name in RESERVED:
                raise ConfigError(f"{source.label}: the obs column {name!r} has a name the shards use themselves; "
                                  "rename it, or list the columns to keep as obs")
            kinds.setdefault(name, set()).add(source.columns[name])
    return {name: found.pop() if len(found) == 1 else "float64" if found == {"int64", "float64"} else "string"
            for name, found in kinds.items()}


def _repeats(sources: list[Source]) -> tuple[np.ndarray, np.ndarray]:
    """Cells whose name came before, and how often it did; names themselves are not kept."""
    found = [np.zeros(0, np.uint64)]
    for source in sources:
        found += [hashes(source.names(start, min(source.cells, start + NAMES_BLOCK)))
                  for start in range(0, source.cells, NAMES_BLOCK)]
    keys = np.concatenate(found)
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    fresh = np.concatenate([[True], ordered[1:] != ordered[:-1]])[:len(keys)]
    starts = np.maximum.accumulate(np.where(fresh, np.arange(len(keys)), 0))
    times = np.arange(len(keys)) - starts
    rows, times = order[times > 0], times[times > 0]
    by_row = np.argsort(rows)
    return rows[by_row].astype(np.int64), times[by_row].astype(np.int64)


def _all_blocks(plan: Plan, sources: list[Source], what: str, progress: Progress) -> Iterator[tuple[int, int, Any]]:
    """(input, row, values) of every block of every input, never across two shards."""
    done, total = 0, sum(source.cells for source in sources)
    for i, start, stop in plan.shards:
        for row, block in sources[i].blocks(start, stop, plan.config.block_cells):
            yield i, row, values_of(block, sources[i], row, plan.scale(i), plan.config.recover_counts)
            done += len(np.asarray(block.indptr)) - 1
            progress(what, done, total)


def _median_total(plan: Plan, sources: list[Source], progress: Progress) -> float:
    totals = np.concatenate([row_totals(values) for _, _, values in
                             _all_blocks(plan, sources, "summing", progress)])
    return float(np.median(totals[totals > 0])) if (totals > 0).any() else 1.0


def _states(plan: Plan, sources: list[Source], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    """The reference's generator at the start of each shard: it is advanced by every cell before."""
    state = np.random.RandomState(REFERENCE_SEED)
    starts = {(i, start) for i, start, _ in plan.shards}
    keys, places = [], []
    for i, row, values in _all_blocks(plan, sources, "replaying", progress):
        if (i, row) in starts:
            now: Any = state.get_state(legacy=False)
            keys.append(now["state"]["key"].copy())
            places.append(now["state"]["pos"])
        merged = merge_columns(values, plan.columns[i], len(plan.genes))
        skip_reference(np.diff(merged.indptr), state)
    return np.stack(keys), np.array(places, np.int64)


def _save(plan: Plan, directory: Path) -> None:
    arrays: dict[str, Any] = {f"columns_{i}": columns for i, columns in enumerate(plan.columns)}
    with aside(directory / ARRAYS) as temporary:
        np.savez(temporary, repeated_rows=plan.repeats[0], repeated_times=plan.repeats[1], fit_rows=plan.fit_rows,
                 state_keys=plan.states[0], state_places=plan.states[1], **arrays)
    fields = {f.name: getattr(plan, f.name) for f in dataclasses.fields(plan)
              if f.name not in ("config", "columns", "repeats", "fit_rows", "states")}
    write_json(directory / PLAN, {"config": to_dict(plan.config), **fields})


def load_plan(directory: Path) -> Plan:
    """The plan that `make_plan` wrote into `directory`; read once a process for each that is written there."""
    return _load(directory, plan_stamp(directory))


def plan_stamp(directory: Path) -> tuple[int, int]:
    """What tells one plan of a directory from the next: a cluster's workers outlive a conversion."""
    found = (directory / PLAN).stat()
    return found.st_mtime_ns, found.st_ino


@functools.lru_cache(maxsize=2)
def _load(directory: Path, stamp: tuple[int, int]) -> Plan:
    data = read_json(directory / PLAN)
    with np.load(directory / ARRAYS) as arrays:
        return Plan(
            config=build(ConvertConfig, data.pop("config"), str(directory / PLAN)), genes=tuple(data.pop("genes")),
            columns=tuple(arrays[f"columns_{i}"] for i in range(len(data["sources"]))),
            unknown=tuple(data.pop("unknown")), shards=[tuple(shard) for shard in data.pop("shards")],
            repeats=(arrays["repeated_rows"], arrays["repeated_times"]), fit_rows=arrays["fit_rows"],
            states=(arrays["state_keys"], arrays["state_places"]), **data)
