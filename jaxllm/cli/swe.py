"""`jaxllm swe`: bug-fix tasks from a package with good tests, and small files of them (`mine`, `pack`, `unpack`)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser("mine", help="faults that a package's tests find out", description="Mine a package.")
    action.add_argument("recipe", nargs="+", help="toolz, boltons, parso, ..., or a YAML file")
    action.add_argument("--out", type=Path, required=True, help="where instances go; what is there is gone on from")
    action.add_argument("--downloads", type=Path, help="where source distributions lie; fetched ones are put there")
    action.add_argument("--workers", type=int, default=1, help="runs at once (%(default)s)")
    action.add_argument("overrides", nargs="*", metavar="key=value", help="such as most=50 keep=20 seed=1")
    action = actions.add_parser("pack", help="one small file of what was mined", description="Write a packed file.")
    action.add_argument("home", type=Path, help="a package's directory below the --out of mine")
    action.add_argument("--out", type=Path, required=True, help="JSON file")
    action = actions.add_parser("unpack", help="instances of a packed file", description="Make instances again.")
    action.add_argument("packed", type=Path, help="JSON file of pack")
    action.add_argument("--out", type=Path, required=True, help="directory for snapshot and instances.jsonl")
    action.add_argument("--downloads", type=Path, help="where source distributions lie; fetched ones are put there")


def run(args: argparse.Namespace) -> int:
    """Do it, then show what came of it."""
    if args.action == "pack":
        from jaxllm.swe.packing import pack

        data = pack(args.home, args.out)
        print(f"wrote {args.out}: {len(data['tasks'])} tasks")
        return 0
    if args.action == "unpack":
        from jaxllm.swe.packing import unpack

        found = unpack(args.packed, args.out, args.downloads)
        print(f"wrote {args.out / 'instances.jsonl'}: {len(found.instances)} instances")
        return 0
    from jaxllm.studies import console
    from jaxllm.swe.mining import MineConfig, mine
    from jaxllm.swe.recipes import open_recipe
    from jaxllm.swe.running import sandbox_for_tests

    words = [word for word in args.recipe if "=" in word]  # argparse gives them to the first list
    config = load(MineConfig, None, [*words, *args.overrides])
    recipes = [open_recipe(name) for name in args.recipe if name not in words]
    summaries = []
    with sandbox_for_tests(args.workers) as sandbox:
        for recipe in recipes:
            summaries.append(mine(recipe, args.out, config, sandbox=sandbox, downloads=args.downloads, log=_say))
    console().print(mine_table(summaries))
    print(f"wrote {', '.join(str(args.out / s['package'] / 'instances.jsonl') for s in summaries)}")
    return 0


def _say(text: str) -> None:
    print(text, flush=True)


def mine_table(summaries: list[dict[str, Any]]) -> Any:
    """A line a package."""
    from jaxllm.studies import table

    names = ("tests", "flaky", "unguarded", "tried", "kept")
    verdicts = ("survived", "untested", "too_many", "collection", "same", "flaky", "timeout")
    splits = ("train", "test", "test_package")
    rows = [[s["package"], *(s[n] for n in names), *(s["verdicts"].get(v, 0) for v in verdicts),
             *(s["splits"].get(v, 0) for v in splits), s["seconds_each"], s["cpu_s_each"]] for s in summaries]
    return table("mined", ["package", *names, *(f"{v.replace('_', ' ')}" for v in verdicts),
                           *(f"for {v.replace('_', ' ')}" for v in splits), "s each", "CPU s each"], rows)
