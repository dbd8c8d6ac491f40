"""`jaxllm coordination scripted --out DIR`: games of agents by rule, to set beside those of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as games=200 game.agents=4")
    parser.add_argument("--out", type=Path, required=True, help="directory of games.jsonl")


def run(args: argparse.Namespace) -> int:
    """Simulate, write, say how many were solved."""
    from jaxllm.coordination.calibrate import ScriptedConfig, scripted_games
    from jaxllm.files import write_jsonl
    from jaxllm.studies import console, proportion_interval, table

    config = load(ScriptedConfig, None, args.overrides)
    path = args.out / "games.jsonl"
    if path.exists():
        raise ConfigError(f"{path}: holds games already; take another directory")
    games = [g for kind in config.kinds for g in scripted_games(kind, config.game, config.games, config.seed)]
    args.out.mkdir(parents=True, exist_ok=True)
    write_jsonl(path, [g.line() for g in games])
    rows = []
    for kind in config.kinds:
        mine = [g for g in games if g.arm == kind]
        rows.append([kind, len(mine), proportion_interval(sum(g.solved for g in mine), len(mine)),
                     sum(len(g.guesses) for g in mine) / len(mine)])
    console().print(table("scripted games", ["agents", "games", "solved", "rounds"], rows))
    print(f"wrote {path}; next: jaxllm coordination analyse {args.out}")
    return 0
