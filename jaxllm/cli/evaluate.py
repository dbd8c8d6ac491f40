"""`jaxllm evaluate CONFIG`: suites x agents x models x efforts, each task several times, resumed where it was."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from jaxllm.config import load

EVERY_S = 5.0  # between lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", type=Path, help="YAML file, such as configs/evaluation/desk.yaml")
    parser.add_argument("--out", type=Path, help="directory of results, gone on with if there are some; runs/CONFIG by "
                                                 "default")
    parser.add_argument("--debiased", action="store_true", help="consistency of outcomes without the bias of few "
                                                                  "repeats")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as repeats=5 at_once=4")


def run(args: argparse.Namespace) -> int:
    """Evaluate, show a table, write the page."""
    from jaxllm.evaluation.config import EvaluateConfig
    from jaxllm.evaluation.runner import evaluate

    config = load(EvaluateConfig, args.config, args.overrides)
    out = args.out or Path("runs") / args.config.stem
    last = 0.0

    def progress(record: dict[str, Any], made: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if made == total or now - last >= EVERY_S:
            last = now
            print(f"{made}/{total} {record['suite']}/{record['task']} {record['agent']} {record['model']}: "
                  f"{record['status']}, score {record['score']}", flush=True)

    evaluate(config, out, progress)
    from jaxllm.evaluation.page import write_page
    from jaxllm.evaluation.summary import summarize
    from jaxllm.studies import console

    console().print(summary_table(summarize(out, debiased=args.debiased)))
    print(f"wrote {write_page(out, title=args.config.stem, debiased=args.debiased)}")
    return 0


def summary_table(cells: list[Any]) -> Any:
    """A row for each cell."""
    from jaxllm.evaluation.flags import FLAGS
    from jaxllm.studies import table

    rows = [[f"{c.key[0]}: {c.key[1]}", c.key[2], c.key[3], c.key[4], c.attempts, c.faults, c.metrics.get("accuracy"),
             c.metrics.get("C_out"), c.metrics.get("cost"), c.metrics.get("seconds"),
             sum(sum(c.flags[name]) for name in FLAGS), ", ".join(c.levels) or None] for c in cells]
    return table("evaluated (95 % intervals over tasks)",
                 ["suite: agent", "model", "effort", "perturbation", "attempts", "faults", "accuracy", "C_out", "cost",
                  "seconds", "flags", "sandbox"], rows)
