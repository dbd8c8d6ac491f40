"""`jaxllm cells perturb MODEL --perturbation NAME --out FILE.h5ad`: control cells as they would be after it."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, check, load, nearest, to_dict

SHOWN = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--perturbation", action="append", required=True,
                        help="one that the model was trained on, or a combination of such; may be given several times")
    parser.add_argument("--cells", type=Path, help="converted cells; those that it was trained on by default")
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE",
                        help="control cells of this value alone; may be given several times")
    parser.add_argument("--count", type=int, default=50, help="control cells, drawn by the seed; 0 for all")
    parser.add_argument("--out", type=Path, required=True,
                        help=".h5ad: expression by the fitted line; obs says base cell and perturbation")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as temperature=0.8 seed=1")


def run(args: argparse.Namespace) -> int:
    """Write the cells, show the genes that move most."""
    check(args.count >= 0, "--count", args.count, "must not be negative; 0 for all")
    if args.out.suffix != ".h5ad":
        raise ConfigError(f"--out {args.out}: name a .h5ad file")
    import numpy as np

    from jaxllm.cells import open_cells
    from jaxllm.cells.decoding import WRITTEN, AnswerConfig, open_cell_model
    from jaxllm.cells.expression import sample
    from jaxllm.cells.generate import perturbations, perturbed_task, write_h5ad, write_perturbed

    answers = load(AnswerConfig, None, args.overrides, to_dict(WRITTEN))
    model = open_cell_model(args.model)
    cells = open_cells(args.cells or model.data.path)
    task, number = perturbed_task(model, cells)
    pair = model.data.tasks[number].pair
    assert pair is not None
    wanted = perturbations(model, task, list(dict.fromkeys(args.perturbation)), "--perturbation")
    chosen = cells.texts(pair.column) == pair.control
    for text in args.where:
        column, _, value = text.partition("=")
        values = cells.texts(column)
        check(value in values, "--where", text, f"no cell has that value; {nearest(value, sorted(set(values)))}")
        chosen &= values == value
    rows = np.flatnonzero(chosen)
    check(len(rows) > 0, "--where", " ".join(args.where), "no control cell is left")
    rows = rows[sample(len(rows), args.count or None, answers.seed)]
    if pair.controls and pair.control not in wanted:
        wanted = [pair.control, *wanted]
    made = write_perturbed(model, task, np.tile(rows, len(wanted)).tolist(),
                           [name for name in wanted for _ in rows], answers)
    expression = made.expression(model)
    base = [str(name) for name in cells.names[rows]] * len(wanted)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_h5ad(args.out, expression, model.tokens.genes,
               [f"{name} {label}" for name, label in zip(base, made.labels, strict=True)],
               {"base": base, pair.column: made.labels})
    means = np.asarray(expression.toarray()).reshape(len(wanted), len(rows), -1).mean(1)
    before = means[0] if wanted[0] == pair.control else model.read_back(
        [cells.ranked(int(row)) for row in rows]).mean(0)
    for name, after in zip(wanted, means, strict=True):
        if name != pair.control:
            order = np.argsort(after - before)
            up, down = (" ".join(model.tokens.genes[i] for i in part) for part in (order[::-1][:SHOWN], order[:SHOWN]))
            print(f"{name}: up {up}; down {down}")
    print(f"wrote {args.out}: {len(rows)} control cells, {', '.join(wanted)}. These are a model's predictions, not "
          "results of an experiment.")
    return 0
