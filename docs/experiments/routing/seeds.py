"""What the studies of this directory share: one seed of a config, from search to figures."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from jaxllm.config import load
from jaxllm.routing.config import RoutingConfig
from jaxllm.routing.evaluation import EvaluateConfig, evaluate_routers
from jaxllm.routing.plots import draw
from jaxllm.routing.run import Opened, open_routing, train_routers


def run_seed(config: str, overrides: list[str], seed: int, run: Path, keep: Path,
             evaluation: EvaluateConfig) -> tuple[dict[str, float], dict[str, Any], dict[str, Any], Opened]:
    """Accuracy and share of executions saved of every arm in every family; the fit; the evaluation; what was opened.

    Everything happens in `run`; figures and pictures are copied to `keep`.
    """
    opened = open_routing(load(RoutingConfig, config, [*overrides, f"search.seed={seed}", f"fit.seed={seed}"]))
    fit = train_routers(opened, run, progress=print)
    report = evaluate_routers(opened, run, dataclasses.replace(evaluation, seed=seed), progress=print)
    draw(run, report)
    keep.mkdir(parents=True, exist_ok=True)
    for name in ("evaluation.json", "fit.json", "decisions.png", "accuracy.png"):
        shutil.copy(run / name, keep / name)
    out: dict[str, float] = {}
    for family, found in report["families"].items():
        for name, r in found["arms"].items():
            out |= {f"{family}/{name}/accuracy": round(r["accuracy"][0], 4), f"{family}/{name}/saved":
                    round(r["saved"][0], 4)}
    for family, found in fit["search"].items():
        out |= {f"search/{family}/{name}": value for name, value in found.items() if value is not None}
    return out, fit, report, opened
