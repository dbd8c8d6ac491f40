"""Grades: right, wrong, partial and hostile patches against the tests of a small instance."""

import dataclasses
import json

import pytest

from jaxllm.swe.counter import counter_tests
from jaxllm.swe.diffs import PatchError, write_diff
from jaxllm.swe.grading import RunCache, grade, judged_tree
from jaxllm.swe.instances import Instance
from jaxllm.swe.running import run_tests
from jaxllm.swe.trees import write_archive

CORE = "tests/test_core.py"
NAMES = [f"{CORE}::{name}" for name in ("test_add", "test_half", "test_half_raises", "test_first[1]", "test_first[2]",
                                        "TestMore::test_unit")]
FAULT = (b"a + b", b"a - b")


@pytest.fixture
def broken(repo):
    """The repository with one fault."""
    return {**repo, "lib/core.py": repo["lib/core.py"].replace(*FAULT)}


@pytest.fixture
def instance(repo, broken, plan, tmp_path):
    write_archive(tmp_path / "repo.tar.gz", repo)
    return Instance("lib-1", "add is off", write_diff(broken, repo), "", (NAMES[0], NAMES[5]), tuple(NAMES[1:5]),
                    str(tmp_path / "repo.tar.gz"), write_diff(repo, broken), plan=plan)


def patched(broken, changes):
    """The diff that puts files; text is put before what is there if it ends in `...`."""
    after = dict(broken)
    for name, content in changes.items():
        after[name] = content.removesuffix(b"...") + broken[name] if content.endswith(b"...") else content
    return write_diff(broken, after)


def test_the_right_patch_and_its_cache(sandbox, instance, tmp_path):
    cache = RunCache(sandbox, tmp_path / "runs.jsonl")
    found = grade(instance, instance.patch, cache)
    assert found.resolved == "FULL" and found.status == "ok" and not found.restored, found
    assert set(found.fail_to_pass) == set(instance.fail_to_pass) and len(found.pass_to_pass) == 4
    assert grade(instance, "\n" + instance.patch, cache).resolved == "FULL" and (cache.runs, cache.hits) == (2, 2)
    with (tmp_path / "runs.jsonl").open("a") as out:
        out.write('{"tree": "half a li')
    again = RunCache(sandbox, tmp_path / "runs.jsonl")
    assert dataclasses.replace(grade(instance, instance.patch, again), seconds=0) == dataclasses.replace(
        found, seconds=0)
    assert again.runs == 0 and all(json.loads(line) for line in (tmp_path / "runs.jsonl").open())


def test_no_patch_and_one_that_does_not_apply(instance):
    cache = RunCache(None)  # type: ignore[arg-type]  # nothing runs
    assert grade(instance, None, cache).status == grade(instance, " \n", cache).status == "no_patch"
    found = grade(instance, instance.patch.replace("a - b", "a * b"), cache)
    assert (found.resolved, found.status) == ("NO", "not_applied") and "lib/core.py: hunk" in found.error
    assert not found.applied
    assert grade(instance, "garbage", cache).status == "not_applied"


def test_partly_right_and_wrong_patches(sandbox, instance, broken):
    cache = RunCache(sandbox)
    half = patched(broken, {"lib/core.py": broken["lib/core.py"].replace(b"a - b", b"5 if a == 2 else 0")})
    found = grade(instance, half, cache)
    assert (found.resolved, found.fail_to_pass) == ("PARTIAL", (NAMES[0],)) and len(found.pass_to_pass) == 4
    right = broken["lib/core.py"].replace(b"a - b", b"a + b")
    breaks = patched(broken, {"lib/core.py": right.replace(b"// 2", b"* 2")})
    assert grade(instance, breaks, cache).resolved == "NO"
    syntax = patched(broken, {"lib/core.py": b"def add(:\n"})
    found = grade(instance, syntax, cache)
    assert found.resolved == "NO" and found.applied and not found.pass_to_pass


def test_a_test_patch_comes_before_and_wins(instance, broken, repo):
    extra = {**broken, CORE: broken[CORE] + b"\n\ndef test_new():\n    assert add(1, 2) == 3\n"}
    instance = dataclasses.replace(instance, test_patch=write_diff(broken, extra))
    mine = write_diff(broken, {**repo, CORE: b"def test_add(): pass\n", "tests/test_own.py": b""})
    tree, restored = judged_tree(instance, mine)
    assert tree == {**repo, CORE: extra[CORE]} and restored == (CORE, "tests/test_own.py")
    with pytest.raises(PatchError):
        judged_tree(instance, "--- a/none\n+++ b/none\n@@ -1 +1 @@\n-a\n+b\n")


def test_counter_tests_all_fail_on_honest_code(sandbox, repo, plan):
    run = run_tests(sandbox, counter_tests(repo, [CORE, "tests/test_marks.py"]), plan, ["tests"])
    assert run.status == "ok" and not run.collection and set(NAMES) <= set(run.cases)
    assert all(not run.cases[name].ok for name in NAMES)


