"""`jaxllm cells scfid REAL GENERATED`: Fréchet distance of embeddings computed elsewhere, such as scGPT's."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    text = "embeddings by cell: .npz of `cells` and `embedding`, .parquet or .csv"
    parser.add_argument("real", type=Path, help=f"real cells; {text}")
    parser.add_argument("generated", type=Path, help="generated cells, as `jaxllm cells generate --out` names them, by "
                                                     "the same embedder")


def run(args: argparse.Namespace) -> int:
    """Read both, print the distance."""
    from jaxllm.cells.embedder import embeddings_from_file
    from jaxllm.cells.frechet import frechet

    found = frechet(*(embeddings_from_file(path).values for path in (args.real, args.generated)))
    print(f"scFID {found.value:.4f} in {found.dim} dimensions: {found.n_real} real and {found.n_generated} generated "
          "cells" + ("; too few for the dimensions, compare with equal numbers only" if found.deficient else ""))
    return 0
