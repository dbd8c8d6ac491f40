"""`jaxllm bench cells`: cell sentences against the published package, and the memory of a streamed conversion."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.bench.timing import paired, show
from jaxllm.cells.sentences import rank_cells
from jaxllm.tracking import environment

CELLS, GENES, DENSITY = 20_000, 3_000, 0.1
STREAMED = (20_000, 200_000)
# What the package imports and the conversion does not use; its models need them.
UNUSED = ("plotnine", "cell2sentence.csmodel", "cell2sentence.tasks")

STREAM = """
import json, re, sys, time
from jaxllm.cells.conversion import ConvertConfig, convert
begun = time.perf_counter()
convert(ConvertConfig(inputs=(sys.argv[1],)), sys.argv[2])
seconds = time.perf_counter() - begun
# getrusage would give the peak of the process that started this one, if that is higher.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(json.dumps({"seconds": seconds, "peak_bytes": int(peak[1]) * 1024}))
"""


def bench(quick: bool) -> dict[str, Any]:
    """All sides in turn, printed; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    cells, repeats = (2_000, 2) if quick else (CELLS, 3)
    data = make_cells(cells)
    genes, names = [str(g) for g in data.var_names], [str(n) for n in data.obs_names]
    sides: dict[str, Callable[[], Any]] = {
        "strings": lambda: _strings(data.X, names, genes, "hash"),
        "strings_reference_ties": lambda: _strings(data.X, names, genes, "reference"),
        "ids": lambda: rank_cells(data.X, names, genes).ids(),
        "ids_top_200": lambda: rank_cells(data.X, names, genes).ids(200)}
    notes = []
    try:
        theirs = reference()
    except ImportError as err:
        notes.append(f"the published package was not measured: {err.name} is not installed: "
                     "pip install --no-deps cell2sentence")
    else:
        same = _strings(data.X, names, genes, "reference").column("cell_sentence").to_pylist()
        if theirs(data)["cell_sentence"] != same:
            raise AssertionError("tie_break=reference gave other sentences than the published package")
        notes.append("strings_reference_ties gives the published package's sentences, letter for letter; strings the "
                     "same genes and values in the order of hashed ties")
        sides["reference"] = lambda: theirs(data)
    with console.status("timing"):
        seconds = paired(sides, repeats, settle=1)
    with console.status("streaming"):
        memory = stream([n // 20 for n in STREAMED] if quick else list(STREAMED))
    out: dict[str, Any] = {
        "bench": "cells", "quick": quick, "environment": environment(), "notes": notes, "seconds": seconds,
        "settings": {"cells": cells, "genes": GENES, "density": DENSITY, "entries": int(data.X.nnz)},
        "memory": memory}
    out["ratios"] = ratios(out)
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    show(console, f"{cells:,} cells x {GENES:,} genes, {data.X.nnz:,} entries", ["side", "seconds", "cells/s"],
         [[n, s, cells / s] for n, s in median.items()]
         + [[f"convert {run['cells']:,}, peak {run['peak_bytes'] / 2**20:.0f} MiB", run["seconds"],
             run["cells"] / run["seconds"]] for run in memory], out)
    return out


def ratios(out: dict[str, Any]) -> dict[str, float | None]:
    """The package's median seconds over ours; peak memory of many streamed cells over that of few."""
    median = {name: float(np.median(s)) for name, s in out["seconds"].items()}
    theirs = median.get("reference")
    few, many = out["memory"]
    return {**{f"{name}_vs_reference": None if theirs is None else theirs / median[name]
               for name in median if name != "reference"},
            "memory_many_vs_few": many["peak_bytes"] / few["peak_bytes"]}


def make_cells(cells: int, seed: int = 0) -> Any:
    """AnnData [cells, GENES] float32: geometric counts, scaled to 10,000 a cell, log10(1 + x)."""
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

    from jaxllm.cells.expression import normalize, row_totals

    counts = _counts(cells, np.random.default_rng(seed))
    values = normalize(counts, row_totals(counts))
    obs = pd.DataFrame(index=pd.Index([f"cell{i}" for i in range(cells)]))
    var = pd.DataFrame(index=pd.Index([f"GENE{i}" for i in range(GENES)]))
    return anndata.AnnData(csr_matrix((values, counts.indices, counts.indptr), counts.shape), obs=obs, var=var)


def _counts(cells: int, rng: np.random.Generator) -> Any:
    """Geometric counts [cells, GENES] at DENSITY, CSR float32."""
    from scipy.sparse import csr_matrix, vstack

    parts = []
    for start in range(0, cells, 2_000):
        expressed = rng.random((min(2_000, cells - start), GENES), dtype=np.float32) < DENSITY
        part = csr_matrix(expressed, dtype=np.float32)
        part.data[:] = rng.geometric(0.4, part.nnz)
        parts.append(part)
    return csr_matrix(vstack(parts))


def _strings(matrix: Any, names: list[str], genes: list[str], tie_break: Any) -> Any:
    """A table of names and sentences, as the package builds."""
    import pyarrow as pa

    sentences = rank_cells(matrix, names, genes, tie_break=tie_break).sentences(genes)
    return pa.table({"cell_name": names, "cell_sentence": sentences})


def reference() -> Callable[[Any], Any]:
    """The published package's conversion of AnnData to a data set.

    Raises:
      ImportError: it is not installed.
    """
    with _stand_ins():
        csdata: Any = importlib.import_module("cell2sentence.csdata")

    def call(data: Any) -> Any:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return csdata.CSData.adata_to_arrow(data, label_col_names=[])[0]

    return call


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Empty modules for what is imported without being used."""
    added = []
    for name in UNUSED:
        if name not in sys.modules and (name.startswith("cell2sentence.") or importlib.util.find_spec(name) is None):
            module: Any = types.ModuleType(name)
            module.CSModel = object
            sys.modules[name] = module
            added.append(name)
    try:
        yield
    finally:
        for name in added:
            del sys.modules[name]


def stream(sizes: list[int]) -> list[dict[str, Any]]:
    """Seconds and peak memory of converting h5ad files of so many cells, each in a process of its own."""
    import anndata

    found = []
    with tempfile.TemporaryDirectory() as place:
        for cells in sizes:
            path = Path(place) / f"{cells}.h5ad"
            data = make_cells(1)
            data = anndata.AnnData(_counts(cells, np.random.default_rng(0)), var=data.var)
            data.obs_names = [f"cell{i}" for i in range(cells)]
            data.write_h5ad(path)
            del data
            done = subprocess.run([sys.executable, "-c", STREAM, str(path), str(Path(place) / f"out-{cells}")],
                                  capture_output=True, text=True, env=os.environ)
            if done.returncode:
                raise RuntimeError(done.stderr)
            found.append({"cells": cells, "file_bytes": path.stat().st_size, **json.loads(done.stdout)})
    return found
