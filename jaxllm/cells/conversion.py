"""Conversion of cells to Arrow shards that `datasets` opens: streaming, resumable, the same for any number of workers.

`convert` plans, has every shard written (here, by processes, or on a cluster), and joins them. All lies in
`.NAME.unfinished` beside the result and takes its name when whole; a shard that was finished before a kill is kept.
"""

from __future__ import annotations

import collections
import concurrent.futures
import concurrent.futures.process
import contextlib
import errno
import functools
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.cells.expression import fit_line, normalize_values, row_totals
from jaxllm.cells.genes import merge_columns
from jaxllm.cells.inputs import Source, kind_type, open_source
from jaxllm.cells.plan import (
    ARRAYS,
    PLAN,
    ConvertConfig,
    Plan,
    Progress,
    fingerprint,
    load_plan,
    make_plan,
    moved,
    open_inputs,
    plan_stamp,
    prepare_sources,
    values_of,
)
from jaxllm.cells.sentences import Ranked, hashes, rank, rank_reference, tie_names
from jaxllm.cells.shards import FORMAT, MANIFEST, UNFINISHED, broken
from jaxllm.config import ConfigError, to_dict
from jaxllm.files import aside, read_json, sha256, write_json

if TYPE_CHECKING:
    import pyarrow as pa

# Runs the function on every number and gives the results in any order.
Runner = Callable[[Callable[[int], dict[str, Any]], Sequence[int]], Iterable[dict[str, Any]]]


def convert(config: ConvertConfig, out: str | Path, *, data: Sequence[Any] = (), runner: Runner | None = None,
            progress: Progress = lambda *_: None) -> dict[str, Any]:
    """Convert cells into the directory `out`, unless that holds the same conversion already.

    A conversion that was killed goes on from its finished shards when it is called again.

    Args:
      config: inputs and settings.
      out: directory to write.
      data: AnnData to read instead of `config.inputs`; written by this process alone.
      runner: writes shards elsewhere; `config.workers` processes where None.
      progress: told what is done, how much of it and of how much.

    Returns:
      The manifest, which `Cells.manifest` gives later; see jaxllm/cells/shards.py.

    Raises:
      ConfigError: bad input, settings that do not fit it, another conversion in `out`, a full disk.
    """
    out = Path(out)
    work = out.with_name(UNFINISHED.format(out.name))
    sources = open_inputs(config, data)
    made_from, files = fingerprint(config, sources, progress)
    if out.exists():
        old = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else {}
        same = old.get("made_from") == made_from
        if same and broken(out, old) is None:
            return old
        if not old or not (same or config.overwrite):
            raise ConfigError(f"{out}: exists and " + (
                "holds another conversion; choose another directory or set overwrite=true" if old else
                "is no conversion; choose another directory"))
    left = read_json(work / MANIFEST) if (work / MANIFEST).is_file() else {}
    if left.get("made_from") == made_from and broken(work, left) is None:  # killed just before it took its name
        _publish(work, out)
        return left
    with _full_disk(out):
        plan = _start(config, sources, made_from, files, work, progress)
        records = _write_all(plan, sources if data else None, work, runner, progress)
        for entry in plan.sources:
            if moved(entry):
                raise ConfigError(f"{entry['label']}: changed while it was read; remove {work} and run again")
        manifest = _finish(plan, records, work)
        _publish(work, out)
    return manifest


def _publish(work: Path, out: Path) -> None:
    """Leave only what readers need, and give it its name."""
    for path in work.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name.startswith(("stats-", "shard-", ".")) or path.name in (PLAN, ARRAYS):
            path.unlink()
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _start(config: ConvertConfig, sources: list[Source], made_from: str, files: list[dict], work: Path,
           progress: Progress) -> Plan:
    """A new plan, or the one that an earlier run left in `work`."""
    if work.exists():
        old = read_json(work / PLAN) if (work / PLAN).is_file() else None
        if old and old["made_from"] == made_from:
            prepare_sources(sources, files, work)
            return load_plan(work)
        if old and not config.overwrite:
            raise ConfigError(f"{work}: holds an unfinished conversion of other inputs or settings; remove it, or set "
                              "overwrite=true")
        shutil.rmtree(work)
    work.mkdir(parents=True)
    try:
        return make_plan(config, sources, made_from, files, work, progress)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)  # no shard is lost with it
        raise


