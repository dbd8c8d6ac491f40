"""Validation loss against parameters at equal data: five sizes on one simulated corpus, with a fitted line.

Run: python docs/experiments/cells/sizes.py [--deadline SECONDS]
"""

import argparse
import json
import shutil
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.optimize import curve_fit
from scipy.stats import linregress, t

from jaxllm.cells import ConvertConfig, convert, train_cells
from jaxllm.cells.simulate import CorpusConfig, simulate_corpus, to_anndata
from jaxllm.cli.train import open_config
from jaxllm.files import read_jsonl
from jaxllm.studies import run_study

OUT, WORK, CONFIG = Path("docs/experiments/cells/sizes"), Path("runs/corpus"), "configs/cells/corpus.yaml"
CELLS = WORK / "cells"
SEEDS = (0, 1, 2)
# d_model, layers; heads of 32
ARMS = {"16x1": (16, 1), "32x2": (32, 2), "64x2": (64, 2), "96x3": (96, 3), "128x3": (128, 3)}


def measure(size: tuple[int, int], seed: int) -> dict[str, float]:
    """Nats a token of held-out cells after one run."""
    d, layers = size
    head = min(32, d)
    shape = {"d_model": d, "num_layers": layers, "num_heads": d // head, "num_kv_heads": d // head, "head_dim": head,
             "d_mlp": 3 * d}
    config, _ = open_config(CONFIG, [f"seed={seed}", f"cells.path={CELLS}",
                                     *(f"model.{name}={value}" for name, value in shape.items())])
    run = WORK / f"run_{d}_{layers}_{seed}"
    shutil.rmtree(run, ignore_errors=True)
    train_cells(config, run, log=lambda text: None)
    losses = [line["validation/nll_per_token"] for line in read_jsonl(run / "metrics.jsonl")
              if "validation/nll_per_token" in line]
    shutil.rmtree(run)
    model = config.model
    return {"parameters": model.num_parameters, "without_embeddings":
            model.num_parameters - model.vocab_size * model.d_model, "loss": losses[-1]}


def main() -> None:
    """Run what is missing, fit, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further cell after this many seconds")
    args = parser.parse_args()
    if not CELLS.exists():
        corpus = to_anndata(simulate_corpus(CorpusConfig(cells=6000, genes=300)))
        convert(ConvertConfig(tie_break="gene"), CELLS, data=[corpus])
    records = run_study("sizes", ARMS, SEEDS, measure, OUT, deadline_s=args.deadline)
    x = np.array([r["without_embeddings"] for r in records], float)
    y = np.array([r["loss"] for r in records])
    if len(set(x)) < 2:
        return
    fit = linregress(np.log10(x), y)
    half = t.ppf(0.975, len(x) - 2) * fit.stderr

    def power(n: np.ndarray, floor: float, scale: float, exponent: float) -> np.ndarray:
        return floor + scale * (n / 1e4) ** -exponent

    found, spread = curve_fit(power, x, y, p0=(3.0, 0.5, 0.5))
    errors = t.ppf(0.975, len(x) - 3) * np.sqrt(np.diag(spread))
    left = float(np.square(y - power(x, *found)).sum() / np.square(y - y.mean()).sum())
    (OUT / "fit.json").write_text(json.dumps({
        "runs": len(x), "line": {"nats_per_tenfold": fit.slope, "low": fit.slope - half, "high": fit.slope + half,
                                 "r2": fit.rvalue**2},
        "floor_and_power": {name: [value, value - error, value + error] for name, value, error in
                            zip(("floor", "above_it_at_10000", "exponent"), found.tolist(), errors.tolist(),
                                strict=True)} | {"r2": 1 - left}}, indent=1) + "\n")
    figure, axis = plt.subplots(figsize=(5, 3.6), layout="constrained")
    axis.scatter(x, y, s=16, color="C0", label="runs")
    ends = np.array([x.min(), x.max()])
    axis.plot(ends, fit.intercept + fit.slope * np.log10(ends), color="C3",
              label=f"{fit.slope:+.3f} nats a tenfold, R² {fit.rvalue**2:.2f}")
    grid = np.geomspace(x.min(), x.max(), 100)
    axis.plot(grid, power(grid, *found), color="C2", label=f"{found[0]:.3f} + N^-{found[2]:.2f}, R² {1 - left:.3f}")
    axis.set(xscale="log", xlabel="parameters without embeddings", ylabel="validation loss, nats a token")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(OUT / "sizes.png", dpi=140)


if __name__ == "__main__":
    main()
