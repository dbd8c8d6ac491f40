"""`jaxllm curation score SHARDS --out DIR`: a row of scores for each record, and their quantiles."""

from __future__ import annotations

import argparse

from jaxllm.cli.curation import add_shards, paths_and_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    add_shards(parser, "quality=quality.npz unit=tokens tokenizer=DIR",
               "directory of NAME.scores.parquet and scores.json")


def run(args: argparse.Namespace) -> int:
    """Score, then show quantiles."""
    from jaxllm.curation.filter import score_shards
    from jaxllm.studies import console, table

    paths, config = paths_and_config(args)
    report = score_shards(paths, args.out, config, say=lambda text: print(text, flush=True))
    found = report["quantiles"]
    if found:
        at = list(next(iter(found.values())))
        console().print(table(f"{report['records']:,} records, {report['malformed']:,} malformed: quantiles", ["", *at],
                              [[name, *values.values()] for name, values in found.items()]))
    print(f"wrote {args.out / 'scores.json'}")
    return 0
