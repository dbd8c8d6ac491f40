"""Held-out combinations: pairs of perturbations never seen together in training, against the additive prediction.

Simulated cells with known interactions: every single perturbation and half of the pairs are trained on, the other half
is predicted from control cells.
Run: python docs/experiments/cells/combinations.py [--deadline SECONDS]
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from jaxllm.cells import ConvertConfig, convert, open_cells, train_cells
from jaxllm.cells.decoding import open_cell_model
from jaxllm.cells.evaluation import EvaluateConfig, evaluate
from jaxllm.cells.simulate import PerturbationConfig, simulate_perturbations, to_anndata
from jaxllm.cli.train import open_config
from jaxllm.studies import run_study

OUT, WORK = Path("docs/experiments/cells/combinations"), Path("runs/combinations")
CONFIG = "configs/cells/combinations.yaml"
SEEDS = (0, 1, 2)
ARMS = {"causal": []}


def measure(overrides: list[str], seed: int) -> dict[str, float]:
    """One simulation: RMSE and correlation of the mean effect of held-out pairs, by kind of interaction."""
    simulated = simulate_perturbations(PerturbationConfig(genes=200, perturbations=6, contexts=("monocyte",), cells=100,
                                                          seed=seed))
    pairs = sorted({c for _, c in simulated.effects if "+" in c})
    held = sorted(np.random.default_rng(seed).permutation(pairs)[::2].tolist())
    cells, run = WORK / f"cells_{seed}", WORK / f"run_{seed}"
    convert(ConvertConfig(overwrite=True, tie_break="gene"), cells, data=[to_anndata(simulated.cells)])
    shutil.rmtree(run, ignore_errors=True)
    config, _ = open_config(CONFIG, [f"seed={seed}", f"cells.path={cells}", f"cells.split.held_out=[{', '.join(held)}]",
                                     *overrides])
    train_cells(config, run, log=lambda text: None)
    report = evaluate(open_cell_model(run), open_cells(cells), EvaluateConfig(seed=seed))
    (task,) = report["tasks"].values()
    out: dict[str, float] = {}
    for kind in ("all", "additive", *sorted(set(simulated.interactions.values()))):
        mine = [c for c in held if kind == "all" or simulated.interactions.get(c, "additive") == kind]
        if not mine:
            continue
        out[f"{kind}/pairs"] = len(mine)
        for who in ("model", "additive", "no effect", "mean of perturbed"):
            scores = [task["conditions"][c]["scores"][who] for c in mine]
            for name in ("rmse", "pearson"):
                out[f"{kind}/{who}/{name}"] = round(float(np.mean([s[name] for s in scores])), 4)
    return out


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further cell after this many seconds")
    run_study("combinations", ARMS, SEEDS, measure, OUT, deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
