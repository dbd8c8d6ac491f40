"""Golden inputs and made-up cells, shared by the tests of this room."""

import functools
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from scipy.sparse import csr_matrix

GOLDEN = Path(__file__).parents[1] / "golden/c2s"


@functools.cache
def golden():
    return json.loads((GOLDEN / "golden.json").read_text())


@functools.cache
def golden_input(name):
    """(counts CSR, gene names as given, other arrays)."""
    with np.load(GOLDEN / f"{name}.input.npz") as z:
        data = {key: z[key] for key in z.files}
    matrix = csr_matrix((data["data"], data["indices"], data["indptr"]), tuple(data["shape"]))
    return matrix, [str(g) for g in data["genes"]], data


def golden_adata(name):
    matrix, genes, data = golden_input(name)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(matrix.shape[0])])
    if "label" in data:
        obs["label"] = pd.Categorical(data["label"])
    return anndata.AnnData(matrix.astype(np.float32), obs=obs, var=pd.DataFrame(index=genes))


def make_cells(cells=50, genes=30, seed=0, density=0.4, prefix="cell"):
    """AnnData of small counts, many of them equal, with obs of every kind."""
    rng = np.random.default_rng(seed)
    counts = rng.geometric(0.5, (cells, genes)) * (rng.random((cells, genes)) < density)
    obs = pd.DataFrame({
        "type": pd.Categorical(rng.choice(["B cell", "T cell"], cells)), "batch": rng.integers(0, 3, cells),
        "score": rng.random(cells), "good": rng.random(cells) < 0.5, "note": [f"n{i}" for i in range(cells)],
    }, index=[f"{prefix}{i}" for i in range(cells)])
    return anndata.AnnData(csr_matrix(counts.astype(np.float32)), obs=obs,
                           var=pd.DataFrame({"symbol": [f"S{i}" for i in range(genes)]},
                                            index=[f"GENE{i}" for i in range(genes)]))


def naive_ranks(row, tie):
    """Gene indices by descending value, then `tie`, zeros and negatives left out."""
    return sorted(np.flatnonzero(row > 0), key=lambda g: (-row[g], tie[g]))


def files_of(directory):
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(Path(directory).rglob("*")) if p.is_file()}
