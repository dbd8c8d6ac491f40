"""`jaxllm coordination calibrate`: rates of rejection for scripted agents that do not coordinate."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as games=1000 agents=4 nulls=[feedback]"
    )
    parser.add_argument("--out", type=Path, help="JSONL file for the rates")


def run(args: argparse.Namespace) -> int:
    """Simulate, then show."""
    from jaxllm.coordination.calibrate import CalibrateConfig, calibrate, calibrated
    from jaxllm.files import write_jsonl
    from jaxllm.studies import Interval, console, table

    config = load(CalibrateConfig, None, args.overrides)
    lines = calibrate(config)
    good = calibrated(lines, config.level)
    rows = []
    for null in config.nulls:
        for name in config.measures:
            cells = {x["agents"]: Interval(x["rate"], x["low"], x["high"], x["games"]) for x in lines
                     if (x["null"], x["measure"]) == (null, name)}
            rows.append([null, name, *(cells[kind] for kind in config.kinds), "yes" if (null, name) in good else "no"])
    console().print(table(f"share of {config.games} games that a test at {config.level:g} rejects",
                          ["null", "measure", *config.kinds, "evidence"], rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(args.out, lines)
        print(f"wrote {args.out}")
    return 0
