"""`jaxllm cells generate MODEL`: cells of a type, from a trained model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check, load, to_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--task", default="cell_type_generation",
                        help="template of the model whose response is a cell")
    parser.add_argument("--label", action="append", default=[],
                        help="value that the cells are written for; may be given several times")
    parser.add_argument("--count", type=int, default=10, help="cells written for each label")
    parser.add_argument("--genes", type=int, default=200, help="genes asked for of each cell")
    parser.add_argument("--organism", help="what the prompts call it; the model's own by default")
    parser.add_argument("--out", type=Path, help=".h5ad for the cells (expression by the fitted line), or .jsonl")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as temperature=0.8 seed=1")


def run(args: argparse.Namespace) -> int:
    """Write cells, show the first of each label."""
    for name in ("count", "genes"):
        check(getattr(args, name) >= 1, f"--{name}", getattr(args, name), "must be at least 1")
    if args.out is not None and args.out.suffix not in (".h5ad", ".jsonl"):
        raise ConfigError(f"--out {args.out}: name a .h5ad or a .jsonl file")
    from jaxllm.cells.decoding import WRITTEN, AnswerConfig, open_cell_model
    from jaxllm.cells.generate import write_cells

    answers = load(AnswerConfig, None, args.overrides, to_dict(WRITTEN))
    model = open_cell_model(args.model)
    labels = args.label or [""]
    wanted = [label for label in labels for _ in range(args.count)]
    made = write_cells(model, args.task, wanted, args.genes, answers, args.organism)
    for i in range(0, len(made.labels), args.count):
        head = " ".join(model.tokens.genes[g] for g in made.ranked[i][:12])
        print(f"{made.labels[i] or 'cell'}: {head} ... ({len(made.ranked[i])} genes)")
    print(f"{len(made.labels)} cells; {made.unknown} words that are no gene, {made.repeated} repeated genes")
    if args.out is not None:
        save(args.out, made, model)
        print(f"wrote {args.out}")
    return 0


def save(path: Path, made: Any, model: Any) -> None:
    """The cells as JSONL of sentences, or as h5ad of expression by the fitted line."""
    from jaxllm.cells.generate import write_h5ad
    from jaxllm.files import write_jsonl

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        write_jsonl(path, [{"label": label, "cell_sentence": " ".join(model.tokens.genes[g] for g in ranked)}
                           for label, ranked in zip(made.labels, made.ranked, strict=True)])
        return
    names = [f"generated_{i}" for i in range(len(made.labels))]
    write_h5ad(path, made.expression(model), model.tokens.genes, names, {"label": made.labels})
