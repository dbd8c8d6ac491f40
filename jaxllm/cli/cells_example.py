"""`jaxllm cells example NAME --out FILE.h5ad`: real cells from an installed package, as counts."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, nearest

NAMES = ("pbmc68k", "celltypist", "perturbations", "screen")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("name", help="pbmc68k (700 blood cells with types) or celltypist (559 immune cells); "
                                     "simulated: perturbations, screen")
    parser.add_argument("--out", type=Path, required=True, help="the .h5ad to write")
    parser.add_argument("--seed", type=int, default=0, help="of a simulation")


def run(args: argparse.Namespace) -> int:
    """Write it."""
    if args.name not in NAMES:
        raise ConfigError(f"cells example {args.name!r}: {nearest(args.name, NAMES)}")
    from jaxllm.cells import datasets
    from jaxllm.files import aside

    if args.name == "pbmc68k":
        data = datasets.pbmc68k()
    elif args.name == "celltypist":
        data = datasets.celltypist_sample()
    else:
        raise ConfigError(f"cells example {args.name!r}: not there yet")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with aside(args.out) as temporary:
        data.write_h5ad(temporary)
    print(f"wrote {args.out}: {data.n_obs} cells of {data.n_vars} genes; obs: {', '.join(data.obs.columns)}")
    return 0
