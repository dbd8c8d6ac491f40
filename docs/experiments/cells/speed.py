"""Cells written a second: token after token, and by masked diffusion recomputed, with block caches, with Elastic-Cache.

Takes the models of configs/cells/pbmc68k.yaml and pbmc68k_masked.yaml; the same prompts for all, compilation left out.
Run: python docs/experiments/cells/speed.py runs/pbmc68k runs/pbmc68k_masked
"""

import sys
from pathlib import Path

from jaxllm.bench.timing import paired
from jaxllm.cells import AnswerConfig, open_cell_model, write_cells
from jaxllm.files import write_json
from jaxllm.tracking import environment

CELLS, GENES, REPEATS = 32, 200, 3
LABELS = ["CD14+ Monocyte", "CD19+ B", "Dendritic", "CD56+ NK"]


def main() -> None:
    """Time all sides in turn."""
    causal, masked = (open_cell_model(path) for path in sys.argv[1:3])
    labels = [LABELS[i % len(LABELS)] for i in range(CELLS)]

    def side(model, **settings):
        config = AnswerConfig(temperature=1.0, slots=CELLS, **settings)
        return lambda: write_cells(model, "cell_type_generation", labels, GENES, config)

    sides = {"causal": side(causal), **{method: side(masked, method=method) for method in ("full", "dual", "elastic")}}
    seconds = paired(sides, REPEATS)
    rates = {name: CELLS / min(found) for name, found in seconds.items()}
    for name, rate in rates.items():
        print(f"{name}: {rate:.2f} cells a second")
    write_json(Path("docs/experiments/cells/speed.json"), {
        "environment": environment(), "cells": CELLS, "genes": GENES, "seconds": seconds, "cells_per_s": rates,
        "elastic_vs_full": rates["elastic"] / rates["full"]})


if __name__ == "__main__":
    main()
