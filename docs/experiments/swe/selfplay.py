"""10 x 10 self-play on held-out tasks against other ways to choose, with paired bootstrap intervals.

Run: python docs/experiments/swe/selfplay.py runs/swe MODEL docs/experiments/swe/selfplay_NAME.jsonl [--tasks 50]

One line a task, appended; a run that is stopped goes on behind the last. At the end a table goes to standard output and
to `selfplay_NAME.md`.
"""

import argparse
import itertools
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import build
from jaxllm.files import read_json, read_jsonl, write_json, write_text
from jaxllm.swe.grading import RunCache
from jaxllm.swe.instances import read_instances
from jaxllm.swe.judging import Edit, Judge
from jaxllm.swe.playing import (
    Item,
    Package,
    Policy,
    crash_line_edits,
    item_of,
    localise,
    outcomes,
    play,
    prepare,
    random_edit,
    write_checks,
    write_edits,
)
from jaxllm.swe.recipes import Recipe
from jaxllm.swe.running import sandbox_for_tests
from jaxllm.swe.trees import read_tree

COUNT, SEED, TOGETHER = 10, 0, 10
BASELINES = ("oracle", "no_op", "random", "crash_line")
HELD_OUT = Path(__file__).with_name("held_out.json")
ROWS = {"self_play_10": "self-play 10 x 10", "self_play_3": "self-play 3 x 3", "majority": "majority of 10",
        "greedy": "single sample, greedy", "sampled": "single sample, temperature 1", "any": "best of 10 by the judge",
        "oracle": "oracle", "no_op": "no-op", "random": "random function, site, operator",
        "crash_line": "first rewrite on the crash line"}


def held_out(out: Path, count: int) -> list[Item]:
    """Tasks of held-out functions and packages, half and half; the same for every model, and kept by name."""
    instances = {i.instance_id: i for i in read_instances(out / "instances.jsonl") if i.about["split"] != "train"}
    if not HELD_OUT.exists():
        names = random.Random(SEED).sample(sorted(instances), len(instances))
        kinds = [[n for n in names if instances[n].about["split"] == kind] for kind in ("test", "test_package")]
        write_json(HELD_OUT, [name for pair in itertools.zip_longest(*kinds) for name in pair if name][:100])
    chosen = [instances[name] for name in read_json(HELD_OUT)[:count]]
    packages = {}
    for name in sorted({i.repo for i in chosen}):
        recipe = build(Recipe, read_json(out / name / "recipe.json")["recipe"])
        packages[name] = Package(recipe, read_tree(out / name / "snapshot.tar.gz"))
    return [item_of(i, packages[i.repo]) for i in chosen]


def bootstrap(values: np.ndarray, draws: int = 10_000) -> tuple[float, float]:
    """95 % of means over tasks drawn with replacement."""
    at = np.random.default_rng(SEED).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[at].mean(1), [0.025, 0.975])
    return float(low), float(high)