def _write_all(plan: Plan, sources: list[Source] | None, work: Path, runner: Runner | None,
               progress: Progress) -> list[dict[str, Any]]:
    records = [_finished(work, i) for i in range(len(plan.shards))]
    missing = [i for i, record in enumerate(records) if record is None]
    total = sum(entry["cells"] for entry in plan.sources)
    done = sum(r["stop"] - r["start"] for r in records if r)
    progress("converting", done, total)
    if sources is not None:
        results = map(functools.partial(write_shard, work, sources=sources), missing)
    else:
        workers = min(plan.config.workers, len(missing))
        run = runner or (functools.partial(_processes, workers) if workers > 1 else map)
        results = run(functools.partial(write_shard, work), missing)
    for record in results:
        records[record["shard"]] = record
        done += record["stop"] - record["start"]
        progress("converting", done, total)
    return [record for record in records if record is not None]


def _processes(workers: int, function: Callable[[int], dict[str, Any]],
               numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
    # Forked children would inherit threads of JAX and Arrow with their locks held.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(function, number) for number in numbers]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ConfigError("workers: one of the processes was killed (out of memory?); run again with fewer "
                              "workers, finished shards are kept") from None
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Have this process end when the one that started it is gone: after a kill -9 nobody else would tell it."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def shard_name(index: int) -> str:
    """File of a shard."""
    return f"cells-{index:05d}.arrow"


def _finished(work: Path, index: int) -> dict[str, Any] | None:
    """The record of a shard that is written and whole."""
    path = work / f"shard-{index:05d}.json"
    try:
        record = read_json(path)
        whole = sha256(work / record["file"]) == record["sha256"] and (work / record["stats"]).is_file()
    except (ConfigError, OSError, KeyError, TypeError):
        return None
    return record if whole else None


def write_shard(work: Path, index: int, sources: Sequence[Source] | None = None) -> dict[str, Any]:
    """Write one shard of the plan in `work`; the same bytes whoever calls it, whenever.

    Args:
      work: directory of the conversion.
      index: number of the shard.
      sources: opened inputs; opened here where None.

    Returns:
      Its record: file, cells, bytes, sha256, input and rows.
    """
    import pyarrow as pa

    plan = load_plan(work)
    number, start, stop = plan.shards[index]
    source = sources[number] if sources is not None else _opened(work, number, plan_stamp(work))
    state = _state(plan, index)
    kept, empty, gene_cells, fits = 0, 0, np.zeros(len(plan.genes), np.int64), []
    with _full_disk(work), aside(work / shard_name(index)) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, _schema(plan)) as writer:
            for row, block in source.blocks(start, stop, plan.config.block_cells):
                values = values_of(block, source, row, plan.scale(number), plan.config.recover_counts)
                ranked = _rank(plan, number, values, source.names(row, row + len(np.asarray(block.indptr)) - 1), row,
                               state)
                gene_cells += np.bincount(ranked.genes, minlength=len(plan.genes))
                fits.append(ranked.rows(np.isin(plan.sources[number]["first"] + row + np.arange(len(ranked)),
                                                plan.fit_rows)))
                batch = _batch(plan, source, ranked, row)
                kept += batch.num_rows
                empty += int((ranked.lengths == 0).sum())
                if batch.num_rows:
                    writer.write_batch(batch)
        stats = f"stats-{index:05d}.npz"
        with aside(work / stats) as other:
            np.savez(other, gene_cells=gene_cells, fit_values=np.concatenate([f.values for f in fits]),
                     fit_lengths=np.concatenate([f.lengths for f in fits]))
        record = {"shard": index, "file": shard_name(index), "stats": stats, "cells": kept, "empty": empty,
                  "bytes": temporary.stat().st_size, "sha256": sha256(temporary), "input": number, "start": start,
                  "stop": stop}
    write_json(work / f"shard-{index:05d}.json", record)  # last: it marks the shard whole
    return record


