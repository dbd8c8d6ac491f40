"""Mines instances: mutants of a package that its tests find out, told of by what failed.

The rule (SWE-smith's procedural faults; Kimi-Dev's rule for environments): at least one test fails that passed, at
least one passes, at most a fifth of all tests fail, no error of collection, and taking the fault back mends it. Runs
are made twice and must agree; tests that do not, and those whose checks hold nothing, are listed and left out.

Which test files a mutant meets: the package's tests are traced once, and say which functions each executes. A fault in
a function's body can show in no test that does not execute it, so that only files with such a test are run, whole; with
`files` only so many of them, where the share of tests that fail is a lower bound.
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
from jaxllm.swe.hiding import hide_tests
from jaxllm.swe.instances import Instance, record_of, write_instances
from jaxllm.swe.issues import issue_text
from jaxllm.swe.mutation import Mutant, find_mutants, inverse, same_program
from jaxllm.swe.recipes import Recipe, code_files, fetch, test_files
from jaxllm.swe.running import Job, TestRun, run_many, run_tests
from jaxllm.swe.trees import read_tree, tree_hash, write_archive

CALLERS = 12  # tests that are noted of a function
BATCH = 16  # mutants whose runs share an interpreter


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
      test_s: a mutant is left out if a test of it takes longer, in seconds.
      files: test files that a mutant is run with, those whose tests are most about its function first; None for all
        that execute it.
    """

    seed: int = 0
    most: int | None = None
    keep: int | None = None
    failing: float = 0.2
    held_out: float = 0.2
    held_out_packages: tuple[str, ...] = ()
    per_function: int = 20
    test_s: float = 4.0
    files: int | None = None

    def __post_init__(self) -> None:
        for name in ("most", "keep", "files"):
            check(getattr(self, name) is None or getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 < self.failing < 1, "failing", self.failing, "must lie between 0 and 1")
        check(0 <= self.held_out <= 1, "held_out", self.held_out, "must lie in [0, 1]")
        check(self.per_function >= 1, "per_function", self.per_function, "must be at least 1")
        check(self.test_s > 0, "test_s", self.test_s, "must be positive")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """A package's own tests.

    Attributes:
      tests: those that passed every time and whose checks hold something.
      flaky: that did not agree with themselves.
      unguarded: that passed although their checks could not hold.
      touching: by function, as (path, first line), the test files that execute it.
      callers: by function, tests that execute it, at most `CALLERS`.
      seconds, cpu_s: wall and CPU time of a whole run without tracing.
    """

    tests: tuple[str, ...]
    flaky: tuple[str, ...]
    unguarded: tuple[str, ...]
    touching: Mapping[tuple[str, int], tuple[str, ...]]
    callers: Mapping[tuple[str, int], tuple[str, ...]]
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
                    _callers(traced, good), runs[1].seconds, runs[1].cpu_s)


def _touching(run: TestRun, files: Sequence[str]) -> dict[tuple[str, int], tuple[str, ...]]:
    """Test files by the functions that their tests execute; those of collection by all files."""
    found: dict[tuple[str, int], set[str]] = collections.defaultdict(set)
    for test, functions in run.touched.items():
        for function in functions:
            found[function] |= set(files) if not test else {test.partition("::")[0]}
    return {function: tuple(sorted(names)) for function, names in found.items()}


def _callers(run: TestRun, tests: set[str]) -> dict[tuple[str, int], tuple[str, ...]]:
    """Tests by the functions that they execute; those that execute few functions first."""
    found: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for test in sorted(tests & set(run.touched), key=lambda test: (len(run.touched[test]), test)):
        for function in run.touched[test]:
            if len(found[function]) < CALLERS:
                found[function].append(test)
    return {function: tuple(names) for function, names in found.items()}


