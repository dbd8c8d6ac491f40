"""`jaxllm bench exact_match`: a study of the shipped model, every decoder on the same unseen problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jaxllm.bench.decode import STEPS_FOR_LENGTH, Problems, exact_match, method_configs
from jaxllm.studies import paired_interval, plot_arms, proportion_interval, run_study, table

GEN_LENGTH = 256


def study(directory: Path, model_dir: Path | None = None, seeds: int = 4, problems_per_seed: int = 50,
          gen_length: int = GEN_LENGTH) -> dict[str, Any]:
    """Decoders x seeds of problems; resumes, prints a table, draws a picture, returns the summary.

    Args:
      directory: where cells, summary and picture go.
      model_dir: a model with a `task.json`; the shipped one by default.
      seeds: sets of problems; set s starts at the task's held-out seed plus 1000 s.
      problems_per_seed: problems of one set.
      gen_length: tokens generated, 128, 256 or 512.
    """
    from rich.console import Console

    from jaxllm.cli.decode import open_model, shipped_model

    model_dir = model_dir or shipped_model()
    params, model, tokenizer = open_model(model_dir)
    configs = {n: c for n, c in method_configs(gen_length).items() if n != "one_token"}
    first = json.loads((model_dir / "task.json").read_text())["seed"]
    steps = STEPS_FOR_LENGTH[gen_length]

    def measure(arm: dict[str, Any], seed: int) -> dict[str, Any]:
        problems = Problems.load(model_dir, tokenizer, problems_per_seed, seed=first + 1000 * seed, min_steps=steps,
                                 max_steps=steps)
        return exact_match(params, model, tokenizer, problems, configs[arm["method"]])

    arms = {name: {"method": name, "gen_length": gen_length, "problems_per_seed": problems_per_seed}
            for name in configs}
    records = run_study("exact match of the shipped model", arms, range(seeds), measure, directory)
    by_arm = {name: sorted((r for r in records if r["arm"] == name), key=lambda r: r["seed"]) for name in arms}
    right = {name: [x for r in found for x in r["right"]] for name, found in by_arm.items()}
    summary = {name: proportion_interval(sum(x), len(x)) for name, x in right.items()}
    against = {name: paired_interval(x, right["full"]) for name, x in right.items()}
    rows = [[name, summary[name], against[name] if name != "full" else None,
             _mean(by_arm[name], "forward_passes"), _mean(by_arm[name], "forward_flops") / 1e9] for name in arms]
    Console().print(table(f"exact match, {gen_length} tokens, {len(right['full'])} unseen problems", [
        "decoder", "exact match [95 %]", "minus full [95 %]", "forward passes", "GFLOP a prompt"], rows))
    plot_arms(directory / "exact_match.png", summary, "exact match", f"{gen_length} tokens, Wilson 95 % intervals")
    return {"bench": "exact_match", "gen_length": gen_length, "arms": {
        name: {"exact_match": summary[name].value, "low": summary[name].low, "high": summary[name].high,
               "problems": summary[name].n, "minus_full": against[name].value, "minus_full_low": against[name].low,
               "minus_full_high": against[name].high, "forward_passes": _mean(by_arm[name], "forward_passes"),
               "forward_flops": _mean(by_arm[name], "forward_flops")} for name in arms}}


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return sum(r[key] for r in records) / len(records)