@functools.lru_cache(maxsize=4)
def _opened(work: Path, number: int, stamp: tuple[int, int]) -> Source:
    """An input, open in this process; its shards share it."""
    plan = load_plan(work)
    entry = plan.sources[number]
    source = open_source(entry["path"], layer=plan.config.layer, raw=plan.config.raw,
                         symbols=plan.config.genes.symbols)
    prepare_sources([source], [entry], work)
    return source


def _state(plan: Plan, index: int) -> np.random.RandomState | None:
    """The reference's generator where the shard before left it."""
    if plan.config.tie_break != "reference":
        return None
    state = np.random.RandomState()
    state.set_state(("MT19937", plan.states[0][index], int(plan.states[1][index]), 0, 0.0))
    return state


def _rank(plan: Plan, number: int, values: Any, names: list[str], row: int,
          state: np.random.RandomState | None) -> Ranked:
    """A block's rows, ranked, with normalised expression as values."""
    totals = row_totals(values)
    merged = merge_columns(values, plan.columns[number], len(plan.genes))
    if state is not None:
        ranked = rank_reference(merged, state)
    else:
        shown = tie_names(_unique(plan, number, names, row), plan.config.tie_break)
        ranked = rank(merged, hashes(shown, plan.config.seed), _gene_hashes(plan.genes))
    return Ranked(ranked.ends, ranked.genes, normalize_values(ranked.values, ranked.lengths, totals, plan.target))


@functools.lru_cache(maxsize=2)
def _gene_hashes(genes: tuple[str, ...]) -> np.ndarray:
    return hashes(genes)


def _unique(plan: Plan, number: int, names: list[str], row: int) -> list[str]:
    """Names for the ties' hash: one that came before is told apart by how often it did."""
    rows, times = plan.repeats
    first = plan.sources[number]["first"] + row
    begin, end = np.searchsorted(rows, [first, first + len(names)])
    if begin == end:
        return names
    names = list(names)
    for at, n in zip(rows[begin:end] - first, times[begin:end], strict=True):
        names[at] = f"{names[at]}\0{n}"
    return names


def _schema(plan: Plan) -> pa.Schema:
    import pyarrow as pa

    fields = [("cell_name", pa.string()), ("genes", pa.list_(pa.int32()))]
    fields += [("expression", pa.list_(pa.float32()))] if plan.config.expression else []
    fields += [("cell_sentence", pa.string())] if plan.config.text else []
    return pa.schema([*fields, *((name, kind_type(kind)) for name, kind in plan.obs.items())])


def _batch(plan: Plan, source: Source, ranked: Ranked, row: int) -> pa.RecordBatch:
    """A block's rows as the shards hold them."""
    import pyarrow as pa

    config, stop = plan.config, row + len(ranked)
    names = source.names(row, stop)
    kept = ranked.lengths > 0 if config.empty != "keep" else np.ones(len(ranked), bool)
    if config.empty == "refuse" and not kept.all():
        raise ConfigError(f"{source.label}: the cell {names[int(np.argmin(kept))]} has no expressed gene; set "
                          "empty=drop or empty=keep")
    cut = ranked.rows(kept).top(config.top_k)
    mask = pa.array(kept)
    columns = [pa.array(names, pa.string()).filter(mask), cut.lists()]
    columns += [cut.lists(cut.values)] if config.expression else []
    columns += [cut.sentences(plan.genes, config.delimiter)] if config.text else []
    for name, kind in plan.obs.items():
        if name not in source.columns:
            columns.append(pa.nulls(len(cut), kind_type(kind)))
            continue
        columns.append(source.column(name, row, stop).cast(kind_type(kind)).filter(mask))
    return pa.RecordBatch.from_arrays(columns, schema=_schema(plan))