def try_mutants(recipe: Recipe, tree: dict[str, bytes], mutants: Sequence[Mutant], baseline: Baseline,
                sound: dict[str, set[str]], sandbox: Sandbox, config: MineConfig,
                ) -> list[tuple[str, dict[str, Any]]]:
    """Each mutant's verdict and, where it is `kept`, what an instance needs.

    `same`: the same program, or none; `untested`: no test executes its function; `survived`: nothing fails;
    `too_many` tests fail; `nothing_passes`; `collection`: an error there; `flaky`: two runs differ; `unsound`: its
    reversal does not pass; `timeout`: a test took longer than `config.test_s`; or how else its run ended.

    Args:
      recipe: how tests run.
      tree: the package unmodified.
      mutants: to try; their runs share an interpreter.
      baseline: the package's tests.
      sound: by test file, the tests that pass twice unmodified when it is run by itself; filled here.
      sandbox: where.
      config: the rule.
    """
    plan = dataclasses.replace(recipe.plan, test_s=min(config.test_s, recipe.test_s))
    out: dict[int, tuple[str, dict[str, Any]]] = {}
    jobs: dict[int, Job] = {}
    wanted: dict[int, list[str]] = {}
    for i, mutant in enumerate(mutants):
        program, original = same_program(mutant.source), same_program(tree[mutant.path])
        files = _files(baseline, (mutant.path, mutant.site.code_line), config.files)
        wanted[i] = [test for test in baseline.tests if test.partition("::")[0] in files]
        if program is None or program == original:
            out[i] = "same", {}
        elif not wanted[i]:
            out[i] = "untested", {}
        else:
            jobs[i] = Job({**tree, mutant.path: mutant.source}, files)
    first = dict(zip(jobs, run_many(sandbox, list(jobs.values()), plan, details=False, stop_slow=True), strict=True))
    for i, run in first.items():
        about: dict[str, Any] = {"files": len(jobs[i].files), "cpu_s": run.cpu_s}
        good = run.passed(wanted[i])
        failed = len(wanted[i]) - len(good)
        if run.status != "ok" or run.collection:
            out[i] = "collection" if run.status == "ok" else run.status, about
        elif not failed:
            out[i] = "survived", about
        elif failed > config.failing * len(baseline.tests):
            out[i] = "too_many", {**about, "failed": failed}
        elif not good:
            out[i] = "nothing_passes", {**about, "failed": failed}
    left = {i: jobs[i] for i in jobs if i not in out}
    again = dict(zip(left, run_many(sandbox, list(left.values()), plan, stop_slow=True), strict=True))
    # The reversal is the package byte for byte, which passed as a whole: two runs of a file serve all its mutants.
    new = list({name: 0 for i in left for name in jobs[i].files if name not in sound})
    runs = run_many(sandbox, [Job(tree, (name,)) for name in new for _ in range(2)], plan, details=False)
    for name, one, two in zip(new, runs[::2], runs[1::2], strict=True):
        sound[name] = set(one.passed()) & set(two.passed())
    for i, run in again.items():
        about = {"files": len(jobs[i].files), "cpu_s": first[i].cpu_s + run.cpu_s}
        good = set(first[i].passed(wanted[i]))
        unsteady = sorted(good ^ set(run.passed(wanted[i])))
        if run.status != "ok" or unsteady:
            out[i] = "flaky", {**about, "flaky": unsteady[:20]}
        elif missing := set(wanted[i]) - set().union(*(sound[name] for name in jobs[i].files)):
            out[i] = "unsound", {**about, "missing": sorted(missing)[:20]}
        else:
            failed = [test for test in wanted[i] if test not in good]
            cases = {test: run.cases[test] for test in failed if test in run.cases}
            out[i] = "kept", {**about, "fail": failed, "pass": sorted(good), "cases": cases}
    return [out[i] for i in range(len(mutants))]


def _files(baseline: Baseline, function: tuple[str, int], most: int | None) -> tuple[str, ...]:
    """Test files for a function's mutants."""
    files = baseline.touching.get(function, ())
    near = [test.partition("::")[0] for test in baseline.callers.get(function, ())]
    order = dict.fromkeys([*(name for name in near if name in files), *files])
    return tuple(sorted(list(order)[:most]))


