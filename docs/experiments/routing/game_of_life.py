"""Layer routers of the shipped masked-diffusion model (4 layers) on the game of life: 3 seeds, every control there is.

One step of the game in domain, two out of domain; Elastic-Cache decodes along the route. Four layers leave 80 routes,
of which a search tries half.
Run: python docs/experiments/routing/game_of_life.py [--deadline SECONDS]        (goes on where it stopped)
"""

import argparse
from pathlib import Path

from seeds import run_seed

from jaxllm.diffusion import shipped_model
from jaxllm.routing.evaluation import EvaluateConfig
from jaxllm.studies import run_study

OUT, WORK = Path("docs/experiments/routing/game_of_life"), Path("runs/routing_life")
CONFIG = "configs/routing/game_of_life.yaml"
SEEDS = (0, 1, 2)


def measure(arm: None, seed: int) -> dict[str, float]:
    """Accuracy and share of executions saved of every arm in every family."""
    bases = [f"families.{i}.prompts.task.seed={1_950_000_000 + 100_000 * seed + 1000 * i}" for i in range(3)]
    return run_seed(CONFIG, [*bases, f"model={shipped_model()}"], seed, WORK / f"run_{seed}", OUT / f"seed_{seed}",
                    EvaluateConfig())[0]


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further seed after this many seconds")
    run_study("routers of the shipped model", {"routers": None}, SEEDS, measure, OUT,
              deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
