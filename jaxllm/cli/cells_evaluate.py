"""`jaxllm cells evaluate MODEL`: a model of cells on the cells that it has not seen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="run directory, or its model directory")
    parser.add_argument("--cells", type=Path, help="converted cells; those that it was trained on by default")
    parser.add_argument("--out", type=Path, help="directory for figures and plots; RUN/evaluation by default")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as limit=100 answers.temperature=0.8")


def run(args: argparse.Namespace) -> int:
    """Measure, print, write, draw."""
    from jaxllm.cells.evaluation import EvaluateConfig, evaluate, write

    config = load(EvaluateConfig, None, args.overrides)
    from jaxllm.cells import open_cells
    from jaxllm.cells.decoding import open_cell_model
    from jaxllm.cells.evaluation_plots import draw
    from jaxllm.studies import console

    model = open_cell_model(args.model)
    cells = open_cells(args.cells or model.data.path)
    out = args.out or (args.model.parent if args.model.name == "model" else args.model) / "evaluation"
    report = evaluate(model, cells, config)
    write(out, report, cells)
    pictures = draw(out, report, cells)
    for text in tables(report):
        console().print(text)
    print(f"wrote {out / 'evaluation.json'}; pictures: {', '.join(p.name for p in pictures)}")
    return 0


def tables(report: dict[str, Any]) -> list[Any]:
    """A table of each task."""
    from jaxllm.studies import table

    out = []
    for name, found in report["tasks"].items():
        title = f"{name}, {found.get('cells', found.get('groups'))} test cells"
        if found["kind"] == "label":
            out.append(table(title, ["predictor", "accuracy", "95 %", "macro-F1", "95 %"], [
                [who, s["accuracy"][0], _range(s["accuracy"]), s["macro_f1"][0], _range(s["macro_f1"])]
                for who, s in found["scores"].items()]))
        elif found["kind"] == "cell":
            columns = ["scfid", "knn_5", "mmd", "wasserstein", "mean_r2", "mean_pearson", "levenshtein"]
            out.append(table(title, ["cells", *columns], [
                [who, *(s.get(c, float("nan")) for c in columns)] for who, s in found["sets"].items()]))
        elif found["kind"] == "perturbed":
            rows = [[condition, "yes" if c["in_training"] else "no", who, s["rmse"], s["pearson"]]
                    for condition, c in found["conditions"].items() for who, s in c["scores"].items()]
            out.append(table(title, ["condition", "trained", "predictor", "rmse", "Pearson of effects"], rows))
        else:
            out.append(table(title, ["score", "mean", "95 %"], [
                [score, value[0], _range(value)] for score, value in found["scores"].items()]))
    return out


def _range(value: list[float]) -> str:
    return f"{value[1]:.3f} to {value[2]:.3f}"