def _finish(plan: Plan, records: list[dict[str, Any]], work: Path) -> dict[str, Any]:
    """Join what the shards counted; write what `datasets` reads, and last the manifest."""
    gene_cells, values, lengths = np.zeros(len(plan.genes), np.int64), [], []
    for record in records:
        with np.load(work / record["stats"]) as stats:
            gene_cells += stats["gene_cells"]
            values.append(stats["fit_values"])
            lengths.append(stats["fit_lengths"])
    cells = sum(record["cells"] for record in records)
    read = sum(entry["cells"] for entry in plan.sources)
    manifest = {
        "format": FORMAT, "made_from": plan.made_from, "cells": cells, "read_cells": read,
        "empty_cells": sum(r["empty"] for r in records), "repeated_names": len(plan.repeats[0]),
        "columns": list(plan.obs), "kinds": plan.obs, "settings": to_dict(plan.config),
        "normalization": {"target": plan.target, "log_base": 10, "fit": "expression by log10(1 + rank)"},
        "line": fit_line(np.concatenate(values), np.concatenate(lengths)).to_dict(),
        "inputs": [{k: v for k, v in entry.items() if k not in ("first", "mtime_ns")} for entry in plan.sources],
        "shards": [{k: v for k, v in record.items() if k not in ("shard", "stats")} for record in records],
        "collisions": plan.collisions, "unknown_genes": list(plan.unknown), "genes": list(plan.genes),
        "gene_cells": gene_cells.tolist()}
    _write_dataset_files(plan, records, work, manifest)
    write_json(work / MANIFEST, manifest)
    return read_json(work / MANIFEST)


def _write_dataset_files(plan: Plan, records: list[dict[str, Any]], work: Path, manifest: dict[str, Any]) -> None:
    """What `datasets.load_from_disk` looks for beside the shards."""
    from datasets import DatasetInfo, Features

    DatasetInfo(features=Features.from_arrow_schema(_schema(plan))).write_to_directory(str(work))
    write_json(work / "state.json", {
        "_data_files": [{"filename": r["file"]} for r in records], "_fingerprint": manifest["made_from"][:16],
        "_format_columns": None, "_format_kwargs": {}, "_format_type": None, "_output_all_columns": False,
        "_split": None})


@contextlib.contextmanager
def _full_disk(out: Path) -> Iterator[None]:
    """Errors of writing, such as a full disk, name the directory."""
    try:
        yield
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ConfigError(f"{out}: not converted ({err.strerror or err}); make room and run again, finished shards "
                          "are kept") from None


def summary(manifest: dict[str, Any]) -> dict[str, str]:
    """Figures of a conversion, ready to print."""
    line, kinds = manifest["line"], collections.Counter(entry["kind"] for entry in manifest["inputs"])
    return {
        "cells": f"{manifest['cells']:,} of {manifest['read_cells']:,}",
        "empty cells": f"{manifest['empty_cells']:,} ({manifest['settings']['empty']})",
        "repeated cell names": f"{manifest['repeated_names']:,}",
        "genes": f"{len(manifest['genes']):,}, {sum(n > 0 for n in manifest['gene_cells']):,} expressed",
        "collisions": f"{len(manifest['collisions']):,}" + _some(manifest["collisions"]),
        "unknown genes": f"{len(manifest['unknown_genes']):,}" + _some(manifest["unknown_genes"]),
        "values": ", ".join(f"{kind} ({n} input{'s' * (n > 1)})" for kind, n in kinds.items()),
        "obs columns": ", ".join(manifest["columns"]) or "none",
        "line": f"{line['intercept']:.4f} {line['slope']:+.4f} log10(1 + rank)",
        "fit": f"R² {_number(line['r2'])}, Pearson {_number(line['pearson'])}, Spearman {_number(line['spearman'])} "
               f"on {line['cells']:,} cells",
        "shards": f"{len(manifest['shards'])}, {sum(s['bytes'] for s in manifest['shards']) / 1e6:,.1f} MB"}


def _some(names: Iterable[str]) -> str:
    first = list(names)[:3]
    return f" ({', '.join(first)}, ...)" if first else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
