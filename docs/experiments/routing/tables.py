"""The table of a study of this directory over its seeds: accuracy and share of executions saved of every arm.

Run: python docs/experiments/routing/tables.py smollm2|arithmetic
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.files import read_json, read_jsonl
from jaxllm.studies import mean_interval

ARMS = ("unrouted", "routed", "random", "static", "early exit", "per token", "oracle")


def main() -> None:
    """Print Markdown."""
    here = Path("docs/experiments/routing") / sys.argv[1]
    rows = [row for row in read_jsonl(here / "cells.jsonl") if row["arm"] in ("routers", "shared")]
    seeds = sorted(row["seed"] for row in rows)
    prefix = "shared" if sys.argv[1] == "arithmetic" else "seed"
    reports = [read_json(here / f"{prefix}_{seed}" / "evaluation.json") for seed in seeds]
    print(f"| family (problems a seed, {len(seeds)} seeds) | {' | '.join(ARMS)} | routed less unrouted | less random |")
    print("|" + "---|" * (len(ARMS) + 3))
    for family in reports[0]["families"]:
        found = [r["families"][family] for r in reports]
        cells = []
        for arm in ARMS:
            if any(arm not in f["arms"] for f in found):
                cells.append("")
                continue
            accuracy = mean_interval([f["arms"][arm]["accuracy"][0] for f in found]).value
            saved = mean_interval([f["arms"][arm]["saved"][0] for f in found]).value
            cells.append(f"{accuracy:.2f}" + ("" if arm == "unrouted" else f" ({saved:.0%})"))
        differences = []
        for other in ("unrouted", "random"):
            d = mean_interval([f["arms"]["routed"]["accuracy"][0] - f["arms"][other]["accuracy"][0] for f in found])
            differences.append(f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})")
        print(f"| {family} ({found[0]['role']}, {found[0]['problems']}) | {' | '.join([*cells, *differences])} |")
    arms: dict[str, list[dict[str, Any]]] = {}
    for row in read_jsonl(here / "cells.jsonl"):
        arms.setdefault(row["arm"], []).append(row)
    for arm, of_arm in arms.items():
        for name in ("agreement", "always_once", "macro_f1"):
            print(arm, name, [round(row[name], 3) for row in of_arm])
        points = [name.split("/")[1] for name in of_arm[0] if name.startswith("curve/") and name.endswith("/saved")]
        print(arm, ", ".join(f"{lean}: {np.mean([row[f'curve/{lean}/accuracy'] for row in of_arm]):.2f} at "
                             f"{np.mean([row[f'curve/{lean}/saved'] for row in of_arm]):.1%}" for lean in points))


if __name__ == "__main__":
    main()