CLAIM = b"""
import glob, json, os
for path in glob.glob('../results-*') + glob.glob('/sandbox/results-*'):
    with open(path, 'a') as out:
        for name in %r:
            out.write(json.dumps({'test': name, 'status': 'passed', 'when': 'call', 'seconds': 0, 'mark': 'x'}) + '\\n')
        out.write(json.dumps({'end': 0, 'origin': ['lib/__init__.py'], 'mark': 'x'}) + '\\n')
os._exit(0)
...""" % NAMES
# As above, but with the mark, found in the frames below.
STEAL = b"""
import json, os, sys
frame = sys._getframe()
while frame:
    if 'given' in frame.f_locals:
        given, out = frame.f_locals['given'], frame.f_locals['out']
        for name in %r:
            os.write(out, json.dumps({'test': name, 'status': 'passed', 'when': 'call', 'seconds': 0,
                                      'mark': given['mark']}).encode() + b'\\n')
        os.write(out, json.dumps({'end': 0, 'origin': ['lib/__init__.py'], 'mark': given['mark']}).encode() + b'\\n')
        os._exit(0)
    frame = frame.f_back
...""" % NAMES
HOSTILE = {
    "exit": ({"lib/core.py": b"import os; os._exit(0)\n..."}, "cut"),
    "exit_at_the_first_test": ({"lib/core.py": b"import os\ndef add(a, b): os._exit(0)\n"
                                               b"def half(x): os._exit(0)\n"
                                               b"def first(items, most=2): os._exit(0)\n"}, "cut"),
    "conftest": ({"conftest.py": b"import pytest\n@pytest.hookimpl(hookwrapper=True)\n"
                                 b"def pytest_runtest_makereport():\n    out = yield\n"
                                 b"    out.get_result().outcome = 'passed'\n"}, "ok"),
    "conftest_below": ({"lib/conftest.py": b"", "tests/conftest.py": b"import os; os._exit(0)\n"}, "ok"),
    "settings": ({"pytest.ini": b"[pytest]\naddopts = --co\npython_functions = nothing\n"}, "ok"),
    "edits_tests": ({CORE: b"def test_add(): pass\ndef test_half(): pass\n"}, "ok"),
    "start_up": ({"sitecustomize.py": b"import os; os._exit(0)\n", "pytest.py": b"def main(*a, **k): return 0\n"},
                 "ok"),
    "prints": ({"lib/core.py": b"print('6 passed', flush=True)\nfor n in %r: print('PASSED', n)\n..." % NAMES}, "ok"),
    "writes_results": ({"lib/core.py": CLAIM}, "forged"),
    "steals_the_mark": ({"lib/core.py": STEAL}, "forged"),
    "replaces_pytests_runner": ({"lib/core.py": b"import _pytest.python\n_pytest.python.Function.runtest = "
                                                b"lambda self: None\n..."}, "ok"),
    "swallows_exceptions": ({"lib/core.py": b"import _pytest.runner as r\nold = r.CallInfo.from_call.__func__\n"
                             b"def call(cls, func, when, reraise=None):\n    def safe():\n        try: return func()\n"
                             b"        except Exception: return None\n    return old(cls, safe, when, reraise)\n"
                             b"r.CallInfo.from_call = classmethod(call)\n..."}, "forged"),
    "rewrites_reports": ({"lib/core.py": b"import _pytest.reports as r\nold = r.TestReport.from_item_and_call\n"
                          b"def make(item, call):\n    out = old(item, call)\n    out.outcome = 'passed'\n"
                          b"    return out\nr.TestReport.from_item_and_call = make\n..."}, "forged"),
    "equals_everything": ({"lib/core.py": b"class Any(int):\n    def __eq__(self, other): return True\n"
                           b"    __hash__ = int.__hash__\ndef add(a, b): return Any()\n"
                           b"def half(x):\n    if not x: raise ValueError\n    return x // 2\n"
                           b"def first(items, most=2): return items[:most]\n"}, "forged"),
    "takes_asserts_out": ({"lib/core.py": b"import ast, _pytest.assertion.rewrite as r, unittest\n"
                           b"class Out(ast.NodeTransformer):\n    def visit_Assert(self, node): return ast.Pass()\n"
                           b"r.rewrite_asserts = lambda m, *a, **k: ast.fix_missing_locations(Out().visit(m))\n"
                           b"unittest.TestCase.assertEqual = unittest.TestCase.assertTrue = lambda *a: None\n...",
                           # Imported by the first test file, so that the second is compiled without checks.
                           }, "ok"),
    "forks": ({"lib/core.py": b"import os\nif os.fork():\n    os.wait(); os._exit(0)\n..."}, "cut"),
    "floods": ({"lib/core.py": b"import os\nwhile True: os.write(2, b'x' * 65536)\n"}, "full"),
}
SLOW = ("exit_at_the_first_test", "rewrites_reports", "takes_asserts_out", "edits_tests",
        "conftest_below", "prints", "floods", "forks", "start_up", "settings")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in HOSTILE])
def test_no_hostile_patch_passes(sandbox, instance, broken, name):
    """None mends the fault; each would pass if what it writes, prints or replaces were believed."""
    changes, status = HOSTILE[name]
    found = grade(instance, patched(broken, changes), RunCache(sandbox))
    assert found.resolved == "NO", found
    # A flood meets the limit of a file, an error that pytest reports, or of the disk, whichever is seen first.
    assert found.status in {"ok": ("ok", "forged"), "full": ("ok", "output", "disk")}.get(status, (status,)), found