def table(records: list[dict[str, Any]]) -> str:
    """Rates with intervals, and differences from self-play by task."""
    ours = np.array([r["self_play_10"] for r in records], float)
    lines = ["| way to choose | mended | less than self-play 10 x 10 by |", "|---|---|---|"]
    for name, title in ROWS.items():
        values = np.array([r[name] for r in records], float)
        low, high = bootstrap(values)
        less = bootstrap(ours - values)
        by = "-" if name == "self_play_10" else f"{(ours - values).mean():.2f} ({less[0]:.2f} to {less[1]:.2f})"
        lines.append(f"| {title} | {values.mean():.2f} ({low:.2f} to {high:.2f}) | {by} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Play."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--retries", type=int, default=5, help="further draws in place of edits that are none")
    args = parser.parse_args()
    begun = time.monotonic()
    items = held_out(args.out, args.tasks)
    done = {r["task"] for r in read_jsonl(args.results)} if args.results.exists() else set()
    left = [item for item in items if item.instance.instance_id not in done]
    policy = Policy(args.model)
    places = localise(policy, left, COUNT, SEED)
    edits = write_edits(policy, left, places, SEED)
    for again in range(1, args.retries + 1):
        retry(policy, left, edits, SEED + 100 * again)
    checks = write_checks(policy, left, localise(policy, left, COUNT, SEED + 1), SEED)
    print(f"sampled in {time.monotonic() - begun:.0f} s", flush=True)
    with sandbox_for_tests(1) as sandbox, args.results.open("a", encoding="utf-8") as lines:
        judge, cache = Judge(sandbox, args.out / "verdicts.jsonl"), RunCache(sandbox)
        for start in range(0, len(left), TOGETHER):
            some = slice(start, start + TOGETHER)
            at = time.monotonic()
            prepare(left[some], edits[some], checks[some], cache)  # runs that share an interpreter cost less
            found = [{n: play(item, e[:n], c[:n], cache) for n in (3, COUNT)}
                     for item, e, c in zip(left[some], edits[some], checks[some], strict=True)]
            took = (time.monotonic() - at) / len(found)
            others = baselines(left[some], judge)
            judge.resolved([e for row in [*edits[some], *others] for e in row if e is not None])
            for item, where, mine, played, other in zip(left[some], places[some], edits[some], found, others,
                                                        strict=True):
                record = {"task": item.instance.instance_id, "split": item.instance.about["split"],
                          "operator": item.instance.about.get("mended_by", {}).get("operator", ""),
                          "seconds": round(took, 2), **outcomes(item, mine, played, judge),
                          **_about(item, where, played, mine)}
                record |= {name: edit is not None and judge.resolved([edit])[0]
                           for name, edit in zip(BASELINES, other, strict=True)}
                lines.write(json.dumps(record) + "\n")
                lines.flush()
            print(f"{start + len(found)}/{len(left)} {took:.1f} s each, {cache.runs} runs", flush=True)
    records = read_jsonl(args.results)
    means = {name: np.mean([r[name] for r in records]) for name in (
        "distinct_edits", "checks_that_fail", "functions_right", "first_function_right", "shortlisted",
        "shortlist_first", "seconds")}
    text = table(records) + "\nMeans over tasks: " + ", ".join(f"{k} {v:.2f}" for k, v in means.items())
    text += f".\n{len(left)} tasks in {time.monotonic() - begun:.0f} s, sampling and judging included.\n"
    write_text(args.results.with_suffix(".md"), text)
    print(text)


def retry(policy: Policy, items: list[Item], edits: list[list[Edit | None]], seed: int) -> None:
    """Draw once more, function and edit, where a sample is no edit (the paper's retries while a patch is empty)."""
    lacking = [i for i, row in enumerate(edits) if None in row]
    some = [items[i] for i in lacking]
    places = [[None, *row[1:]] for row in localise(policy, some, COUNT + 1, seed)] if some else []
    for i, row in zip(lacking, write_edits(policy, some, places, seed) if some else [], strict=True):
        edits[i] = [old or new for old, new in zip(edits[i], row[1:], strict=True)]


def baselines(items: list[Item], judge: Judge) -> list[list[Edit | None]]:
    """`BASELINES` of each item."""
    crash, out = crash_line_edits(items, judge), []
    for item, last in zip(items, crash, strict=True):
        tree, mended = judge.trees(item.instance)
        path = item.instance.about["path"]
        blind = random_edit(item, random.Random(f"{SEED}:{item.instance.instance_id}"))
        out.append([Edit(item.instance, path, mended[path]), Edit(item.instance, path, tree[path]), blind, last])
    return out


def _about(item: Item, places: list[Any], played: dict[int, Any], edits: list[Edit | None]) -> dict[str, Any]:
    right = item.instance.about["path"], item.instance.about["function"]
    return {"functions_right": float(np.mean([place == right for place in places])),
            "first_function_right": places[0] == right, "shortlisted": right in item.functions,
            "shortlist_first": item.functions[0] == right,
            "checks_that_fail": len(played[COUNT].used),
            "distinct_edits": len({(e.path, e.source) for e in edits if e is not None})}


if __name__ == "__main__":
    main()
