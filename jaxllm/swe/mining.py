"""Mines instances: mutants of a package that its tests find out, told of by what failed.

The rule (SWE-smith's procedural faults; Kimi-Dev's rule for environments): at least one test fails that passed, at
least one passes, at most a fifth of all tests fail, no error of collection, and taking the fault back mends it. Runs
are made twice and must agree; tests that do not, and those whose checks hold nothing, are listed and left out.

Which test files a mutant meets: the package's tests are traced once, and say which functions each executes. A fault in
a function's body can show in no test that does not execute it, so that only files with such a test are run, whole.
What a function did for a test file while that was imported counts for all its tests. FAIL_TO_PASS and PASS_TO_PASS name
tests of these files alone, so that they claim nothing that was not run.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check
from jaxllm.files import read_json, read_jsonl, write_json, write_text
from jaxllm.sandbox import Sandbox
from jaxllm.swe.counter import counter_tests
from jaxllm.swe.diffs import write_diff
from jaxllm.swe.grading import held_checks
from jaxllm.swe.instances import Instance, record_of, write_instances
from jaxllm.swe.issues import issue_text
from jaxllm.swe.mutation import Mutant, find_mutants, inverse, same_program
from jaxllm.swe.recipes import Recipe, code_files, fetch, test_files
from jaxllm.swe.running import TestRun, run_tests
from jaxllm.swe.trees import read_tree, tree_hash, write_archive


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """How many, and how they are split.

    Attributes:
      seed: of the order in which mutants are tried.
      most: mutants tried; None for all.
      keep: instances after which to stop; None for no end.
      failing: largest share of the package's tests that may fail.
      held_out: share of functions whose mutants are for testing.
      held_out_packages: packages all of whose mutants are.
      per_function: instances of one function at most.
    """

    seed: int = 0
    most: int | None = None
    keep: int | None = None
    failing: float = 0.2
    held_out: float = 0.2
    held_out_packages: tuple[str, ...] = ()
    per_function: int = 20

    def __post_init__(self) -> None:
        for name in ("most", "keep"):
            check(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.failing < 1, "failing", self.failing, "must lie between 0 and 1")
        check(0 <= self.held_out <= 1, "held_out", self.held_out, "must lie in [0, 1]")
        check(self.per_function >= 1, "per_function", self.per_function, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A package's own tests.

    Attributes:
      tests: those that passed every time and whose checks hold something.
      flaky: that did not agree with themselves.
      unguarded: that passed although their checks could not hold.
      touching: by function, as (path, first line), the test files that execute it.
      seconds, cpu_s: wall and CPU time of a whole run without tracing.
    """

    tests: tuple[str, ...]
    flaky: tuple[str, ...]
    unguarded: tuple[str, ...]
    touching: Mapping[tuple[str, int], tuple[str, ...]]
    seconds: float
    cpu_s: float


def split_of(package: str, path: str, function: str, config: MineConfig) -> str:
    """`train`, `test` or `test_package`; all mutants of one outermost function or class fall on one side.

    By hash, so that it depends on names alone.
    """
    if package in config.held_out_packages:
        return "test_package"
    name = f"{package}/{path}/{function.partition('.')[0]}"
    share = int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12
    return "test" if share < config.held_out else "train"


