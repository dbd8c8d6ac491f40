"""Models of 700 blood cells in folds by cell, beside baselines of the same folds.

`labels` learns cell types alone (3 repeats with other folds and seeds); `cells` learns to write cells of a type as
well, causal and by masked diffusion (one repeat); `halves` does so from half of the cells (one repeat), so that a type
of eight cells has four to compare with.
Run: python docs/experiments/cells/pbmc68k.py labels [--deadline SECONDS]      (goes on where it stopped)
     python docs/experiments/cells/pbmc68k.py cells|halves [--deadline SECONDS]
"""

import argparse
import shutil
import time
from functools import partial
from pathlib import Path

from jaxllm.cells import ConvertConfig, convert, open_cells, train_cells
from jaxllm.cells.datasets import pbmc68k
from jaxllm.cells.decoding import open_cell_model
from jaxllm.cells.evaluation import EvaluateConfig, evaluate
from jaxllm.cli.train import open_config
from jaxllm.studies import run_study

FOLDS, REPEATS = {"labels": 5, "cells": 5, "halves": 2}, {"labels": 3, "cells": 1, "halves": 1}
OUT, WORK, CELLS = Path("docs/experiments/cells"), Path("runs/pbmc68k_study"), Path("runs/pbmc68k_cells")
ARMS = {
    "labels": {"causal": "configs/cells/pbmc68k_labels.yaml"},
    # Both see as many tokens in as many steps of one size of model: equal training FLOPs.
    "cells": {"causal": "configs/cells/pbmc68k.yaml", "masked": "configs/cells/pbmc68k_masked.yaml"},
    "halves": {"causal": "configs/cells/pbmc68k.yaml"}}


def measure(config_file: str, seed: int, folds: int) -> dict[str, float]:
    """One fold of one repeat: accuracy of labels, distances of generated cells, seconds."""
    repeat, fold = divmod(seed, folds)
    config, _ = open_config(config_file, [f"seed={repeat}", f"cells.split.folds={folds}", f"cells.split.fold={fold}",
                                          f"cells.split.seed={repeat}", f"cells.path={CELLS}", "validation_batches=0",
                                          "cells.split.validation=0"])
    run = WORK / f"{Path(config_file).stem}_{folds}_{seed}"
    shutil.rmtree(run, ignore_errors=True)
    begun = time.perf_counter()
    train_cells(config, run, log=lambda text: None)
    trained = time.perf_counter() - begun
    model = open_cell_model(run)
    begun = time.perf_counter()
    report = evaluate(model, open_cells(CELLS), EvaluateConfig(seed=seed))
    out = {"train_s": round(trained, 1), "evaluate_s": round(time.perf_counter() - begun, 1)}
    for task in report["tasks"].values():
        if task["kind"] == "label":
            for who, scores in task["scores"].items():
                out |= {f"{who}/{name}": round(value[0], 4) for name, value in scores.items()}
            out["invalid"] = task["invalid"]
        else:
            out |= {"unknown_words": task["unknown_words"], "repeated_genes": task["repeated_genes"],
                    "mean_length": round(task["mean_length"], 2)}
            for who, found in task["sets"].items():
                out |= {f"{who}/{name}": round(value, 4) for name, value in found.items()
                        if isinstance(value, float)}
                out |= {f"{who}/{name}/{label}": round(values[name], 4) for label, values in found["by_label"].items()
                        for name in ("scfid", "knn_5")}
    shutil.rmtree(run)
    return out


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=ARMS)
    parser.add_argument("--deadline", type=float, help="start no further cell after this many seconds")
    args = parser.parse_args()
    if not CELLS.exists():
        convert(ConvertConfig(), CELLS, data=[pbmc68k()])
    folds = FOLDS[args.study]
    run_study(f"pbmc68k {args.study}", ARMS[args.study], range(folds * REPEATS[args.study]),
              partial(measure, folds=folds), OUT / f"pbmc68k_{args.study}", deadline_s=args.deadline)


if __name__ == "__main__":
    main()
