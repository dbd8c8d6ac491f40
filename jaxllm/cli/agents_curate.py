"""`jaxllm agents curate CONFIG`: which prompts are worth training on, by what the model does with them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("config", help="YAML file of agentic RL with prompts.path; init_from is the model")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSONL of the prompts that are kept, "
                        "each with its pass_rate")
    parser.add_argument("--samples", type=int, default=8, help="of each prompt (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as init_from=runs/sft/model")


def run(args: argparse.Namespace) -> int:
    """Sample, keep what is neither never nor always solved, write."""
    import numpy as np

    from jaxllm.agents.training import AgentRLConfig, curate_prompts
    from jaxllm.config import check, load
    from jaxllm.data import read_records
    from jaxllm.files import write_jsonl
    from jaxllm.studies import console, table

    config = load(AgentRLConfig, args.config, args.overrides)
    check(config.prompts.path is not None, "prompts", "a task", "only prompts of a file can be written")
    check(args.samples >= 2, "--samples", args.samples, "must be at least 2, to tell sometimes from always")
    records = [r.fields for r in read_records(str(config.prompts.path))]
    found, passed = curate_prompts(config, args.samples)
    write_jsonl(args.out, [{**records[i], "pass_rate": round(float(np.nanmean(passed[i])), 4)} for i in found.kept])
    rows = [[name, len(getattr(found, name))] for name in ("kept", "unsolved", "solved", "easy", "hard")]
    console().print(table(f"{len(records)} prompts, {args.samples} samples each", ["", "prompts"], rows))
    print(f"wrote {args.out}")
    return 0