def measure_baseline(recipe: Recipe, tree: dict[str, bytes], sandbox: Sandbox) -> Baseline:
    """Run a package's tests twice as they are, once traced and once with checks that cannot hold.

    Raises:
      ConfigError: they do not pass unmodified, or another copy of the package was tested.
    """
    files, plan = test_files(recipe, tree), recipe.plan
    slow = dataclasses.replace(plan, test_s=4 * plan.test_s, wall_s=4 * plan.wall_s)
    runs = [run_tests(sandbox, tree, plan, files) for _ in range(2)]
    for run in runs:
        if run.status != "ok" or run.collection:
            name, why = next(iter(run.collection.items()), (run.status, run.said[-400:]))
            raise ConfigError(f"recipe {recipe.package}: its tests do not run unmodified: {name}: {why}")
        for module, origin in zip(plan.modules, run.origin, strict=True):
            if origin is None:
                raise ConfigError(f"recipe {recipe.package}: modules: {module} was not imported from the tree; source="
                                  f"{list(recipe.source)} must name the directory that holds it")
    out = {name for name in recipe.excluded if "::" in name}
    sets = [set(run.passed()) - out for run in runs]
    good, flaky = sets[0] & sets[1], sets[0] ^ sets[1]
    bad = {name for run in runs for name in run.failed()} - out - flaky
    if bad:
        first = min(bad)
        raise ConfigError(f"recipe {recipe.package}: {len(bad)} tests do not pass unmodified, {first} first "
                          f"({runs[0].cases[first].message[:200]}); name them in excluded if that is as it should be")
    if not good:
        raise ConfigError(f"recipe {recipe.package}: no test passes unmodified")
    traced = run_tests(sandbox, tree, slow, files, trace=True)
    if traced.status != "ok":
        raise ConfigError(f"recipe {recipe.package}: its tests do not run while traced: {traced.status}")
    countered = run_tests(sandbox, counter_tests(tree, files), slow, files, details=False)
    if countered.status != "ok" or countered.collection:
        why = next(iter(countered.collection.values()), countered.said[-400:])
        raise ConfigError(f"recipe {recipe.package}: its counter-tests do not run: {countered.status} {why}")
    unguarded = held_checks(countered, sorted(good))
    good -= set(unguarded)
    if not good:
        raise ConfigError(f"recipe {recipe.package}: no test has a check that counter-tests could turn")
    return Baseline(tuple(sorted(good)), tuple(sorted(flaky)), tuple(unguarded), _touching(traced, files),
                    runs[1].seconds, runs[1].cpu_s)


def _touching(run: TestRun, files: Sequence[str]) -> dict[tuple[str, int], tuple[str, ...]]:
    """Test files by the functions that their tests execute; those of collection by all files."""
    found: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for test, functions in run.touched.items():
        for function in functions:
            found[function] |= set(files) if not test else {test.partition("::")[0]}
    return {function: tuple(sorted(names)) for function, names in found.items()}


def try_mutant(recipe: Recipe, tree: dict[str, bytes], mutant: Mutant, baseline: Baseline,
               sound: dict[tuple[str, ...], set[str]], sandbox: Sandbox, config: MineConfig,
               ) -> tuple[str, dict[str, Any]]:
    """A mutant's verdict and, where it is `kept`, what an instance needs.

    `same`: the same program, or none; `untested`: no test executes its function; `survived`: nothing fails;
    `too_many` tests fail; `nothing_passes`; `collection`: an error there; `flaky`: two runs differ; `unsound`: its
    reversal does not pass; or how its run ended (`timeout`, `cut`, ...).

    Args:
      recipe: how tests run.
      tree: the package unmodified.
      mutant: to try.
      baseline: the package's tests.
      sound: by test files, the tests that pass twice unmodified; filled here.
      sandbox: where.
      config: the rule.
    """
    original = tree[mutant.path]
    program = same_program(mutant.source)
    if program is None or program == same_program(original):
        return "same", {}
    files = baseline.touching.get((mutant.path, mutant.site.code_line), ())
    wanted = [test for test in baseline.tests if test.partition("::")[0] in files]
    if not wanted:
        return "untested", {}
    broken = {**tree, mutant.path: mutant.source}
    run = run_tests(sandbox, broken, recipe.plan, files)
    about: dict[str, Any] = {"files": len(files), "cpu_s": run.cpu_s}
    if run.status != "ok":
        return run.status, about
    if run.collection:
        return "collection", about
    good = set(run.passed(wanted))
    failed = [test for test in wanted if test not in good]
    if not failed:
        return "survived", about
    if len(failed) > config.failing * len(baseline.tests):
        return "too_many", {**about, "failed": len(failed)}
    if not good:
        return "nothing_passes", {**about, "failed": len(failed)}
    again = run_tests(sandbox, broken, recipe.plan, files)
    about["cpu_s"] += again.cpu_s
    unsteady = [test for test in wanted if (test in good) != (test in again.passed([test]))]
    if again.status != "ok" or unsteady:
        return "flaky", {**about, "flaky": unsteady[:20]}
    if files not in sound:  # the reversal is the package byte for byte: two runs serve all mutants of these files
        first, second = (set(run_tests(sandbox, tree, recipe.plan, files).passed()) for _ in range(2))
        sound[files] = first & second
    if missing := set(wanted) - sound[files]:
        return "unsound", {**about, "missing": sorted(missing)[:20]}
    cases = {test: run.cases[test] for test in failed if test in run.cases}
    return "kept", {**about, "fail": failed, "pass": sorted(good), "cases": cases}


