"""Mined instances in a file that is small enough to keep: what was changed and what failed, not the package.

One JSON file a package. Trees and patches are made again from the pinned source distribution, tests that pass are those
of the same files that do not fail, so that a task is a mutant's name, numbers of tests and the report.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, build
from jaxllm.files import read_json, read_jsonl, write_json, write_text
from jaxllm.swe.instances import Instance, write_instances
from jaxllm.swe.mining import MineConfig, make_instance
from jaxllm.swe.mutation import Mutant, apply_rewrite, find_sites
from jaxllm.swe.recipes import Recipe, fetch
from jaxllm.swe.trees import tree_hash, write_archive

FORMAT = "jaxllm mined 1"


def pack(home: str | Path, out: str | Path) -> dict[str, Any]:
    """Write what `mine` left in `home` (a package's directory), or has so far, as one JSON file; gives what it holds.

    Raises:
      ConfigError: nothing was mined there.
    """
    home = Path(home)
    if not (home / "attempts.jsonl").exists():
        raise ConfigError(f"{home}: nothing was mined here; expected attempts.jsonl")
    stated, baseline = read_json(home / "recipe.json"), read_json(home / "baseline.json")
    tests = {name: i for i, name in enumerate(baseline["tests"])}
    callers = {(path, line): names for path, line, names in baseline["callers"]}
    records = read_jsonl(home / "attempts.jsonl")
    files: dict[str, int] = {}
    tasks = []
    for record in records:
        if record["verdict"] == "kept":
            given = record["instance"]
            used = dict.fromkeys(t.partition("::")[0] for t in (*given["FAIL_TO_PASS"], *given["PASS_TO_PASS"]))
            tasks.append([record["mutant"], [files.setdefault(name, len(files)) for name in used],
                          [tests[name] for name in given["FAIL_TO_PASS"]], given["problem_statement"]])
    data = {"format": FORMAT, **stated, "tree": baseline["tree"], "flaky": baseline["flaky"],
            "flaky_mutants": [[r["mutant"], r.get("flaky", [])] for r in records if r["verdict"] == "flaky"],
            "unguarded": baseline["unguarded"],
            "verdicts": dict(collections.Counter(r["verdict"] for r in records).most_common()),
            "tests": baseline["tests"], "files": list(files), "tasks": tasks,
            "callers": [[path, line, [tests[name] for name in names[:4]]] for (path, line), names in callers.items()]}
    lines = [f"{json.dumps(key)}: " + (json.dumps(value) if key not in ("tests", "tasks", "callers") else
             "[\n" + ",\n".join(json.dumps(item) for item in value) + "\n]") for key, value in data.items()]
    write_text(out, "{\n" + ",\n".join(lines) + "\n}\n")
    return data


@dataclasses.dataclass(frozen=True)
class Mined:
    """A packed file, opened.

    Attributes:
      recipe: of the package.
      config: it was mined with.
      tree: the package as it should be.
      instances: as `mine` made them.
      mutants: of each instance.
      callers: by function, as (path, first line), tests that execute it.
    """

    recipe: Recipe
    config: MineConfig
    tree: dict[str, bytes]
    instances: list[Instance]
    mutants: list[Mutant]
    callers: dict[tuple[str, int], list[str]]


def unpack(path: str | Path, home: str | Path, downloads: str | Path | None = None) -> Mined:
    """Instances of a packed file.

    Args:
      path: of `pack`.
      home: directory for the snapshot that they share, and `instances.jsonl`.
      downloads: as for `fetch`.

    Raises:
      ConfigError: it is no packed file, or the package is another than was mined.
    """
    data, home = read_json(path), Path(home)
    if data.get("format") != FORMAT:
        raise ConfigError(f"{path}: format={data.get('format')!r}: expected {FORMAT!r}")
    recipe, config = build(Recipe, data["recipe"], str(path)), build(MineConfig, data["config"], str(path))
    tree = fetch(recipe, downloads)
    if tree_hash(tree) != data["tree"]:
        raise ConfigError(f"{path}: {recipe.name} is not the distribution that was mined")
    snapshot = home / "snapshot.tar.gz"
    if not snapshot.exists():
        home.mkdir(parents=True, exist_ok=True)
        write_archive(snapshot, tree)
    mutants = _mutants(tree, [task[0] for task in data["tasks"]], str(path))
    instances = []
    for mutant, (_, files, fail, issue) in zip(mutants, data["tasks"], strict=True):
        names, failed = {data["files"][i] for i in files}, [data["tests"][i] for i in fail]
        wanted = [test for test in data["tests"] if test.partition("::")[0] in names]
        found = {"fail": failed, "pass": sorted(set(wanted) - set(failed)), "cases": {}}
        made = make_instance(recipe, tree, mutant, found, snapshot, config)
        instances.append(dataclasses.replace(made, problem_statement=issue))
    write_instances(home / "instances.jsonl", instances)
    write_json(home / "recipe.json", {"recipe": data["recipe"], "config": data["config"]})
    callers = {(name, line): [data["tests"][i] for i in tests] for name, line, tests in data["callers"]}
    return Mined(recipe, config, tree, instances, mutants, callers)


def _mutants(tree: dict[str, bytes], names: Sequence[str], where: str) -> list[Mutant]:
    """Mutants by name."""
    sites: dict[str, dict[tuple[int, int, str], Any]] = {}
    out = []
    for name in names:
        path, span, operator = name.split(":", 2)
        start, end = map(int, span.split("-"))
        if path not in sites:
            sites[path] = {(s.start, s.end, o): s for s in find_sites(tree.get(path, b"")) for o, _ in s.rewrites}
        site = sites[path].get((start, end, operator))
        if site is None:
            raise ConfigError(f"{where}: {name}: there is no such site")
        out.append(Mutant(path, site, operator, apply_rewrite(tree[path], site, operator)))
    return out