def make_instance(recipe: Recipe, tree: dict[str, bytes], mutant: Mutant, found: Mapping[str, Any], snapshot: Path,
                  config: MineConfig) -> Instance:
    """An instance of a mutant that was kept; its failing tests are not in its tree but in its test patch."""
    broken = {**tree, mutant.path: mutant.source}
    given = hide_tests(broken, found["fail"])
    name = hashlib.sha256(mutant.name.encode()).hexdigest()[:10]
    label = inverse(mutant.source, tree[mutant.path])
    about: dict[str, Any] = {
        "package": recipe.package, "version": recipe.version, "path": mutant.path, "function": mutant.site.function,
        "line": mutant.site.line, "operator": mutant.operator,
        "split": split_of(recipe.package, mutant.path, mutant.site.function, config)}
    if label is not None:
        about["mended_by"] = {"start": label[0].start, "end": label[0].end, "operator": label[1]}
    return Instance(f"{recipe.package}-{name}", issue_text(recipe.package, found["fail"], found["cases"]),
                    write_diff(broken, tree), write_diff(given, broken), tuple(found["fail"]), tuple(found["pass"]),
                    str(snapshot), write_diff(tree, given), recipe.package, recipe.plan, about)


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
    sound: dict[str, set[str]] = {}
    begun = time.monotonic()
    left = [mutant for mutant in mutants if mutant.name not in done]
    log(f"{recipe.name}: {len(baseline.tests)} tests in {baseline.seconds:.1f} s, {len(baseline.flaky)} flaky; "
        f"{len(mutants)} mutants, {len(done)} tried before, {kept} kept")

    def attempt(some: list[Mutant]) -> list[dict[str, Any]]:
        at = time.monotonic()
        found = try_mutants(recipe, tree, some, baseline, sound, sandbox, config)
        seconds = round((time.monotonic() - at) / len(some), 2)
        return [_record(recipe, tree, mutant, verdict, about, home, config) | {"seconds": seconds}
                for mutant, (verdict, about) in zip(some, found, strict=True)]

    workers = sandbox.config.workers
    with concurrent.futures.ThreadPoolExecutor(workers) as pool, file.open("a", encoding="utf-8") as lines:
        at = 0
        while at < len(left) and (config.keep is None or kept < config.keep):
            batch: list[Mutant] = []
            taken = collections.Counter(by_function)
            while at < len(left) and len(batch) < workers * BATCH:
                mutant, at = left[at], at + 1
                name = f"{mutant.path}:{mutant.site.function}"
                if taken[name] < config.per_function:
                    batch.append(mutant)
                    taken[name] += 1
            for record in (r for some in pool.map(attempt, [batch[i::workers] for i in range(workers) if batch[i:]])
                           for r in some):
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


def _record(recipe: Recipe, tree: dict[str, bytes], mutant: Mutant, verdict: str, found: Mapping[str, Any], home: Path,
            config: MineConfig) -> dict[str, Any]:
    """A line of `attempts.jsonl`."""
    record: dict[str, Any] = {"mutant": mutant.name, "function": f"{mutant.path}:{mutant.site.function}",
                              "operator": mutant.operator, "verdict": verdict}
    if verdict != "kept":
        return {**record, **found}
    instance = make_instance(recipe, tree, mutant, found, home / "snapshot.tar.gz", config)
    return {**record, "files": found["files"], "cpu_s": found["cpu_s"], "instance": record_of(instance, home)}


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
            touching, callers = ({(name, line): tuple(found) for name, line, found in record[key]}
                                 for key in ("touching", "callers"))
            return Baseline(tuple(record["tests"]), tuple(record["flaky"]), tuple(record["unguarded"]), touching,
                            callers, record["seconds"], record["cpu_s"])
    log(f"{recipe.name}: runs its tests unmodified")
    found = measure_baseline(recipe, tree, sandbox)
    write_json(path, {"tree": tree_hash(tree),
                      **dataclasses.asdict(dataclasses.replace(found, touching={}, callers={})),
                      **{key: [[name, line, list(tests)] for (name, line), tests in getattr(found, key).items()]
                         for key in ("touching", "callers")}})
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
