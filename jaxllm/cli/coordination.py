"""`jaxllm coordination ACTION`: games of many agents, and what they share beyond the feedback."""

from __future__ import annotations

import argparse

from jaxllm.cli.actions import add_actions, run_action

# action -> (module with add_arguments and run, one line of help)
ACTIONS = {
    "play": ("jaxllm.cli.coordination_play", "play the group guessing game with a model or a server"),
    "scripted": ("jaxllm.cli.coordination_scripted", "games of agents by rule, to set beside a model's"),
    "analyse": ("jaxllm.cli.coordination_analyse", "measures of games beside nulls, with pictures"),
    "calibrate": ("jaxllm.cli.coordination_calibrate", "how often each test rejects for agents that do not coordinate"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every action."""
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args, ACTIONS)
