"""`jaxllm curation learn LABELLED --out quality.npz`: a classifier of quality, and how far it agrees with labels held
out."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("labelled", type=Path, help="JSONL with `text` and `label`, quality or junk")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as strength=0.5 pairs=false")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="of the records, to measure on (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Learn, measure, write."""
    import numpy as np

    from jaxllm.curation.quality import BAD, GOOD, QualityConfig, QualityModel, agreement
    from jaxllm.files import read_jsonl
    from jaxllm.studies import Interval, console, table

    config = load(QualityConfig, None, args.overrides)
    rows = read_jsonl(args.labelled)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str) or row.get("label") not in (GOOD, BAD):
            raise ConfigError(f"{args.labelled}, line {number}: needs `text` and `label`, {GOOD} or {BAD}")
    if not 0 < args.held_out < 1:
        raise ConfigError(f"--held-out {args.held_out}: a share between 0 and 1")
    order = np.random.default_rng(config.seed).permutation(len(rows))
    cut = max(2, round(args.held_out * len(rows)))
    held, learned = ([rows[i] for i in part] for part in (order[:cut], order[cut:]))
    model = QualityModel.fit([r["text"] for r in learned], [r["label"] == GOOD for r in learned], config)
    model.save(args.out)
    said = model.probabilities([r["text"] for r in held]) >= 0.5
    found = agreement(said.tolist(), [r["label"] == GOOD for r in held])
    console().print(table(f"agreement with {len(held)} labels held out", ["", "value"],
                          [[name, Interval(v["value"], v["low"], v["high"], len(held))] for name, v in found.items()]))
    print(f"wrote {args.out}")
    return 0
