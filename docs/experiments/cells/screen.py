"""The planted screen through a trained model: are the true amplifiers among the first?

Simulated cells of two contexts; the model learns from treated cells of all candidates, each beside a random control of
its context, and then writes control cells as treated. What a perfect model would give (the scores of the true treated
cells) stands beside.
Run: python docs/experiments/cells/screen.py [--deadline SECONDS]
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np

from jaxllm.cells import ConvertConfig, convert, open_cells, train_cells
from jaxllm.cells.decoding import WRITTEN, open_cell_model
from jaxllm.cells.planted import PlantedConfig, simulate_screen
from jaxllm.cells.programs import MHC_I
from jaxllm.cells.screen import ScreenConfig, recall_at, screen
from jaxllm.cells.screening import VirtualScreenConfig, virtual_screen
from jaxllm.cells.simulate import to_anndata
from jaxllm.cli.train import open_config
from jaxllm.studies import run_study

OUT, WORK = Path("docs/experiments/cells/screen"), Path("runs/screen")
CONFIG = "configs/cells/screen.yaml"
SEEDS = (1, 2, 3)  # settings were chosen on seed 0
ARMS = {"effect 1.5": 1.5, "effect 1.0": 1.0}
AMPLIFIERS = 3


def measure(effect: float, seed: int) -> dict[str, float]:
    """One simulated screen: recall of the amplifiers among the first as many, by the model and by the truth."""
    planted = simulate_screen(PlantedConfig(candidates=20, amplifiers=AMPLIFIERS, both=3, neutral_only=2, lowers=2,
                                            lowers_neutral=2, cells=200, genes=200, effect=effect, seed=seed))
    name = f"{effect}_{seed}"
    cells, run, out = WORK / f"cells_{name}", WORK / f"run_{name}", WORK / f"screen_{name}"
    convert(ConvertConfig(overwrite=True, tie_break="gene"), cells, data=[to_anndata(planted.cells)])
    for directory in (run, out):
        shutil.rmtree(directory, ignore_errors=True)
    config, _ = open_config(CONFIG, [f"seed={seed}", f"cells.path={cells}"])
    train_cells(config, run, log=lambda text: None)
    statistics = ScreenConfig(permutations=10_000, seed=seed)
    table = virtual_screen(open_cell_model(run), open_cells(cells), VirtualScreenConfig(
        cells=100, repeats=2, program=MHC_I, statistics=statistics, answers=dataclasses.replace(WRITTEN, slots=160),
        seed=seed), out, log=lambda text: None)
    perfect = screen(*planted.scores(), planted.candidates, statistics)
    found = {}
    for who, t in (("model", table), ("truth", perfect)):
        first = [t.candidates[i] for i in t.order]
        ranks = sorted(first.index(a) + 1 for a in planted.amplifiers)
        found |= {f"{who}/recall": recall_at(t, planted.amplifiers), f"{who}/recall_2k":
                  recall_at(t, planted.amplifiers, 2 * AMPLIFIERS), f"{who}/worst_rank": ranks[-1],
                  f"{who}/conditional": int(t.conditional.sum()),
                  f"{who}/conditional_true": sum(bool(t.conditional[t.candidates.index(a)])
                                                 for a in planted.amplifiers)}
    mine = {c: i for i, c in enumerate(table.candidates)}
    order = [mine[c] for c in planted.candidates]
    wanted = planted.effects[:, 0] - planted.effects[:, 1]
    found["split_correlation"] = round(float(np.corrcoef(table.split[order, 0], wanted)[0, 1]), 4)
    for kept in ("table.jsonl", "volcano.png"):
        (OUT / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(out / kept, OUT / name / kept)
    return found


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further cell after this many seconds")
    run_study("planted screen", ARMS, SEEDS, measure, OUT, deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
