"""`jaxllm train`: a run from a config."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import load, read_yaml


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", help="YAML file, such as configs/diffusion/game_of_life.yaml")
    parser.add_argument("--run-dir", type=Path, help="where metrics, manifest and checkpoints go; runs/NAME by default")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optimizer.learning_rate=1e-4")


def run(args: argparse.Namespace) -> int:
    """Train; the config's model decides the objective."""
    model = read_yaml(args.config).get("model")
    causal = isinstance(model, dict) and bool(model.get("causal", False))  # other mistakes are named below
    causal = next((o.split("=", 1)[1].strip().lower() == "true" for o in args.overrides
                   if o.startswith("model.causal=")), causal)
    run_dir = args.run_dir or Path("runs") / Path(args.config).stem
    if causal:
        from jaxllm.training import TrainConfig, causal_objective, train

        config = load(TrainConfig, args.config, args.overrides)
        train(config, causal_objective(config.model), run_dir, resume=args.resume)
    else:
        from jaxllm.diffusion import DiffusionTrainConfig, diffusion_objective
        from jaxllm.training import train

        config = load(DiffusionTrainConfig, args.config, args.overrides)
        train(config, diffusion_objective(config), run_dir, resume=args.resume)
    summarize_run(run_dir)
    return 0


def summarize_run(run_dir: Path) -> None:
    """A table of what the run logged first, last and best, and where to look."""
    from rich.console import Console

    from jaxllm.files import read_jsonl
    from jaxllm.studies import table

    records = read_jsonl(run_dir / "metrics.jsonl")
    rows = []
    for name in ("train/loss", "train/accuracy", "validation/nll_per_token", "perf/tokens_per_s", "perf/mfu"):
        values = [r[name] for r in records if name in r]
        if values:
            best = min(values) if name.endswith(("loss", "nll_per_token")) else max(values)
            rows.append([name, values[0], values[-1], best])
    console = Console()
    console.print(table(f"{records[-1]['step']} steps", ["metric", "first", "last", "best"], rows))
    console.print(f"run: {run_dir}; picture: {run_dir / 'curve.png'}", soft_wrap=True)
