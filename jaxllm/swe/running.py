"""Tests of a tree, run in the sandbox: one status a test, which the tested code cannot write for itself.

What stands between a program and a false pass: its records go to a file outside the tree whose name and mark are drawn
for the run and told on standard input; a run without its last record, or with a record of another mark, passes
nothing; a test that reports twice does not pass. A program that takes over the interpreter it shares with pytest can
still forge a run: `jaxllm.swe.counter` has the check against that.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxllm.config import check
from jaxllm.sandbox import Limits, Result, Sandbox, SandboxConfig, SandboxDead
from jaxllm.swe.trees import Tree

DRIVER = Path(__file__).with_name("driver.py")
ROOT = "repo"  # of the tree, in the run's directory
CaseStatus = Literal["passed", "failed", "error", "skipped", "xfailed", "xpassed", "twice"]
GOOD = ("passed", "xfailed")
"""Statuses that count as passed; an expected failure does (SWE-bench), a test that passes against its mark does not."""
ENDED, STOPPED, USAGE = (0, 1, 5), (2,), (3, 4)  # pytest's exit codes


@dataclasses.dataclass(frozen=True)
class TestPlan:
    """How a repository's tests are run.

    Attributes:
      source: directories that its modules are imported from, relative to the tree, first ones first.
      modules: names of modules that must come from the tree and not from an installed copy.
      arguments: further words for pytest.
      test_s: wall time of one test; a longer one fails.
      wall_s: of a whole run.
      memory_mb: resident memory of a run.
    """

    __test__ = False  # for pytest, which would take it for a test

    source: tuple[str, ...] = (".",)
    modules: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    test_s: float = 10.0
    wall_s: float = 120.0
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        check(len(self.source) > 0, "plan.source", self.source, "needs a directory, '.' for the tree's own")
        for path in self.source:
            check(not path.startswith("/") and ".." not in path.split("/"), "plan.source", path,
                  "must lie within the tree")
        for name in ("test_s", "wall_s", "memory_mb"):
            check(getattr(self, name) > 0, f"plan.{name}", getattr(self, name), "must be positive")


@dataclasses.dataclass(frozen=True)
class Case:
    """One test's outcome.

    Attributes:
      status: `twice` for a test that was reported more than once for the same phase.
      message: of the error that ended it, without addresses.
      statement: of the test, where the error came from.
      frames: (path, line from 1, function) of the tree that the error went through, outermost first.
      seconds: wall time.
    """

    status: CaseStatus
    message: str = ""
    statement: str = ""
    frames: tuple[tuple[str, int, str], ...] = ()
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it counts as passed."""
        return self.status in GOOD


