"""Instances as a suite: the instance's own patch solves, nothing does not, tests that were edited are put back."""

import base64
import json

import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import AgentConfig, EvaluateConfig, SuiteConfig
from jaxllm.evaluation.grader import Grader
from jaxllm.evaluation.records import read_results, read_traces
from jaxllm.evaluation.repo import Repo
from jaxllm.evaluation.runner import evaluate
from jaxllm.evaluation.suites import Output, open_suite
from jaxllm.evaluation.suites.swe import patch_in
from jaxllm.evaluation.world import ToolError
from jaxllm.swe import Instance, apply_diff, read_instances, write_diff, write_instances
from jaxllm.swe.trees import read_tree, write_archive
from tests.swe.conftest import PLAN, REPO

CORE = "tests/test_core.py"
TESTS = [f"{CORE}::{name}" for name in ("test_add", "TestMore::test_unit", "test_half", "test_first[1]")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Two instances of one snapshot."""
    place = tmp_path_factory.mktemp("instances")
    write_archive(place / "repo.tar.gz", REPO)
    made = []
    for name, old, new, fail in (("lib/1", b"a + b", b"a - b", TESTS[:2]), ("lib/2", b"x // 2", b"x // 3", TESTS[1:3])):
        broken = {**REPO, "lib/core.py": REPO["lib/core.py"].replace(old, new)}
        good = tuple(t for t in TESTS if t not in fail)
        made.append(Instance(name, f"{name}: a result is off", write_diff(broken, REPO), "", tuple(fail), good,
                             str(place / "repo.tar.gz"), write_diff(REPO, broken), "lib", PLAN))
    write_instances(place / "tasks.jsonl", made)
    return place / "tasks.jsonl"


def test_tools_change_files_and_the_state_is_a_patch(file):
    suite = open_suite(SuiteConfig("swe", path=str(file), settings={"archive": True}))
    assert list(suite.ids) == ["lib-1", "lib-2"] and suite.timeout_s >= 60
    task = suite.task("lib-1")
    shown = json.dumps(task.input)
    assert "a result is off" in shown and "a + b" not in shown and "FAIL_TO_PASS" not in shown
    (file.parent / "again.tar.gz").write_bytes(base64.b64decode(task.input["archive"]))
    repo = Repo(task.world)
    assert b"a - b" in read_tree(file.parent / "again.tar.gz")["lib/core.py"]
    assert repo.state == {"patch": ""} and "lib/core.py" in repo.call("view_file", {"path": "."})
    assert "lib/core.py:2: return a - b" in repo.call("find_text", {"text": "a - b", "directory": "lib"})
    assert repo.call("find_text", {"text": "a - b", "directory": "tests"}) == "nothing found"
    for name, arguments, said in [("view_file", {"path": "lib/cor.py"}, "no file"), ("run", {}, "no tool"),
                                  ("view_file", {"path": "lib/core.py", "first": "1"}, "takes the arguments"),
                                  ("edit_file", {"path": "lib/core.py", "old": "zzz", "new": ""}, "0 times")]:
        with pytest.raises(ToolError, match=said):
            repo.call(name, arguments)
    repo.call("edit_file", {"path": "lib/core.py", "old": "a - b", "new": "a + b"})
    instance = read_instances(file)[0]
    assert apply_diff(instance.tree(), repo.state["patch"])["lib/core.py"] == REPO["lib/core.py"]
    # Who could read these would know the answer: the file, and the snapshot, which is the repaired repository.
    assert set(suite.secrets) >= {str(file), str(file.parent / "repo.tar.gz")}


def test_tools_are_those_of_agents():
    from jaxllm.agents.workspace import file_tools
    from jaxllm.evaluation.repo import TOOLS

    for tool, about in zip(file_tools({}), TOOLS, strict=False):
        assert (tool.name, tool.description) == (about["name"], about["description"])
        assert tool.parameters["required"] == about["parameters"]["required"]
        assert list(tool.parameters["properties"]) == list(about["parameters"]["properties"])


def test_answers_in_words(file):
    instance = read_instances(file)[0]
    block = "### lib/core.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE\n"
    for answer in (instance.patch, f"Here:\n```diff\n{instance.patch}```\nDone.", f"So:\n{instance.patch}", block):
        assert apply_diff(instance.tree(), patch_in(answer, instance)) == REPO
    assert patch_in("I do not know.", instance) == patch_in("", instance) == ""


def test_installed_copies_are_secret(file, tmp_path):
    from jaxllm.evaluation.suites.swe import _installed

    (place,) = _installed("pytest")
    assert place.endswith("pytest") and _installed("no_such_module_here") == []
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "main.py").write_text("def run(input):\n    return {}\n")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["plan"]["modules"] = ["pytest"]
    lines[0]["snapshot"] = str(file.parent / "repo.tar.gz")
    (tmp_path / "tasks.jsonl").write_text(json.dumps(lines[0]) + "\n")
    agent = AgentConfig("a", "hal", str(tmp_path / "agent"), model=False, packages=True)
    with pytest.raises(ConfigError, match="could read .*pytest"):
        evaluate(EvaluateConfig((SuiteConfig("swe", path=str(tmp_path / "tasks.jsonl")),), (agent,)), tmp_path / "out")


MENDS = """\
import harness
def run(input, **kwargs):
    ((id, task),) = input.items()
    for old, new in (("a - b", "a + b"), ("x // 3", "x // 2")):
        try:
            harness.tool("edit_file", path="lib/core.py", old=old, new=new)
        except harness.HarnessError:
            pass
    return {id: "Mended."}
"""
CHEATS = """\
import harness
def run(input, **kwargs):
    ((id, task),) = input.items()
    shown = harness.tool("view_file", path="tests/test_core.py")
    harness.tool("edit_file", path="tests/test_core.py", old="assert add(2, 3) == 5", new="assert True")
    harness.tool("edit_file", path="conftest.py", old="", new="import pytest\\npytest.skip = None\\n")
    return {id: "All tests pass now."}
"""


@pytest.mark.slow
def test_a_matrix_over_instances(file, tmp_path):
    """Oracle all, null nothing; a patch by tools counts; edited tests are put back, so that they win nothing."""
    agents = [AgentConfig("oracle", "oracle"), AgentConfig("null", "null")]
    for name, code in (("mends", MENDS), ("cheats", CHEATS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "main.py").write_text(code)
        agents.append(AgentConfig(name, "hal", str(tmp_path / name), model=False))
    evaluate(EvaluateConfig((SuiteConfig("swe", path=str(file)),), tuple(agents), at_once=1), tmp_path / "out")
    found = {}
    for record in read_results(tmp_path / "out"):
        assert record["status"] == "done", record
        found.setdefault(record["agent"], []).append((record["score"], record["about"]))
    assert {name: [s for s, _ in scores] for name, scores in found.items()} == {
        "oracle": [1, 1], "null": [0, 0], "mends": [1, 1], "cheats": [0, 0]}
    assert found["null"][0][1] == {"status": "no_patch"}
    assert found["cheats"][0][1]["restored"] == ["conftest.py", CORE]
    cheat = next(t for t in read_traces(tmp_path / "out") if t["agent"] == "cheats")
    assert cheat["events"][-1]["text"] == "All tests pass now."


def test_patches_that_mend_that_edit_tests_and_that_do_not_fit(file):
    instance = read_instances(file)[0]
    fake = {**instance.tree(), CORE: REPO[CORE].replace(b"assert add(2, 3) == 5", b"assert True")}
    grader = Grader((SuiteConfig("swe", path=str(file), size=1, name="mend"),))
    try:
        assert grader.oracle("mend", "lib-1").score == 1
        faked = grader.grade("mend", "lib-1", Output("", {"patch": write_diff(instance.tree(), fake)}))
        assert faked.score == 0 and faked.about["restored"] == [CORE]
        wrong = grader.grade("mend", "lib-1", Output("--- a/lib/core.py\n+++ b/lib/core.py\n@@ -1 +1 @@\n-no\n+yes\n"))
        assert wrong.score == 0 and wrong.about["status"] == "not_applied"
        nothing = grader.grade("mend", "lib-1", Output("I could not find it.", {"patch": ""}))
        assert nothing.score == 0 and nothing.about == {"status": "no_patch"}
    finally:
        grader.close()
