"""`jaxllm train`: a run from a config."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from jaxllm.config import build, check, settings, to_dict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", help="YAML file, such as configs/diffusion/game_of_life.yaml")
    parser.add_argument("--run-dir", type=Path, help="where metrics, manifest and checkpoints go; runs/NAME by default")
    parser.add_argument("--resume", action="store_true",
                        help="go on from the newest whole checkpoint of the run directory; from the start without one")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as optimizer.learning_rate=1e-4")


def run(args: argparse.Namespace) -> int:
    """Train; the config's model decides the objective.

    Returns 0 for a finished run, the config's `stop_exit_code` for one that was stopped and saved. Errors that
    would come again, such as a diverged loss or a full disk, end in `main` as any bad input: 2.
    """
    from jaxllm import distributed
    from jaxllm.cli.main import report
    from jaxllm.rl import RLConfig, train_policy
    from jaxllm.training import RunStopped, train

    run_dir = args.run_dir or Path("runs") / Path(args.config).stem
    config, objective = open_config(args.config, args.overrides)
    with distributed.session(config.distributed, report):
        try:
            with distributed.Watchdog(config.distributed.watchdog_s, config.total_steps,
                                      exit_code=config.stop_exit_code) as watchdog:
                if hasattr(config, "cells"):
                    from jaxllm.cells import train_cells

                    train_cells(config, run_dir, resume=args.resume, on_step=watchdog.beat)
                elif hasattr(config, "agent"):
                    from jaxllm.agents.training import train_agent

                    train_agent(config, run_dir, resume=args.resume, on_step=watchdog.beat)
                elif isinstance(config, RLConfig):
                    train_policy(config, run_dir, resume=args.resume, on_step=watchdog.beat)
                else:
                    train(config, objective, run_dir, resume=args.resume, on_step=watchdog.beat)
        except RunStopped as err:
            print(f"jaxllm: {err}", file=sys.stderr)
            return err.exit_code
        if distributed.is_primary():
            summarize_run(run_dir)
    return 0


def open_config(path: str, overrides: list[str], *, elsewhere: bool = False) -> tuple[Any, Any]:
    """The typed config and the objective that fits its model: causal, masked diffusion, or preferences.

    A config with `cells` is one on cell sentences, with `prompts` one of reinforcement learning, with `agent` too one
    of a policy that calls tools.

    `model: {preset: llada-8b, remat: full}` stands for the preset's fields with changes. Weights of a preset or of
    `init_from` are held in float32 unless the config says otherwise. With `elsewhere` the run is for another machine:
    an `init_from` that is not here is left to it, and the config's own model taken as it is.
    """
    from jaxllm.checkpoint import read_config
    from jaxllm.diffusion import DiffusionTrainConfig, diffusion_objective
    from jaxllm.models.presets import preset
    from jaxllm.training import TrainConfig, causal_objective

    data, source = settings(path, overrides)
    start = data.get("init_from")
    absent = elsewhere and start is not None and not Path(start).exists()
    check(not absent or bool({"preset", "vocab_size"} & set(data.get("model") or ())), "init_from", start,
          "is not here; give the model too, such as model.preset=qwen3-8b, or another directory")
    if start is not None and not absent:  # its model is the default, which the config may change
        data, source = settings(path, overrides, {"model": _master(read_config(start))})
    model = data.get("model")
    if isinstance(model, dict) and "preset" in model:
        changes = {k: v for k, v in model.items() if k != "preset"}
        model = _master(preset(str(model["preset"]))) | changes
        data = {**data, "model": model}
    if "cells" in data:
        from jaxllm.cells import CellsConfig, cells_objective

        config = build(CellsConfig, data, source)
        return config, cells_objective(config)
    if "prompts" in data:
        from jaxllm.rl import RLConfig, rl_objective

        kind = RLConfig
        if "agent" in data:
            from jaxllm.agents.training import AgentRLConfig as kind
        config = build(kind, data, source)
        return config, rl_objective(config)
    if isinstance(model, dict) and model.get("score_head") is True:
        from jaxllm.rl import reward_run

        return reward_run(data, source)
    if isinstance(model, dict) and model.get("causal") is True:
        config = build(TrainConfig, data, source)
        return config, causal_objective(config.model)
    config = build(DiffusionTrainConfig, data, source)
    return config, diffusion_objective(config.model, config.objective)


def _master(model: Any) -> dict[str, Any]:
    """A published model's settings with float32 weights: small updates would be rounded away in half precision."""
    return {**to_dict(model), "weight_dtype": "float32"}


def summarize_run(run_dir: Path) -> None:
    """A table of what the run logged first, last and best, and where to look."""
    from rich.console import Console

    from jaxllm.files import read_jsonl
    from jaxllm.studies import table

    records = read_jsonl(run_dir / "metrics.jsonl")
    rows = []
    for name in ("train/loss", "train/accuracy", "validation/nll_per_token", "rl/reward", "evaluation/pass_rate",
                 "evaluation/greedy", "perf/tokens_per_s", "perf/mfu"):
        values = [r[name] for r in records if name in r and math.isfinite(r[name])]
        if values:
            best = min(values) if name.endswith(("loss", "nll_per_token")) else max(values)
            rows.append([name, values[0], values[-1], best])
    console = Console()
    console.print(table(f"{records[-1]['step']} steps", ["metric", "first", "last", "best"], rows))
    console.print(f"run: {run_dir}; picture: {run_dir / 'curve.png'}", soft_wrap=True)
