"""`jaxllm agents ACTION`: models that call tools, one module for each action."""

from __future__ import annotations

import argparse
import importlib

# action -> (module with add_arguments and run, one line of help)
ACTIONS = {
    "evaluate": ("jaxllm.cli.agents_evaluate", "avg@k, pass@k and maj@k on AIME, GPQA or LiveCodeBench problems"),
    "curate": ("jaxllm.cli.agents_curate", "prompts that a model solves sometimes and not always"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every action; their modules import what they need when they run."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, text) in ACTIONS.items():
        sub = actions.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return importlib.import_module(ACTIONS[args.action][0]).run(args) or 0
