"""Tests of a small repository in the sandbox: statuses, limits, what is traced."""

import dataclasses

import pytest

from jaxllm.config import ConfigError
from jaxllm.swe.running import Job, TestPlan, run_many, run_tests

CORE = "tests/test_core.py"


def test_statuses(sandbox, repo, plan):
    """pytest's options of the tree do not matter; an expected failure counts as passed, what is skipped does not."""
    run = run_tests(sandbox, repo, plan, [CORE, "tests/test_marks.py", "tests/missing.py"])
    assert run.status == "ok" and not run.collection, run.said
    assert {name.partition("::")[2]: case.status for name, case in run.cases.items()} == {
        "test_add": "passed", "test_half": "passed", "test_half_raises": "passed", "test_first[1]": "passed",
        "test_first[2]": "passed", "TestMore::test_unit": "passed", "test_expected": "xfailed",
        "test_skipped": "skipped"}
    assert run.origin == ("lib/__init__.py",)
    assert len(run.passed()) == 7 and not run.failed()
    assert run.passed(["tests/test_core.py::absent", f"{CORE}::test_add"]) == [f"{CORE}::test_add"]


def test_what_failed_and_how(sandbox, repo, plan):
    repo["lib/core.py"] = repo["lib/core.py"].replace(b"a + b", b"a - b").replace(b"x // 2", b"x.no")
    run = run_tests(sandbox, repo, plan, [CORE], only=[f"{CORE}::test_add", f"{CORE}::test_half"])
    assert list(run.cases) == [f"{CORE}::test_add", f"{CORE}::test_half"] == run.failed()
    add, half = run.cases.values()
    assert add.status == "failed" and add.message.startswith("AssertionError: assert -1 == 5")
    assert add.statement == "assert add(2, 3) == 5" and add.frames == ((CORE, 7, "test_add"),)
    assert half.message == "AttributeError: 'int' object has no attribute 'no'"
    assert half.frames == ((CORE, 11, "test_half"), ("lib/core.py", 8, "half"))


def test_fixtures_and_collection(sandbox, repo, plan):
    repo["tests/test_bad.py"] = b"import nothing_of_this_name\n"
    repo["tests/test_fixture.py"] = (b"import pytest\n@pytest.fixture\ndef up():\n    1 / 0\n@pytest.fixture\n"
                                     b"def down():\n    yield\n    1 / 0\ndef test_up(up): pass\n"
                                     b"def test_down(down): pass\n"
                                     b"@pytest.mark.xfail\ndef test_odd(): pass\n")
    run = run_tests(sandbox, repo, plan, ["tests"])
    assert run.status == "ok" and list(run.collection) == ["tests/test_bad.py"]
    assert "nothing_of_this_name" in run.collection["tests/test_bad.py"]
    found = {name.partition("::")[2]: case.status for name, case in run.cases.items() if "fixture" in name}
    assert found == {"test_up": "error", "test_down": "error", "test_odd": "xpassed"}
    assert not run.passed(name for name in run.cases if "fixture" in name)


def test_time_limits(sandbox, repo, plan):
    repo["tests/test_slow.py"] = (b"import time\ndef test_caught():\n    try:\n        time.sleep(9)\n"
                                  b"    except Exception:\n        pass\ndef test_after(): pass\n")
    run = run_tests(sandbox, repo, dataclasses.replace(plan, test_s=0.3), ["tests/test_slow.py"])
    assert [case.status for case in run.cases.values()] == ["failed", "passed"]
    assert "ran longer than 0.3 s" in run.cases["tests/test_slow.py::test_caught"].message
    repo["lib/core.py"] = b"import signal, time\nsignal.setitimer = print\ntime.sleep(99)\n" + repo["lib/core.py"]
    run = run_tests(sandbox, repo, dataclasses.replace(plan, wall_s=1.5), [CORE])
    assert run.status == "timeout" and not run.passed()


def test_same_surroundings_every_time(sandbox, repo, plan):
    repo["tests/test_env.py"] = (b"import os, time\nfrom os import environ as e\ndef test():\n"
                                 b"    assert e['TZ'] == 'UTC' and time.timezone == 0\n"
                                 b"    assert e['PYTHONHASHSEED'] == '0' and e['LC_ALL'] == 'C.UTF-8'\n"
                                 b"    assert hash('a') == " + b"%d\n    assert os.read(0, 9) == b''\n")
    seen = {}
    for text in (b"0", b"1"):
        tree = {**repo, "tests/test_env.py": repo["tests/test_env.py"].replace(b"%d", text)}
        message = run_tests(sandbox, tree, plan, ["tests/test_env.py"]).cases["tests/test_env.py::test"].message
        seen[text] = message.partition("assert ")[2].split()[0]
    assert seen[b"0"] == seen[b"1"]
    tree = {**repo, "tests/test_env.py": repo["tests/test_env.py"].replace(b"%d", seen[b"0"].encode())}
    assert run_tests(sandbox, tree, plan, ["tests/test_env.py"]).passed()


def test_trace_names_functions(sandbox, repo, plan):
    run = run_tests(sandbox, repo, plan, [CORE], trace=True)
    own = {name.partition("::")[2]: {at for path, at in seen if path == "lib/core.py"}
           for name, seen in run.touched.items()}
    assert own == {"": {1}, "test_add": {1}, "test_half": {5}, "test_half_raises": {5}, "test_first[1]": {11},
                   "test_first[2]": {11}, "TestMore::test_unit": {1, 5}}
    assert len(run.passed()) == 6


def test_many_runs_are_those_of_each_alone(sandbox, repo, plan):
    """Forks of one interpreter: what one run changes, leaves or ends does not show in the next."""
    wrong = {**repo, "lib/core.py": repo["lib/core.py"].replace(b"a + b", b"a - b")}
    gone = {name: content for name, content in repo.items() if name != "lib/core.py"}
    ends = {**repo, "lib/core.py": b"import os\nos._exit(3)\n", "lib/new.py": b""}
    hangs = {**repo, "lib/core.py": repo["lib/core.py"].replace(b"return a + b", b"while True: pass")}
    jobs = [Job(tree, (CORE,)) for tree in (repo, wrong, gone, ends, hangs, repo)]
    jobs += [Job(repo, ("missing.py",)), Job(wrong, (CORE,), (f"{CORE}::test_half",))]
    runs = run_many(sandbox, jobs, dataclasses.replace(plan, test_s=0.5), stop_slow=True)
    assert [run.status for run in runs] == ["ok", "ok", "ok", "cut", "timeout", "ok", "ok", "ok"]
    alone = [run_tests(sandbox, tree, plan, [CORE]) for tree in (repo, wrong)]
    for one, run in zip([*alone, alone[0]], [runs[0], runs[1], runs[5]], strict=True):
        assert {n: (c.status, c.message) for n, c in one.cases.items()} == {
            n: (c.status, c.message) for n, c in run.cases.items()}
    assert list(runs[2].collection) == [CORE] and not runs[3].passed() and not runs[4].passed()
    assert not runs[6].cases and list(runs[7].cases) == [f"{CORE}::test_half"]


def test_bad_plans():
    for settings, words in (({"source": ()}, "needs a directory"), ({"source": ("../x",)}, "within the tree"),
                            ({"test_s": 0}, "must be positive")):
        with pytest.raises(ConfigError, match=words):
            TestPlan(**settings)


def test_installed_copy_is_noticed(sandbox, repo, plan):
    repo["tests/test_core.py"] = b"import json\ndef test(): pass\n"
    assert run_tests(sandbox, repo, dataclasses.replace(plan, modules=("json",)), [CORE]).origin == (None,)
