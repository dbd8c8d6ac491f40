"""`jaxllm leaderboard DIR`: one HTML file of what `jaxllm evaluate` measured."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("directory", type=Path, help="that `jaxllm evaluate` wrote")
    parser.add_argument("--title", default="Leaderboard", help="of the page")
    parser.add_argument("--debiased", action="store_true", help="consistency of outcomes without the bias of few "
                                                                  "repeats")


def run(args: argparse.Namespace) -> int:
    """Write the page."""
    from jaxllm.evaluation.page import write_page

    print(f"wrote {write_page(args.directory, title=args.title, debiased=args.debiased)}")
    return 0
