"""Real cells that packages carry as files: 700 labelled blood cells in scanpy, 559 immune cells in celltypist.

Only their files are read; nothing of the packages is imported, so they may be installed without what they require:
`pip install --no-deps scanpy celltypist`.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.config import ConfigError

if TYPE_CHECKING:
    from anndata import AnnData

PBMC68K = "datasets/10x_pbmc68k_reduced.h5ad"
SAMPLE = "data/samples/sample_cell_by_gene.csv"


def package_file(package: str, name: str) -> Path:
    """A file below an installed package, which is not imported.

    Raises:
      ConfigError: the package is not installed or has no such file.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigError(f"the package {package} is not installed; pip install --no-deps {package}")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise ConfigError(f"{path}: this version of {package} does not carry it; pip install --no-deps -U {package}")
    return path


def pbmc68k() -> AnnData:
    """700 blood cells of 765 highly variable genes as molecule counts, cell types in obs.bulk_labels.

    The file holds ln(1 + 1e4 c / n), from which the counts c are recovered exactly; n is in obs.n_counts. Source:
    10x Genomics' 68k PBMC data (Zheng et al. 2017) as reduced by scanpy.

    Raises:
      ConfigError: scanpy's files are not installed.
    """
    import anndata

    from jaxllm.cells.counts import recover_counts

    with warnings.catch_warnings():  # an older file format
        warnings.simplefilter("ignore")
        data = anndata.read_h5ad(package_file("scanpy", PBMC68K))
    raw: Any = data.raw
    obs: Any = data.obs
    if raw is None:
        raise ConfigError("scanpy's pbmc68k file holds no .raw; install scanpy<2")
    counts = recover_counts(raw.X)
    counts.sort_indices()
    return anndata.AnnData(counts, obs=obs.copy(), var=raw.var[[]].copy())


def celltypist_sample() -> AnnData:
    """559 human immune cells of 32,786 genes as molecule counts, without labels.

    Raises:
      ConfigError: celltypist's files are not installed.
    """
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix, vstack

    path = package_file("celltypist", SAMPLE)
    with path.open(encoding="utf-8") as file:
        genes = file.readline().rstrip("\n").split(",")[1:]
        names, rows = [], []
        for line in file:
            name, _, values = line.partition(",")
            names.append(name)
            # Text such as 0.999999999999999: the counts were written after a round trip through logarithms.
            rows.append(csr_matrix(np.rint(np.fromstring(values, np.float32, sep=","))))
    return anndata.AnnData(csr_matrix(vstack(rows)), obs=pd.DataFrame(index=pd.Index(names)),
                           var=pd.DataFrame(index=pd.Index(genes)))
