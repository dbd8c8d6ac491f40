"""Layer routers of a small model with layers to spare: eight layers trained here on arithmetic, 3 seeds, every control.

The model learns sums and differences of two numbers below 100 and products of one below 100 with a digit. Its routers
are searched and learned on sums and measured on others, and out of domain on differences and products; nothing that
they are searched or measured on was in the model's training. A seed is another model, other problems, another search.
Three arms differ in the labels that routers learn and in how their classes are weighed, and share the search; the curve
over the routers' knob is that of the problems in domain.
Run: python docs/experiments/routing/arithmetic.py [--deadline SECONDS]        (goes on where it stopped)
"""

import argparse
import dataclasses
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from seeds import run_seed

from jaxllm.cli.train import open_config
from jaxllm.data import character_tokenizer
from jaxllm.files import read_jsonl, write_jsonl
from jaxllm.routing.evaluation import EvaluateConfig, decided
from jaxllm.routing.run import Opened
from jaxllm.routing.saved import FILE, load_routers
from jaxllm.studies import run_study
from jaxllm.training import train

OUT, WORK = Path("docs/experiments/routing/arithmetic"), Path("runs/routing_arithmetic")
SEEDS = (0, 1, 2)
SIZES = {"sums": 600, "sums_test": 150, "differences": 150, "products": 150}  # searched, and measured on
ARMS: dict[str, list[str]] = {
    "shared": [], "shortest": ["fit.labels=shortest"],
    "shortest, balanced": ["fit.labels=shortest", "fit.beta=0.9999"]}
FULL = "shared"  # with every control
LEANS = (-0.5, -0.45, -0.4, -0.35, -0.3, -0.2)
KIND = {"sums": "+", "sums_test": "+", "differences": "-", "products": "*"}


def write_problems(directory: Path, seed: int) -> None:
    """Training records of the model, and the routers' problems, which are not among them."""
    draw = random.Random(f"arithmetic:{seed}")
    left: dict[str, list[dict[str, str]]] = {}
    for sign, low, high in (("+", 1, 99), ("-", 1, 99), ("*", 1, 9)):
        pairs = [(a, b) for a in range(1, 100) for b in range(low, high + 1)]
        draw.shuffle(pairs)
        left[sign] = [{"prompt": f"{a}{sign}{b}=", "answer": str(eval(f"{a}{sign}{b}"))} for a, b in pairs]  # noqa: S307
    for family, count in SIZES.items():
        mine = left[KIND[family]]
        write_jsonl(directory / f"{family}.jsonl", mine[:count])
        left[KIND[family]] = mine[count:]
    write_jsonl(directory / "model.jsonl", [{"prompt": r["prompt"], "response": r["answer"]}
                                            for sign in "+-*" for r in left[sign]])
    character_tokenizer(["<|pad|>", "<|end|>"]).save(str(directory / "tokenizer.json"))


def curve(opened: Opened, run: Path) -> dict[str, float]:
    """Accuracy and share saved in domain at each setting of the knob."""
    problems, out = opened.problems["sums_test"], {}
    routers = load_routers(run / FILE, opened.base, opened.model.num_layers)
    verdicts = opened.evaluator(problems, opened.engine)
    for lean in LEANS:
        counts = decided(opened, problems, routers, lean)
        right = np.mean([v.right for v in verdicts(list(enumerate(counts)))])
        out |= {f"curve/{lean}/accuracy": round(float(right), 4), f"curve/{lean}/saved": round(1 - counts.mean(), 4)}
    return out


def measure(arm: str, seed: int) -> dict[str, float]:
    """Accuracy and share of executions saved of every arm in every family."""
    problems, model, run = WORK / f"problems_{seed}", WORK / f"model_{seed}", WORK / f"run_{seed}_{arm}"
    if not problems.exists():
        problems.mkdir(parents=True)
        write_problems(problems, seed)
    if not model.exists():
        config, objective = open_config("configs/train/arithmetic.yaml", [
            f"seed={seed}", f"tokenizer={problems}", f"stages.0.data.path={problems}/model.jsonl"])
        train(config, objective, WORK / f"train_{seed}")
        (WORK / f"train_{seed}" / "model").rename(model)
    searched = WORK / f"run_{seed}_{FULL}" / "search"
    if arm != FULL and searched.exists() and not (run / "search").exists():
        shutil.copytree(searched, run / "search")
    paths: list[Any] = [f"families.{i}.prompts.path={problems}/{name}.jsonl" for i, name in enumerate(SIZES)]
    every = EvaluateConfig(oracle_problems=60)
    out, fit, _, opened = run_seed(
        "configs/routing/arithmetic.yaml", [*paths, f"model={model}", *ARMS[arm]], seed, run,
        OUT / f"{arm.replace(', ', '_')}_{seed}",
        every if arm == FULL else dataclasses.replace(every, oracle=False, generate=False))
    agreement = fit["validation_agreement"]
    losses = [r["train/loss"] for r in read_jsonl(WORK / f"train_{seed}/metrics.jsonl") if "train/loss" in r]
    return out | curve(opened, run) | {
        "agreement": round(agreement["accuracy"], 4), "always_once": round(agreement["always_once"], 4),
        "macro_f1": round(agreement["macro_f1"], 4), "labels/saved": round(1 - fit["executions"] / 8, 4),
        "model_loss": round(losses[-1], 4)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further seed after this many seconds")
    run_study("routers of a small arithmetic model", {name: name for name in ARMS}, SEEDS, measure, OUT,
              deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
