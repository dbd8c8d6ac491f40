"""`jaxllm bench NAME`: a table to read and, with --json, raw seconds to keep."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError, nearest

BENCHES = ("cells", "coordination", "curation", "decode", "exact_match", "generate", "rl", "routing", "sandbox",
           "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("name", help=f"one of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="under a minute on two cores")
    parser.add_argument("--json", type=Path, help="file for settings, raw seconds and ratios")
    parser.add_argument("--model", type=Path, help="model directory with a task.json; the shipped one by default")
    parser.add_argument("--no-random", action="store_true", help="decode: leave out the 100M-parameter random model")
    parser.add_argument("--out", type=Path, help="exact_match: directory, resumed from; exact_match by default, "
                                                 "exact_match-quick with --quick")
    parser.add_argument("--gen-length", type=int, choices=(128, 256, 512), help="exact_match: tokens; 256 by default")


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    if args.name not in BENCHES:
        raise ConfigError(f"bench {args.name!r} is unknown; {nearest(args.name, BENCHES)}")
    for flag, of in (("no_random", "decode"), ("out", "exact_match"), ("gen_length", "exact_match")):
        if getattr(args, flag) and args.name != of:
            raise ConfigError(f"--{flag.replace('_', '-')}: only bench {of} takes it, not {args.name}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    from jaxllm.files import write_json

    if args.name == "decode":
        from jaxllm.bench.decode import bench

        results = bench(quick=args.quick, model_dir=args.model, random_model=not args.quick and not args.no_random)
    elif args.name == "train":
        from jaxllm.bench.train import bench as bench_train

        results = bench_train(quick=args.quick)
    elif args.name == "generate":
        from jaxllm.bench.generate import bench as bench_generate

        results = bench_generate(quick=args.quick)
    elif args.name == "cells":
        from jaxllm.bench.cells import bench as bench_cells

        results = bench_cells(quick=args.quick)
    elif args.name == "routing":
        from jaxllm.bench.routing import bench as bench_routing

        results = bench_routing(quick=args.quick)
    elif args.name == "coordination":
        from jaxllm.bench.coordination import bench as bench_coordination

        results = bench_coordination(quick=args.quick)
    elif args.name == "curation":
        from jaxllm.bench.curation import bench as bench_curation

        results = bench_curation(quick=args.quick)
    elif args.name == "sandbox":
        from jaxllm.bench.sandbox import bench as bench_sandbox

        results = bench_sandbox(quick=args.quick)
    elif args.name == "rl":
        from jaxllm.bench.rl import bench as bench_rl

        results = bench_rl(quick=args.quick)
    else:
        from jaxllm.bench.exact_match import study

        out = args.out or Path("exact_match-quick" if args.quick else "exact_match")
        results = study(out, args.model, seeds=1 if args.quick else 4, problems_per_seed=10 if args.quick else 50,
                        gen_length=args.gen_length or 256)
    if args.json:
        write_json(args.json, results)
        print(f"wrote {args.json}")
    return 0
