"""Prior transfer: models with different pasts learn the multi-turn form from few demonstrations; what each comes to.

Run: python docs/experiments/swe/transfer.py runs/swe docs/experiments/swe/transfer

Arms are PRIOR-DEMONSTRATIONS; `cells.jsonl` is gone on from (`jaxllm.studies.run_study`).
"""

import argparse
import dataclasses
import random
from pathlib import Path
from typing import Any

import jax
import numpy as np
from selfplay import bootstrap, held_out

from jaxllm.cli.train import open_config
from jaxllm.config import build
from jaxllm.files import read_json, write_jsonl, write_text
from jaxllm.generation import Engine, EngineConfig
from jaxllm.generation.loading import open_model
from jaxllm.studies import run_study
from jaxllm.swe.closed import END, tokens_of
from jaxllm.swe.instances import read_instances
from jaxllm.swe.judging import Judge
from jaxllm.swe.playing import Package, item_of
from jaxllm.swe.recipes import Recipe
from jaxllm.swe.running import sandbox_for_tests
from jaxllm.swe.trees import read_tree
from jaxllm.swe.turns import LONGEST, demonstration, run_desks
from jaxllm.training import train

PRIORS = {"mid": "mid/model", "sft": "sft/model", "rl": "rl/model", "none": None}
STEPS = {0: 0, 10: 60, 100: 240, 300: 480}  # optimiser steps by demonstrations; of the last there may be a few fewer
BATCH = 4


def demonstrations(out: Path, most: int) -> list[dict[str, Any]]:
    """Those of training instances, in an order of their own."""
    tokens, draw = tokens_of(), random.Random("demonstrations")
    instances = [i for i in read_instances(out / "instances.jsonl") if i.about["split"] == "train"]
    draw.shuffle(instances)
    packages: dict[str, Package] = {}
    found = []
    for instance in instances:
        if instance.repo not in packages:
            recipe = build(Recipe, read_json(out / instance.repo / "recipe.json")["recipe"])
            packages[instance.repo] = Package(recipe, read_tree(out / instance.repo / "snapshot.tar.gz"))
        chat = demonstration(tokens, item_of(instance, packages[instance.repo]), draw)
        if chat is not None:
            found.append(chat)
        if len(found) == most:
            break
    return found


def main() -> None:
    """All cells, then the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--priors", nargs="*", default=list(PRIORS), choices=list(PRIORS))
    args = parser.parse_args()
    tokens, items = tokens_of(), held_out(args.out, args.tasks)
    chats = demonstrations(args.out, max(STEPS))
    arms = {f"{prior}-{n}": {"prior": prior, "demonstrations": n, "steps": steps, "batch": BATCH}
            for n, steps in STEPS.items() for prior in args.priors}

    with sandbox_for_tests(1) as sandbox:
        judge = Judge(sandbox, args.out / "verdicts.jsonl")

        def measure(arm: dict[str, Any], seed: int) -> dict[str, Any]:
            directory = _trained(args.out, arm, seed, chats)
            params, model, _ = open_model(directory)
            stops = tokens.fixed[END], tokens.fixed["<step>"]
            engine = Engine(params, model, EngineConfig(slots=32, length=LONGEST, chunk=6, prompt_bucket=LONGEST,
                                                        stop_ids=stops))
            desks = [row[0] for row in run_desks(engine, tokens, items)]
            there = [i for i, desk in enumerate(desks) if desk.submitted and desk.edit is not None]
            good = np.zeros(len(items), bool)
            good[there] = judge.resolved([desks[i].edit for i in there])  # type: ignore[misc]
            jax.clear_caches()
            opened = [d.opened is not None and (d.opened.path, _function(d)) == (
                i.instance.about["path"], i.instance.about["function"]) for d, i in zip(desks, items, strict=True)]
            return {"mended": float(good.mean()), "submitted": len(there) / len(items),
                    "opened_right": float(np.mean(opened)), "actions": float(np.mean([d.actions for d in desks])),
                    "demonstrations_used": min(arm["demonstrations"], len(chats)), "good": good.astype(int).tolist()}

        records = run_study("swe transfer", arms, range(args.seeds), measure, args.results)
    write_text(args.results / "table.md", _table(records))
    print(_table(records))


def _function(desk: Any) -> str:
    """Of what is open: the function whose sites are shown, the outermost of them."""
    return min((site.function for site in desk.opened.sites), key=len)


def _trained(out: Path, arm: dict[str, Any], seed: int, chats: list[dict[str, Any]]) -> Path:
    prior, steps = PRIORS[arm["prior"]], arm["steps"]
    directory = out / "transfer" / f"{arm['prior']}-{arm['demonstrations']}-{seed}"
    if steps == 0 and prior is not None:
        return out / prior
    if (directory / "model").exists():
        return directory / "model"
    data = out / "transfer" / f"chats-{arm['demonstrations']}.jsonl"
    write_jsonl(data, chats[:max(1, arm["demonstrations"])])
    config, objective = open_config("configs/swe/mid.yaml", [
        f"seed={seed}", "optimizer.learning_rate=1e-3", "optimizer.warmup_steps=3", f"stages.0.steps={max(1, steps)}",
        f"stages.0.data.path={data}", f"stages.0.data.length={LONGEST}", f"stages.0.data.batch_size={BATCH}",
        "stages.0.data.max_bad_share=0.3", *([] if prior is None else [f"init_from={out / prior}"])])
    if steps == 0:  # no prior: weights as they are drawn: an update that changes next to nothing
        config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-12))
    train(config, objective, directory)
    return directory / "model"


def _table(records: list[dict[str, Any]]) -> str:
    lines = ["| prior | " + " | ".join(f"{n} demonstrations" for n in STEPS) + " |", "|---" * (len(STEPS) + 1) + "|"]
    for prior in PRIORS:
        cells = []
        for n in STEPS:
            good = [r["good"] for r in records if r["arm"] == f"{prior}-{n}"]
            if good:
                values = np.array(good, float).mean(0)
                low, high = bootstrap(values)
                cells.append(f"{values.mean():.2f} ({low:.2f} to {high:.2f})")
            else:
                cells.append("-")
        lines.append(f"| {prior} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
