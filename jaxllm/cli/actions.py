"""Commands with actions, one module for each."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping

Actions = Mapping[str, tuple[str, str]]  # action -> (module with add_arguments and run, one line of help)


def add_actions(parser: argparse.ArgumentParser, actions: Actions) -> None:
    """Arguments of every action; their modules import what they need when they run."""
    parsers = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, text) in actions.items():
        sub = parsers.add_parser(name, help=text, description=text)
        importlib.import_module(module).add_arguments(sub)


def run_action(args: argparse.Namespace, actions: Actions) -> int:
    """Run the action that was named."""
    return importlib.import_module(actions[args.action][0]).run(args) or 0
