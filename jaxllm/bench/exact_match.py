"""`jaxllm bench exact_match`: a study of the shipped model, every decoder on the same unseen problems."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

from jaxllm.bench.decode import STEPS_FOR_LENGTH, Problems, exact_match, method_configs
from jaxllm.diffusion import open_model, shipped_model
from jaxllm.files import read_json
from jaxllm.studies import paired_interval, plot_arms, proportion_interval, run_study, table
from jaxllm.tracking import environment

GEN_LENGTH = 256


def study(directory: Path, model_dir: Path | None = None, seeds: int = 4, problems_per_seed: int = 50,
          gen_length: int = GEN_LENGTH) -> dict[str, Any]:
    """Decoders x seeds of problems; resumes, prints a table, draws a picture, returns the summary.

    The directory belongs to one set of weights: with others the study refuses to mix.

    Args:
      directory: where cells, summary and picture go.
      model_dir: a model with a `task.json`; the shipped one by default.
      seeds: sets of problems; set s starts at the task's held-out seed plus 1000 s.
      problems_per_seed: problems of one set.
      gen_length: tokens generated, 128, 256 or 512.
    """
    from rich.console import Console

    model_dir = model_dir or shipped_model()
    params, model, tokenizer = open_model(model_dir)
    configs = {n: c for n, c in method_configs(gen_length).items() if n != "one_token"}
    task = read_json(model_dir / "task.json")
    weights = hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()[:16]
    steps = STEPS_FOR_LENGTH[gen_length]

    def measure(arm: dict[str, Any], seed: int) -> dict[str, Any]:
        problems = Problems.load(model_dir, tokenizer, problems_per_seed, seed=task["seed"] + 1000 * seed,
                                 min_steps=steps, max_steps=steps)
        return exact_match(params, model, tokenizer, problems, configs[arm["method"]])

    arms = {name: {"method": name, "gen_length": gen_length, "problems_per_seed": problems_per_seed, "task": task,
                   "weights_sha256": weights} for name in configs}
    records = run_study(f"exact match of {model_dir.name}", arms, range(seeds), measure, directory)
    by_arm = {name: sorted((r for r in records if r["arm"] == name), key=lambda r: r["seed"]) for name in arms}
    right = {name: [x for r in found for x in r["right"]] for name, found in by_arm.items()}
    summary = {name: proportion_interval(sum(x), len(x)) for name, x in right.items()}
    against = {name: paired_interval(x, right["full"]) for name, x in right.items()}
    rows = [[name, summary[name], against[name] if name != "full" else None,
             _mean(by_arm[name], "forward_passes"), _mean(by_arm[name], "forward_flops") / 1e9] for name in arms]
    Console().print(table(f"exact match, {gen_length} tokens, {len(right['full'])} unseen problems", [
        "decoder", "exact match [95 %]", "minus full [95 %]", "forward passes", "GFLOP a prompt"], rows))
    plot_arms(directory / "exact_match.png", summary, "exact match", f"{gen_length} tokens, Wilson 95 % intervals")
    return {"bench": "exact_match", "gen_length": gen_length, "environment": environment(), "arms": {
        name: {"settings": {**arms[name], **dataclasses.asdict(configs[name])},
               "seconds": [r["seconds"] for r in by_arm[name]],
               "exact_match": summary[name].value, "low": summary[name].low, "high": summary[name].high,
               "problems": summary[name].n, "minus_full": against[name].value, "minus_full_low": against[name].low,
               "minus_full_high": against[name].high, "forward_passes": _mean(by_arm[name], "forward_passes"),
               "forward_flops": _mean(by_arm[name], "forward_flops")} for name in arms}}


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return sum(r[key] for r in records) / len(records)
