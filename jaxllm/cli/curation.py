"""`jaxllm curation ACTION`: what is junk in shards of text, and what is left without it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.cli.actions import add_actions, run_action
from jaxllm.config import load

# action -> (module with add_arguments and run, one line of help)
ACTIONS = {
    "score": ("jaxllm.cli.curation_score", "length, popularity and quality of every record, with quantiles"),
    "filter": ("jaxllm.cli.curation_filter", "write shards without junk, and a report of what was removed and why"),
    "learn": ("jaxllm.cli.curation_learn", "a classifier of quality from labelled records"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every action."""
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args, ACTIONS)


def add_shards(parser: argparse.ArgumentParser, such_as: str, out: str) -> None:
    """Arguments of actions on shards."""
    parser.add_argument("shards", nargs="+", help="JSONL or Parquet files, or directories of them")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=f"such as {such_as}")
    parser.add_argument("--out", type=Path, required=True, help=out)
    parser.add_argument("--config", help="YAML of a FilterConfig")


def paths_and_config(args: argparse.Namespace) -> tuple[list[str], Any]:
    """Shards, and the FilterConfig with what is overridden."""
    from jaxllm.curation.filter import FilterConfig

    words = [word for word in args.shards if "=" in word]  # argparse gives them to the first list
    return [word for word in args.shards if word not in words], load(
        FilterConfig, args.config, [*words, *args.overrides]
    )
