"""`jaxllm curation score SHARDS --out DIR`: a row of scores for each record, and their quantiles."""

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
        "quality=quality.npz unit=tokens tokenizer=DIR",
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of NAME.scores.parquet and scores.json")
    parser.add_argument("--config", help="YAML of a FilterConfig; what it says of keeping is passed over")


def run(args: argparse.Namespace) -> int:
    """Score, then show quantiles."""
    from jaxllm.curation.filter import FilterConfig, score_shards
    from jaxllm.studies import console, table

    paths = [word for word in args.shards if "=" not in word]
    config = load(FilterConfig, args.config, [word for word in args.shards if "=" in word])
    report = score_shards(paths, args.out, config, say=lambda text: print(text, flush=True))
    found = report["quantiles"]
    if found:
        at = list(next(iter(found.values())))
        console().print(table(f"{report['records']:,} records, {report['malformed']:,} malformed: quantiles", ["", *at],
                              [[name, *values.values()] for name, values in found.items()]))
    print(f"wrote {args.out / 'scores.json'}")
    return 0
