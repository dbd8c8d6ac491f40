"""Cells made by hand, converted once, for tests of what is trained on them."""

import numpy as np

TYPES = ("B cell", "CD4+, T", "NK")  # a tokenizer of words sets signs apart
GENES = [f"G{i}" for i in range(1, 25)] + ["HLA-A", "RP11-3.7"]


def counts(n=60, seed=0):
    """Counts `[n, 26]` in which cell i's type has eight genes of its own on top."""
    rng = np.random.default_rng(seed)
    types = np.arange(n) % len(TYPES)
    rate = np.full((n, len(GENES)), 0.7)
    for t in range(len(TYPES)):
        rate[types == t, 8 * t:8 * t + 8] = 12.0
    return rng.poisson(rate).astype(np.float32), types


def adata(n=60, seed=0):
    import anndata
    import pandas
    from scipy.sparse import csr_matrix

    x, types = counts(n, seed)
    batch = np.array(["one", "two"])[np.arange(n) // 3 % 2]
    drug = np.array(["control", "X", "Y", "X+Y"])[np.arange(n) // 6 % 4]
    obs = pandas.DataFrame({"type": np.array(TYPES)[types], "batch": batch, "drug": drug},
                           index=[f"cell{i}" for i in range(n)])
    return anndata.AnnData(csr_matrix(x), obs=obs, var=pandas.DataFrame(index=GENES))


def convert_to(directory, n=60, seed=0, **settings):
    from jaxllm.cells.conversion import ConvertConfig, convert

    convert(ConvertConfig(**settings), directory, data=[adata(n, seed)])
    return directory
