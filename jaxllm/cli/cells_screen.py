"""`jaxllm cells screen MODEL`: which perturbations move a gene program in one context and not in the other."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import load

SHOWN = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--cells", type=Path, help="converted cells; those that it was trained on by default")
    parser.add_argument("--config", help="YAML file of the screen")
    parser.add_argument("--out", type=Path, required=True, help="directory; a screen that was stopped there goes on")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="such as cells=100 statistics.positive=tumour statistics.neutral=line")


def run(args: argparse.Namespace) -> int:
    """Screen, print the first candidates."""
    from jaxllm.cells.screening import TABLE, VOLCANO, VirtualScreenConfig, virtual_screen

    config = load(VirtualScreenConfig, args.config, args.overrides)
    from jaxllm.cells import open_cells
    from jaxllm.cells.decoding import open_cell_model
    from jaxllm.studies import console, table

    model = open_cell_model(args.model)
    cells = open_cells(args.cells or model.data.path)
    found = virtual_screen(model, cells, config, args.out)
    rows = [[r["rank"], r["candidate"], r["effect_positive"], r["effect_neutral"], r["split"],
             f"{r['split_low']:.3f} to {r['split_high']:.3f}", r["p"], r["q"], "yes" if r["conditional"] else ""]
            for r in found.rows(SHOWN)]
    statistics = config.statistics
    console().print(table(f"first {len(rows)} of {len(found.candidates)} candidates", [
        "rank", "candidate", statistics.positive, statistics.neutral, "split", "95 %", "p", "q", "conditional"], rows))
    print(f"wrote {args.out / TABLE}; picture: {args.out / VOLCANO}. These are a model's predictions, not results of "
          "an experiment.")
    return 0