def make_instance(recipe: Recipe, tree: dict[str, bytes], mutant: Mutant, found: Mapping[str, Any], snapshot: Path,
                  config: MineConfig) -> Instance:
    """An instance of a mutant that was kept."""
    broken = {**tree, mutant.path: mutant.source}
    name = hashlib.sha256(mutant.name.encode()).hexdigest()[:10]
    label = inverse(mutant.source, tree[mutant.path])
    about: dict[str, Any] = {
        "package": recipe.package, "version": recipe.version, "path": mutant.path, "function": mutant.site.function,
        "line": mutant.site.line, "operator": mutant.operator,
        "split": split_of(recipe.package, mutant.path, mutant.site.function, config)}
    if label is not None:
        about["mended_by"] = {"start": label[0].start, "end": label[0].end, "operator": label[1]}
    return Instance(f"{recipe.package}-{name}", issue_text(recipe.package, found["fail"], found["cases"]),
                    write_diff(broken, tree), "", tuple(found["fail"]), tuple(found["pass"]), str(snapshot),
                    write_diff(tree, broken), recipe.package, recipe.plan, about)


def mine(recipe: Recipe, out: str | Path, config: MineConfig = MineConfig(), *, sandbox: Sandbox,  # noqa: B008
         downloads: str | Path | None = None, log: Callable[[str], None] = print) -> dict[str, Any]:
    """Mine one package; what `out` holds already is gone on from.

    `out/PACKAGE/` gets `recipe.json`, `snapshot.tar.gz`, `baseline.json`, `attempts.jsonl` (one line a mutant,
    appended) and, at the end, `instances.jsonl` and `summary.json`.

    Returns:
      The summary: counts by verdict, by split and by operator, and seconds.

    Raises:
      ConfigError: the package is not as its recipe says, its tests do not pass unmodified, or `out` holds another
        recipe's or another setting's work.
    """
    home = Path(out) / recipe.package
    home.mkdir(parents=True, exist_ok=True)
    tree = _opened(recipe, home, downloads)
    _same_work(home, recipe, config)
    baseline = _baseline(recipe, tree, home, sandbox, log)
    mutants = _ordered(recipe, tree, config)
    file = home / "attempts.jsonl"
    records = read_jsonl(file) if file.exists() else []
    if file.exists():  # a kill may have left half a line, to which the next would stick
        write_text(file, "".join(json.dumps(record) + "\n" for record in records))
    done, kept = {r["mutant"] for r in records}, sum(r["verdict"] == "kept" for r in records)
    by_function = collections.Counter(r["function"] for r in records if r["verdict"] == "kept")
    sound: dict[tuple[str, ...], set[str]] = {}
    begun = time.monotonic()
    left = [mutant for mutant in mutants if mutant.name not in done]
    log(f"{recipe.name}: {len(baseline.tests)} tests in {baseline.seconds:.1f} s, {len(baseline.flaky)} flaky; "
        f"{len(mutants)} mutants, {len(done)} tried before, {kept} kept")

    def attempt(mutant: Mutant) -> dict[str, Any]:
        at = time.monotonic()
        verdict, found = try_mutant(recipe, tree, mutant, baseline, sound, sandbox, config)
        record: dict[str, Any] = {"mutant": mutant.name, "function": f"{mutant.path}:{mutant.site.function}",
                                  "operator": mutant.operator, "verdict": verdict}
        if verdict == "kept":
            instance = make_instance(recipe, tree, mutant, found, home / "snapshot.tar.gz", config)
            record |= {"files": found["files"], "cpu_s": found["cpu_s"], "instance": record_of(instance, home)}
        else:
            record |= found
        return {**record, "seconds": round(time.monotonic() - at, 2)}

    workers = sandbox.config.workers
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, file.open("a", encoding="utf-8") as lines:
        at = 0
        while at < len(left) and (config.keep is None or kept < config.keep):
            batch = []
            while at < len(left) and len(batch) < workers:
                mutant, at = left[at], at + 1
                if by_function[f"{mutant.path}:{mutant.site.function}"] < config.per_function:
                    batch.append(mutant)
            for record in pool.map(attempt, batch):
                lines.write(json.dumps(record) + "\n")
                lines.flush()
                records.append(record)
                if record["verdict"] == "kept":
                    kept += 1
                    by_function[record["function"]] += 1
            spent = time.monotonic() - begun
            log(f"{recipe.name}: {at}/{len(left)} mutants, {kept} kept, {spent / at:.1f} s each, last "
                f"{records[-1]['verdict'] if records else '-'}")
    return _finish(recipe, home, records, baseline)


