"""`jaxllm coordination play CONFIG --out DIR`: games by a model or a server; goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", help="YAML of a CoordinationConfig")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as play.games=20 temperature=0.5")
    parser.add_argument("--out", type=Path, required=True, help="directory of games.jsonl")
    parser.add_argument(
        "--deadline", type=float, metavar="SECONDS", help="begin no further block of games after this long"
    )


def run(args: argparse.Namespace) -> int:
    """Play, then say what came of it."""
    from jaxllm.coordination.play import CoordinationConfig, open_player, play
    from jaxllm.studies import console, proportion_interval, table

    config = load(CoordinationConfig, args.config, args.overrides)
    games = play(
        config.play, open_player(config), args.out, say=lambda text: print(text, flush=True), deadline_s=args.deadline,
        by=config.by,
    )
    rows = []
    for arm in config.play.arms:
        mine = [g for g in games if g.arm == arm]
        if mine:
            kept = [g.kept.mean() for g in mine if g.kept is not None]
            rows.append([arm, len(mine), proportion_interval(sum(g.solved for g in mine), len(mine)),
                         sum(len(g.guesses) for g in mine) / len(mine), float(sum(kept) / len(kept)) if kept else None])
    console().print(table("games", ["arm", "games", "solved", "rounds", "replies without a guess"], rows))
    print(f"wrote {args.out / 'games.jsonl'}")
    return 0
