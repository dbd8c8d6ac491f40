"""`jaxllm cells scfid REAL GENERATED`: Fréchet distance of embeddings computed elsewhere, such as scGPT's."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    text = "embeddings by cell: .npz of `cells` and `embedding`, .parquet or .csv"
    parser.add_argument("real", type=Path, help=f"real cells; {text}; or the .h5ad of an evaluation, with all its sets")
    parser.add_argument("generated", type=Path, help="generated cells, as `jaxllm cells generate --out` names them, by "
                                                     "the same embedder; or all cells of that .h5ad")


def run(args: argparse.Namespace) -> int:
    """Read both, print the distance, of an evaluation's cells by set and label."""
    from jaxllm.cells.embedder import embeddings_from_file
    from jaxllm.cells.frechet import frechet

    if args.real.suffix == ".h5ad":
        return _sets(args.real, args.generated)
    found = frechet(*(embeddings_from_file(path).values for path in (args.real, args.generated)))
    print(f"scFID {found.value:.4f} in {found.dim} dimensions: {found.n_real} real and {found.n_generated} generated "
          "cells" + ("; too few for the dimensions, compare with equal numbers only" if found.deficient else ""))
    return 0


def _sets(path: Path, embeddings: Path) -> int:
    from jaxllm.cells.embedder import embeddings_from_file
    from jaxllm.cells.frechet import frechet, scfid_by_class
    from jaxllm.cells.inputs import open_source
    from jaxllm.studies import console, table

    source = open_source(path)
    source.check_columns(("set", "label"))
    of, labels = (source.column(name, 0, source.cells).to_numpy(zero_copy_only=False) for name in ("set", "label"))
    values = embeddings_from_file(embeddings).of(source.names(0, source.cells))
    real, rows = of == "real", []
    known = sorted(set(labels[real].tolist()))
    for name in dict.fromkeys(of[~real].tolist()):
        made = of == name
        by_label = scfid_by_class(values[real], labels[real], values[made], labels[made], lambda x, genes: x)
        rows.append([name, frechet(values[real], values[made]).value, *(by_label[label].value for label in known)])
    console().print(table(f"scFID to {int(real.sum())} real cells, {values.shape[1]} dimensions",
                          ["cells", "all", *known], rows))
    return 0
