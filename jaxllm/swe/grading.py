"""Grades a patch by an instance's tests, in SWE-bench's order of steps.

Fresh tree, test patch, model patch, then tests and pytest's settings put back, then the tests, in the sandbox. A test
that is absent failed. `FULL`: all FAIL_TO_PASS and all PASS_TO_PASS pass; `PARTIAL`: some FAIL_TO_PASS do, and all
PASS_TO_PASS; else `NO`.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxllm.config import ConfigError
from jaxllm.sandbox import Sandbox
from jaxllm.swe.counter import counter_tests
from jaxllm.swe.diffs import PatchError, apply_diff
from jaxllm.swe.instances import Instance
from jaxllm.swe.running import Case, Job, TestPlan, TestRun, run_many, run_tests
from jaxllm.swe.trees import Tree, restore_tests, tree_hash

Resolved = Literal["FULL", "PARTIAL", "NO"]


@dataclasses.dataclass(frozen=True)
class Grade:
    """What a patch is worth.

    Attributes:
      resolved: see the module.
      status: `ok`: the tests were run; `no_patch`: there was none; `not_applied`: it does not fit, `error` says why;
        `forged`: tests pass that cannot; or why the run did not end (`cut`, `timeout`, ...), when nothing passed.
      fail_to_pass, pass_to_pass: those that passed.
      restored: paths of the patch that were put back.
      error: of a patch that does not fit.
      seconds: wall time of the runs.
    """

    resolved: Resolved
    status: str
    fail_to_pass: tuple[str, ...] = ()
    pass_to_pass: tuple[str, ...] = ()
    restored: tuple[str, ...] = ()
    error: str = ""
    seconds: float = 0.0

    @property
    def applied(self) -> bool:
        """Whether there was a patch that fits."""
        return self.status not in ("no_patch", "not_applied")


class RunCache:
    """Runs by what was run: (hash of the tree's changed files, tests), so that equal patches run once.

    With a file, runs are appended to it as JSONL and read from it at the start; a last line that a kill cut short is
    passed over. Traced runs are not kept. It may be used from several threads.
    """

    def __init__(self, sandbox: Sandbox, path: str | Path | None = None) -> None:
        self.sandbox, self.path = sandbox, None if path is None else Path(path)
        self.hits = self.runs = 0
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], TestRun] = {}
        if self.path is not None and self.path.exists():
            self._read(self.path)

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        whole = content[:content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                record = json.loads(line)
                cases = {name: Case(status, message) for name, (status, message) in record["cases"].items()}
                self._runs[record["tree"], record["tests"]] = TestRun(
                    record["status"], cases, record["collection"], tuple(record["origin"]), seconds=record["seconds"])
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{path}:{number}: no run; this file holds {{tree, tests, status, cases, ...}} a "
                                  "line") from None
        if whole != content:  # a kill left half a line, to which the next would stick
            path.write_bytes(whole)

    def run(self, tree: Tree, plan: TestPlan, files: Sequence[str], only: Sequence[str] | None = None,
            details: bool = True) -> TestRun:
        """`run_tests`, or what it gave before, whatever `details` were."""
        key = self._key(tree, plan, files, only)
        with self._lock:
            if key in self._runs:
                self.hits += 1
                return self._runs[key]
        run = run_tests(self.sandbox, tree, plan, files, only=only, details=details)
        with self._lock:
            self.runs += 1
            self._runs[key] = run
            self._append(key, run)
        return run

    def fill(self, jobs: Sequence[Job], plan: TestPlan, together: int = 32) -> None:
        """Run what is not there yet, as `run_many` does, for `run` to find; for trees that mean no harm."""
        new: dict[tuple[str, str], Job] = {}
        for job in jobs:
            key = self._key(job.tree, plan, job.files, job.only)
            if key not in self._runs:
                new[key] = job
        keys = list(new)
        for at in range(0, len(keys), together):
            some = keys[at:at + together]
            runs = run_many(self.sandbox, [new[key] for key in some], plan, details=False)
            with self._lock:
                for key, run in zip(some, runs, strict=True):
                    self.runs += 1
                    self._runs[key] = run
                    self._append(key, run)

    @staticmethod
    def _key(tree: Tree, plan: TestPlan, files: Sequence[str], only: Sequence[str] | None) -> tuple[str, str]:
        return tree_hash(tree), json.dumps([dataclasses.asdict(plan), sorted(files),
                                            None if only is None else sorted(only)])

    def _append(self, key: tuple[str, str], run: TestRun) -> None:
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            record: dict[str, Any] = {
                "tree": key[0], "tests": key[1], "status": run.status, "collection": dict(run.collection),
                "origin": list(run.origin), "seconds": round(run.seconds, 3),
                "cases": {name: [case.status, case.message] for name, case in run.cases.items()}}
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(record) + "\n")


def judged_tree(instance: Instance, patch: str | None) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """The tree whose tests judge a patch, and the paths of the patch that were put back; None for no patch.

    Raises:
      PatchError: the patch does not fit.
      ConfigError: the instance's own patches do not.
    """
    tree = instance.tree()
    if instance.test_patch:
        try:
            tree = apply_diff(tree, instance.test_patch)
        except PatchError as error:
            raise ConfigError(f"instance {instance.instance_id!r}: test_patch: {error}") from None
    if not patch:
        return tree, ()
    # A patch was made for the tree without the test patch, and what it does to test files counts for nothing.
    try:
        patched = apply_diff(tree, patch)
    except PatchError:
        patched = {**apply_diff(instance.tree(), patch)}
        for name in {*tree, *patched}:
            if name in tree and tree[name] != instance.tree().get(name):
                patched[name] = tree[name]
    tree, restored = restore_tests(patched, tree)
    return tree, tuple(restored)


def grade(instance: Instance, patch: str | None, cache: RunCache, *, guard: bool = True) -> Grade:
    """Grade a patch by an instance's tests.

    Args:
      instance: with its tests.
      patch: a unified diff; None or white space for none.
      cache: where runs happen.
      guard: run what passes once more with tests that cannot pass, and take nothing for passed where one does.

    Raises:
      ConfigError: the instance itself is at fault.
      SandboxDead: the sandbox failed, so that nothing is known of the patch.
    """
    if patch is None or not patch.strip():
        return Grade("NO", "no_patch")
    try:
        tree, restored = judged_tree(instance, patch)
    except PatchError as error:
        return Grade("NO", "not_applied", error=str(error))
    wanted = [*instance.fail_to_pass, *instance.pass_to_pass]
    run = cache.run(tree, instance.plan, instance.test_files(), wanted)
    if run.status != "ok":
        return Grade("NO", run.status, restored=restored, seconds=run.seconds)
    fail, good = run.passed(instance.fail_to_pass), run.passed(instance.pass_to_pass)
    resolved, seconds = resolution(instance, fail, good), run.seconds
    if guard and resolved != "NO":
        forged, more = forges(tree, instance.plan, [*fail, *good], cache)
        seconds += more
        if forged:
            return Grade("NO", "forged", restored=restored, seconds=seconds, error=f"passes and cannot: {forged[0]}")
    return Grade(resolved, "ok", tuple(fail), tuple(good), restored, seconds=seconds)


def resolution(instance: Instance, fail: Sequence[str], good: Sequence[str]) -> Resolved:
    """SWE-bench's word for what passed."""
    if len(good) < len(instance.pass_to_pass) or not fail:
        return "NO"
    return "FULL" if len(fail) == len(instance.fail_to_pass) else "PARTIAL"


def forges(tree: Tree, plan: TestPlan, tests: Sequence[str], cache: RunCache) -> tuple[list[str], float]:
    """Those of `tests`, all of which passed, that do not fail where their checks cannot hold, and the wall time of it.

    A run of counter-tests that does not go to its end vouches for none of them.
    """
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    run = cache.run(counter_tests(tree, files), plan, files, tests, details=False)
    return held_checks(run, tests), run.seconds


def held_checks(run: TestRun, tests: Sequence[str]) -> list[str]:
    """Those of `tests`, all of which passed, that did not fail in a run of their counter-tests."""
    # An expected failure fails either way; what was skipped or is absent here would have been so before.
    failed = {name for name, case in run.cases.items() if case.status in ("failed", "error", "xfailed")}
    return [name for name in tests if run.status != "ok" or name not in failed]
