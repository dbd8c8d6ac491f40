"""`jaxllm curation filter SHARDS --out DIR`: shards without junk; those that are done already are not done again."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument(
        "shards",
        nargs="+",
        help="JSONL or Parquet files, or directories of them; then key=value, such as "
        "m1.short=20 use=length removed=true",
    )
    parser.add_argument("--out", type=Path, required=True, help="another directory than the shards'")
    parser.add_argument("--config", help="YAML of a FilterConfig")


def run(args: argparse.Namespace) -> int:
    """Filter, then show what went and why."""
    from jaxllm.curation.filter import FilterConfig, filter_shards
    from jaxllm.studies import console, table

    paths = [word for word in args.shards if "=" not in word]
    config = load(FilterConfig, args.config, [word for word in args.shards if "=" in word])
    report = filter_shards(paths, args.out, config, say=lambda text: print(text, flush=True))
    rows = [["kept", report["kept"], report["kept"] / max(report["records"], 1)],
            *([reason, n, n / max(report["records"], 1)] for reason, n in report["removed"].items()),
            ["malformed", report["malformed"], report["malformed"] / max(report["records"], 1)]]
    console().print(
        table(f"{report['records']:,} records, {report['bytes'] / 1e6:,.1f} MB", ["", "records", "share"], rows)
    )
    for name, shard in report["shards"].items():
        for problem in shard["problems"][:3]:
            print(f"{name}, {problem}")
    print(f"wrote {args.out} and {args.out / 'report.json'}")
    return 0
