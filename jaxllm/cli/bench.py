"""`jaxllm bench NAME`: a table to read and, with --json, raw seconds to keep."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, nearest

BENCHES = ("decode",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="file for settings, raw seconds and ratios")
    parser.add_argument("--model", type=Path, help="model directory with a task.json; the shipped one by default")
    parser.add_argument("--no-random", action="store_true", help="leave out the 100M-parameter random model")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.name not in BENCHES:
        raise ConfigError(f"bench {args.name!r} is unknown; {nearest(args.name, BENCHES)}")
    from jaxllm.bench.decode import bench
    from jaxllm.files import write_json

    results = bench(quick=args.quick, model_dir=args.model, random_model=not args.quick and not args.no_random)
    if args.json:
        write_json(args.json, results)
        print(f"wrote {args.json}")
    return 0
