"""`jaxllm cells annotate MODEL --cells DIR --out FILE`: a model's labels, captions of groups and embeddings."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import check, load, to_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--cells", type=Path, required=True, help="converted cells, with the model's vocabulary")
    parser.add_argument("--task", help="template that shows a cell and asks for a label (cell_type_prediction by "
                                       "default); with --group one that shows several (cluster_captioning)")
    parser.add_argument("--group", metavar="COLUMN", help="one answer for each value of this obs column")
    parser.add_argument("--size", type=int, help="cells shown of a group; as many as in training by default")
    parser.add_argument("--out", type=Path, required=True, help=".csv of cell, or group, and label")
    parser.add_argument("--embeddings", type=Path, help=".npz of embeddings beside it, `cells` and `embedding`")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as max_tokens=16 slots=64")


def run(args: argparse.Namespace) -> int:
    """Label, count, write."""
    import collections
    import csv

    from jaxllm.cells.decoding import AnswerConfig, open_cell_model

    check(args.size is None or (args.group is not None and args.size >= 1), "--size", args.size,
          "goes with --group and must be at least 1")
    check(args.embeddings is None or args.embeddings.suffix == ".npz", "--embeddings", str(args.embeddings),
          "name a .npz file")
    from jaxllm.cells import open_cells
    from jaxllm.cells.annotation import LABELS, TEXTS, annotate, describe, embed
    from jaxllm.files import aside

    config = load(AnswerConfig, None, args.overrides, to_dict(LABELS if args.group is None else TEXTS))
    model, cells = open_cell_model(args.model), open_cells(args.cells)
    if args.group is None:
        what, names = "cell", cells.names.tolist()
        labels = annotate(model, cells, args.task or "cell_type_prediction", config)
    else:
        what, found = args.group, describe(model, cells, args.group, args.task or "cluster_captioning", config,
                                           args.size)
        names, labels = list(found), list(found.values())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with aside(args.out) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(what, "label"), *zip(names, labels, strict=True)])
    if args.embeddings is not None:
        import numpy as np

        found = embed(model, [cells.ranked(i) for i in range(len(cells))])
        with aside(args.embeddings) as temporary, open(temporary, "wb") as file:
            np.savez(file, cells=cells.names, embedding=found)
    for label, count in collections.Counter(labels).most_common(20):
        print(f"{count:8,}  {label}")
    print(f"wrote {args.out}: {len(labels)} answers")
    return 0