@dataclasses.dataclass(frozen=True)
class TestRun:
    """What came of a run.

    Attributes:
      status: `ok`: it went to its end, whatever failed; `cut`: it ended before (by the tested code, or a crash), so
        that nothing passes; `not_run`: pytest could not work, `said` may tell why; `forged`: records that it did not
        write; or the limit met (`timeout`, `memory`, `processes`, `disk`, `output`).
      cases: by test id; of a run that is not `ok` only to look at.
      collection: errors by file that could not be read for tests.
      origin: where the plan's modules came from, relative to the tree; None from elsewhere.
      touched: by test id, functions that it executed, as (path, first line); `""` for those of collection.
      seconds, cpu_s: wall and CPU time.
      said: last part of what it wrote.
    """

    __test__ = False

    status: str
    cases: Mapping[str, Case] = dataclasses.field(default_factory=dict)
    collection: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: tuple[str | None, ...] = ()
    touched: Mapping[str, frozenset[tuple[str, int]]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    cpu_s: float = 0.0
    said: str = ""

    def passed(self, tests: Iterable[str] | None = None) -> list[str]:
        """Those of `tests`, or of all, that passed; one that is absent did not."""
        if self.status != "ok":
            return []
        names = self.cases if tests is None else tests
        return [name for name in names if name in self.cases and self.cases[name].ok]

    def failed(self) -> list[str]:
        """Tests that ran and failed; those that were skipped, or passed against their mark, did neither."""
        return [name for name, case in self.cases.items() if case.status in ("failed", "error", "twice")]


def sandbox_for_tests(workers: int = 1, **settings: Any) -> Sandbox:
    """A sandbox in which tests can run: it can import pytest."""
    return Sandbox(SandboxConfig(workers=workers, packages=True, **settings))


@dataclasses.dataclass(frozen=True)
class Job:
    """A run among several: a tree, test files, and ids of the tests to run (all by default)."""

    tree: Tree
    files: tuple[str, ...]
    only: tuple[str, ...] | None = None


def run_tests(sandbox: Sandbox, tree: Tree, plan: TestPlan, files: Sequence[str], *, only: Iterable[str] | None = None,
              trace: bool = False, details: bool = True) -> TestRun:
    """Run test files of a tree, in a copy of it that is gone afterwards.

    Args:
      sandbox: with `packages`, so that pytest is there.
      tree: to run, tests among it.
      plan: how.
      files: test files or directories; those that the tree lacks are left out.
      only: ids of the tests to run; all of the files by default.
      trace: also say which functions each test executed; about three times slower.
      details: say of tests that fail how; most of the time of a run in which many do goes there.

    Raises:
      SandboxDead: the sandbox failed, so that nothing is known.
    """
    there = _there(tree, files)
    if not there:
        return TestRun("ok")
    mine = _names(there, only)
    given = {**_given(plan, trace, details), **mine, "runs": []}
    result = _send(sandbox, plan, given, tree, [mine["results"]], 1)
    return _read(result, result.files.get(mine["results"]), mine["mark"])


def run_many(sandbox: Sandbox, jobs: Sequence[Job], plan: TestPlan, *, details: bool = True,
             stop_slow: bool = False) -> list[TestRun]:
    """Runs of trees that differ in a few files, in one sandbox and one interpreter that is forked for each.

    Several times cheaper than `run_tests` for short tests, and for code that means no harm: runs come after each other
    in one directory, and a hostile one could reach those that follow. Patches that anybody may have written are graded
    one by one.

    Args:
      sandbox: as for `run_tests`.
      jobs: what to run; the first tree is sent, of the others only what differs from it.
      plan: how; its `wall_s` is for each run.
      details: as for `run_tests`.
      stop_slow: a run ends at the first test that takes longer than `plan.test_s`, with the status `timeout`.

    Raises:
      SandboxDead: the sandbox failed, so that nothing is known.
    """
    out = {i: TestRun("ok") for i, job in enumerate(jobs) if not _there(job.tree, job.files)}
    left = [i for i in range(len(jobs)) if i not in out]
    if not left:
        return [out[i] for i in range(len(jobs))]
    base = jobs[left[0]].tree
    runs = []
    for i in left:
        changed = sorted(name for name in {*base, *jobs[i].tree} if base.get(name) != jobs[i].tree.get(name))
        runs.append({**_names(_there(jobs[i].tree, jobs[i].files), jobs[i].only),
                     "changes": {name: _text(jobs[i].tree.get(name)) for name in changed},
                     "back": {name: _text(base.get(name)) for name in changed}})
    report, mark = f"report-{secrets.token_hex(8)}", secrets.token_hex(16)
    given = {**_given(plan, False, details), "stop_slow": stop_slow, "runs": runs, "report": report,
             "report_mark": mark, "wall_s": plan.wall_s}
    result = _send(sandbox, plan, given, base, [report, *(run["results"] for run in runs)], len(runs))
    ended: dict[int, str] = {}
    for line in (result.files.get(report) or b"").splitlines():
        try:
            record = json.loads(line)
            ended |= {record["run"]: record["ended"]} if record["mark"] == mark else {}
        except (ValueError, KeyError, TypeError):
            break
    for number, (i, run) in enumerate(zip(left, runs, strict=True)):
        status = ended.get(number, "failed" if result.status == "ok" else result.status)
        mine = dataclasses.replace(result, status=status)  # type: ignore[arg-type]
        out[i] = _read(mine, result.files.get(run["results"]), run["mark"])
    return [out[i] for i in range(len(jobs))]


def _there(tree: Tree, files: Sequence[str]) -> list[str]:
    return [name for name in files if name in tree or any(path.startswith(f"{name}/") for path in tree)
            or name == "."]


def _text(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _names(files: Sequence[str], only: Iterable[str] | None) -> dict[str, Any]:
    """What one run is told, with a file and a mark of its own."""
    return {"results": f"results-{secrets.token_hex(8)}", "mark": secrets.token_hex(16), "files": list(files),
            "only": None if only is None else sorted(only)}


def _given(plan: TestPlan, trace: bool, details: bool) -> dict[str, Any]:
    return {"root": ROOT, "source": plan.source, "modules": plan.modules, "arguments": plan.arguments,
            "test_s": plan.test_s, "trace": trace, "details": details, "stop_slow": False}


def _send(sandbox: Sandbox, plan: TestPlan, given: Mapping[str, Any], tree: Tree, wanted: Sequence[str],
          runs: int) -> Result:
    size, wall = sum(map(len, tree.values())), plan.wall_s * runs + 20.0 * (runs > 1)
    limits = Limits(wall_s=wall, cpu_s=wall, memory_mb=plan.memory_mb, address_mb=0, open_files=256,
                    disk_mb=64 + 2 * (size >> 20) + runs, files=1000 + 3 * len(tree) + runs, file_mb=64, output_kb=16)
    result = sandbox.run(DRIVER.read_text(), stdin=json.dumps(given), limits=limits, wanted=wanted,
                         files={f"{ROOT}/{path}": content for path, content in tree.items()})
    if result.status == "sandbox_dead":
        raise SandboxDead(f"the sandbox failed: {result.error}")
    return result


def _read(result: Result, content: bytes | None, mark: str) -> TestRun:
    """Records into a run."""
    cases: dict[str, Case] = {}
    collection: dict[str, str] = {}
    touched: dict[str, frozenset[tuple[str, int]]] = {}
    phases: set[tuple[str, str]] = set()
    begun, end, forged, slow, count = False, None, False, False, 0
    for line in (content or b"").splitlines():
        try:
            record = json.loads(line)
            if record["mark"] != mark or end is not None:  # nothing comes after the end
                raise ValueError
            if "test" in record:
                _add(cases, phases, record)
            elif "collection" in record:
                collection[record["collection"]] = record["message"]
            elif "touched" in record:
                touched[record["touched"]] = frozenset((path, at) for path, at in record["functions"])
            elif "begun" in record:
                begun = True
            elif "slow" in record:
                slow = True
            elif "collected" in record:
                count += 1
            else:
                end = record
        except (ValueError, KeyError, TypeError, RecursionError):
            forged = True
            break
    if forged or count > 1:
        status = "forged"
    elif slow or result.status not in ("ok", "failed", "killed"):
        status = "timeout" if slow else result.status
    elif end is None or result.status != "ok":
        status = "cut" if begun else "not_run"
    else:
        status = "ok" if end["end"] in ENDED or collection and end["end"] in STOPPED else "not_run"
    return TestRun(status, cases, collection, tuple(end["origin"]) if end else (), touched, result.seconds,
                   end["cpu_s"] if end and "cpu_s" in end else result.cpu_s, (result.stdout + result.stderr)[-2000:])


def _add(cases: dict[str, Case], phases: set[tuple[str, str]], record: Mapping[str, Any]) -> None:
    """One record; of several phases of a test the first that is not `passed` counts."""
    name, status = record["test"], record["status"]
    frames = tuple((path, at, function) for path, at, function in record.get("frames", ()))
    case = Case(status, record.get("message", ""), record.get("statement", ""), frames, record["seconds"])
    if (name, record["when"]) in phases:
        case = Case("twice")
    elif name in cases and not (cases[name].ok and status in ("failed", "error")):
        case = dataclasses.replace(cases[name], seconds=case.seconds)
    phases.add((name, record["when"]))
    cases[name] = case
