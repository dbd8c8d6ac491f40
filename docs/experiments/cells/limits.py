"""What a perfect generator of blood cells could show: other real cells of a type in place of generated ones.

For 50 stratified splits of the 700 cells, each as in pbmc68k.py: is scFID within a type lower for as many real training
cells, none twice, than for marginals of the type? Where it is not, no model can be told from marginals so.
Run: python docs/experiments/cells/limits.py        (about five minutes)
"""

from pathlib import Path

import numpy as np

from jaxllm.cells import ConvertConfig, convert, open_cells
from jaxllm.cells.baselines import marginal_cells
from jaxllm.cells.datasets import pbmc68k
from jaxllm.cells.embedder import EmbedderConfig, train_embedder
from jaxllm.cells.expression import Line, reconstruct_ranked
from jaxllm.cells.frechet import scfid, scfid_by_class
from jaxllm.cells.matrices import components
from jaxllm.cells.metrics import knn_accuracy
from jaxllm.cells.sentences import rank_cells
from jaxllm.cells.split import SplitConfig, split_cells
from jaxllm.files import write_json
from jaxllm.studies import proportion_interval

CELLS, OUT = Path("runs/pbmc68k_cells"), Path("docs/experiments/cells/limits.json")
COLUMN, GENES, SPLITS, FOLDS = "bulk_labels", 200, 50, 5


def main() -> None:
    """Compare and write."""
    if not CELLS.exists():
        convert(ConvertConfig(), CELLS, data=[pbmc68k()])
    cells = open_cells(CELLS)
    labels, line = cells.texts(COLUMN), Line(**cells.manifest["line"])
    ties = cells.manifest["settings"]

    def on_line(ranked: np.ndarray) -> np.ndarray:
        return reconstruct_ranked(ranked[:GENES], len(cells.genes), line)

    x = np.stack([on_line(cells.ranked(i)) for i in range(len(cells))])
    nearer: dict[str, list[bool]] = {}
    counts: dict[str, int] = {}
    overall, neighbours = [], []
    for split in range(SPLITS):
        parts = split_cells(cells, SplitConfig(folds=FOLDS, fold=split % FOLDS, stratify=COLUMN, validation=0.0,
                                               seed=1000 + split // FOLDS))
        train, test = parts["train"], parts["test"]
        rng = np.random.default_rng(split)
        left = {label: rng.permutation(train[labels[train] == label]).tolist() for label in set(labels[test].tolist())}
        other = x[[left[label].pop() for label in labels[test]]]
        made = rank_cells(marginal_cells(x[train], labels[train], labels[test], split), [str(i) for i in test],
                          cells.genes, tie_break=ties["tie_break"], seed=ties["seed"])
        drawn = np.stack([on_line(made.genes[a:b]) for a, b in zip(made.ends[:-1], made.ends[1:], strict=True)])
        embed = train_embedder(x[train], cells.genes, None, EmbedderConfig(seed=split))
        found = [scfid_by_class(x[test], labels[test], y, labels[test], embed, cells.genes) for y in (other, drawn)]
        whole = [scfid(x[test], y, embed, cells.genes).value for y in (other, drawn)]
        overall.append(whole[0] < whole[1])
        axes = components(x[test], 32, split)
        near = [knn_accuracy(axes.apply(x[test]), labels[test], axes.apply(y), labels[test], [5])[5]
                for y in (other, drawn)]
        neighbours.append(near[0] > near[1])
        for label, real in found[0].items():
            if np.isfinite(real.value):
                nearer.setdefault(label, []).append(real.value < found[1][label].value)
                counts[label] = real.n_real
        print(f"{split + 1}/{SPLITS}", flush=True)
    out = {"splits": SPLITS, "all cells": proportion_interval(sum(overall), len(overall)),
           "5 neighbours of their type": proportion_interval(sum(neighbours), len(neighbours)),
           "types": {label: {"test cells": counts[label], "real nearer": proportion_interval(sum(v), len(v))}
                     for label, v in sorted(nearer.items(), key=lambda item: -counts[item[0]])}}
    write_json(OUT, out)
    for label, v in out["types"].items():
        print(label, v)
    print({k: v for k, v in out.items() if k != "types"})


if __name__ == "__main__":
    main()
