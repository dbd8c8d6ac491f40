"""`jaxllm cells example NAME --out FILE.h5ad`: real cells from an installed package, as counts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, load, nearest

NAMES = ("pbmc68k", "celltypist", "perturbations", "screen", "corpus")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("name", help="pbmc68k (700 blood cells with types) or celltypist (559 immune cells); "
                                     "simulated: perturbations, screen, corpus")
    parser.add_argument("--out", type=Path, required=True, help="the .h5ad to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of a simulation, such as seed=1 cells=50")


def run(args: argparse.Namespace) -> int:
    """Write it."""
    if args.name not in NAMES:
        raise ConfigError(f"cells example {args.name!r}: {nearest(args.name, NAMES)}")
    from jaxllm.files import aside

    data = made(args.name, args.overrides)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with aside(args.out) as temporary:
        data.write_h5ad(temporary)
    print(f"wrote {args.out}: {data.n_obs} cells of {data.n_vars} genes; obs: {', '.join(data.obs.columns)}")
    return 0


def made(name: str, overrides: list[str]) -> Any:
    """The AnnData of a name."""
    from jaxllm.cells import datasets, planted, simulate

    if name in ("pbmc68k", "celltypist"):
        if overrides:
            raise ConfigError(f"{overrides[0]}: {name} is real and takes no settings")
        return datasets.pbmc68k() if name == "pbmc68k" else datasets.celltypist_sample()
    if name == "perturbations":
        cells = simulate.simulate_perturbations(load(simulate.PerturbationConfig, None, overrides)).cells
    elif name == "screen":
        cells = planted.simulate_screen(load(planted.PlantedConfig, None, overrides)).cells
    else:
        cells = simulate.simulate_corpus(load(simulate.CorpusConfig, None, overrides))
    return simulate.to_anndata(cells)
