"""`jaxllm curation filter SHARDS --out DIR`: shards without junk; those that are done already are not done again."""

from __future__ import annotations

import argparse

from jaxllm.cli.curation import add_shards, paths_and_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_shards(parser, "m1.short=20 use=length removed=true", "another directory than the shards'")


def run(args: argparse.Namespace) -> int:
    """Filter, then show what went and why."""
    from jaxllm.curation.filter import filter_shards
    from jaxllm.studies import console, table

    paths, config = paths_and_config(args)
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
