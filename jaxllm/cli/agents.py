"""`jaxllm agents ACTION`: models that call tools, one module for each action."""

from __future__ import annotations

import argparse

from jaxllm.cli.actions import add_actions, run_action

# action -> (module with add_arguments and run, one line of help)
ACTIONS = {
    "evaluate": ("jaxllm.cli.agents_evaluate", "avg@k, pass@k and maj@k on AIME, GPQA or LiveCodeBench problems"),
    "curate": ("jaxllm.cli.agents_curate", "prompts that a model solves sometimes and not always"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every action."""
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args, ACTIONS)
