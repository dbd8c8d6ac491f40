"""`jaxllm cells annotate MODEL --cells DIR --out FILE`: a model's labels, and embeddings, of cells without any."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import check, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--cells", type=Path, required=True, help="converted cells, with the model's vocabulary")
    parser.add_argument("--task", default="cell_type_prediction",
                        help="template that shows a cell and asks for a label")
    parser.add_argument("--out", type=Path, required=True, help=".csv of cell and label")
    parser.add_argument("--embeddings", type=Path, help=".npz of embeddings beside it, `cells` and `embedding`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as max_tokens=16 slots=64")


def run(args: argparse.Namespace) -> int:
    """Label, count, write."""
    import collections
    import csv

    from jaxllm.cells.decoding import AnswerConfig, open_cell_model

    config = load(AnswerConfig, None, args.overrides, {"max_tokens": 32})
    check(args.embeddings is None or args.embeddings.suffix == ".npz", "--embeddings", str(args.embeddings),
          "name a .npz file")
    from jaxllm.cells import open_cells
    from jaxllm.cells.annotation import annotate, embed
    from jaxllm.files import aside

    model, cells = open_cell_model(args.model), open_cells(args.cells)
    labels = annotate(model, cells, args.task, config)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with aside(args.out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("cell", "label"), *zip(cells.names.tolist(), labels, strict=True)])
    if args.embeddings is not None:
        import numpy as np

        found = embed(model, [cells.ranked(i) for i in range(len(cells))])
        with aside(args.embeddings) as temporary, open(temporary, "wb") as file:
            np.savez(file, cells=cells.names, embedding=found)
    for label, count in collections.Counter(labels).most_common(20):
        print(f"{count:8,}  {label}")
    print(f"wrote {args.out}: {len(labels)} cells")
    return 0