def _opened(recipe: Recipe, home: Path, downloads: str | Path | None) -> dict[str, bytes]:
    """The package's tree, from the snapshot if it is there."""
    snapshot = home / "snapshot.tar.gz"
    if not snapshot.exists():
        write_archive(snapshot, fetch(recipe, downloads))
    return read_tree(snapshot)


def _same_work(home: Path, recipe: Recipe, config: MineConfig) -> None:
    stated = json.loads(json.dumps({"recipe": dataclasses.asdict(recipe), "config": {
        name: value for name, value in dataclasses.asdict(config).items() if name not in ("most", "keep")}}))
    about = home / "recipe.json"
    if about.exists() and (before := read_json(about)) != stated:
        other = [f"{part}.{key}" for part in stated for key, value in stated[part].items()
                 if before.get(part, {}).get(key) != value]
        raise ConfigError(f"{about}: this directory was mined with other settings ({', '.join(other)}); use another "
                          "directory")
    write_json(about, stated)


def _baseline(recipe: Recipe, tree: dict[str, bytes], home: Path, sandbox: Sandbox,
              log: Callable[[str], None]) -> Baseline:
    """Measured, or what was measured before."""
    path = home / "baseline.json"
    if path.exists():
        record = read_json(path)
        if record["tree"] == tree_hash(tree):
            touching = {(name, line): tuple(files) for name, line, files in record["touching"]}
            return Baseline(tuple(record["tests"]), tuple(record["flaky"]), tuple(record["unguarded"]), touching,
                            record["seconds"], record["cpu_s"])
    log(f"{recipe.name}: runs its tests unmodified")
    found = measure_baseline(recipe, tree, sandbox)
    write_json(path, {"tree": tree_hash(tree), **dataclasses.asdict(dataclasses.replace(found, touching={})),
                      "touching": [[name, line, list(files)] for (name, line), files in found.touching.items()]})
    return found


def _ordered(recipe: Recipe, tree: dict[str, bytes], config: MineConfig) -> list[Mutant]:
    found = [mutant for path in code_files(recipe, tree) for mutant in find_mutants(path, tree[path])]
    if not found:
        raise ConfigError(f"recipe {recipe.package}: code={list(recipe.code)}: no module there can be changed")
    random.Random(config.seed).shuffle(found)
    return found[:config.most]


def _finish(recipe: Recipe, home: Path, records: Iterable[Mapping[str, Any]], baseline: Baseline) -> dict[str, Any]:
    from jaxllm.swe.instances import read_instance

    records = list(records)
    kept = [read_instance(r["instance"], f"{home / 'attempts.jsonl'}", home) for r in records if r["verdict"] == "kept"]
    write_instances(home / "instances.jsonl", kept)
    seconds, used = ([r.get(name, 0.0) for r in records] for name in ("seconds", "cpu_s"))
    summary = {
        "package": recipe.package, "tried": len(records), "kept": len(kept),
        "verdicts": dict(collections.Counter(r["verdict"] for r in records).most_common()),
        "splits": dict(collections.Counter(i.about["split"] for i in kept)),
        "operators": dict(collections.Counter(r["operator"] for r in records if r["verdict"] == "kept").most_common()),
        "tests": len(baseline.tests), "flaky": len(baseline.flaky), "unguarded": len(baseline.unguarded),
        "seconds_each": round(sum(seconds) / max(len(seconds), 1), 2),
        "cpu_s_each": round(sum(used) / max(len(used), 1), 2), "baseline_cpu_s": round(baseline.cpu_s, 2)}
    write_json(home / "summary.json", summary)
    return summary
