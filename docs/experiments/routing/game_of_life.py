"""Layer routers of the shipped masked-diffusion model (4 layers) on the game of life: 3 seeds, every control there is.

One step of the game in domain, two out of domain; Elastic-Cache decodes along the route. Four layers leave 80 routes,
of which a search tries half.
Run: python docs/experiments/routing/game_of_life.py [--deadline SECONDS]        (goes on where it stopped)
"""

import argparse
import shutil
from pathlib import Path

from jaxllm.config import load
from jaxllm.diffusion import shipped_model
from jaxllm.routing.config import RoutingConfig
from jaxllm.routing.evaluation import EvaluateConfig, evaluate_routers
from jaxllm.routing.plots import draw
from jaxllm.routing.run import open_routing, train_routers
from jaxllm.studies import run_study

OUT, WORK = Path("docs/experiments/routing/game_of_life"), Path("runs/routing_life")
CONFIG = "configs/routing/game_of_life.yaml"
SEEDS = (0, 1, 2)


def measure(arm: None, seed: int) -> dict[str, float]:
    """Accuracy and share of executions saved of every arm in every family."""
    run = WORK / f"run_{seed}"
    bases = [f"families.{i}.prompts.task.seed={1_950_000_000 + 100_000 * seed + 1000 * i}" for i in range(3)]
    opened = open_routing(load(RoutingConfig, CONFIG, [*bases, f"model={shipped_model()}", f"search.seed={seed}",
                                                       f"fit.seed={seed}"]))
    fit = train_routers(opened, run, progress=print)
    report = evaluate_routers(opened, run, EvaluateConfig(seed=seed), progress=print)
    draw(run, report)
    (OUT / f"seed_{seed}").mkdir(parents=True, exist_ok=True)
    for name in ("evaluation.json", "fit.json", "decisions.png", "accuracy.png"):
        shutil.copy(run / name, OUT / f"seed_{seed}" / name)
    out: dict[str, float] = {}
    for family, found in report["families"].items():
        for name, r in found["arms"].items():
            out |= {f"{family}/{name}/accuracy": round(r["accuracy"][0], 4), f"{family}/{name}/saved":
                    round(r["saved"][0], 4)}
    for family, found in fit["search"].items():
        out |= {f"search/{family}/{name}": value for name, value in found.items() if value is not None}
    return out


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further seed after this many seconds")
    run_study("routers of the shipped model", {"routers": None}, SEEDS, measure, OUT,
              deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
