"""`jaxllm curation ACTION`: what is junk in shards of text, and what is left without it."""

from __future__ import annotations

import argparse

from jaxllm.cli.actions import add_actions, run_action

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
