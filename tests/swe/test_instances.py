"""Instances: SWE-bench's JSONL in and out, and what is wrong with a file said by line and key."""

import json

import pytest

from jaxllm.config import ConfigError
from jaxllm.swe.instances import read_instances, write_instances

GOOD = {"instance_id": "a-1", "problem_statement": "add is off", "patch": "--- a/x\n", "test_patch": "",
        "FAIL_TO_PASS": ["t.py::a"], "PASS_TO_PASS": '["t.py::b", "u.py::c"]', "snapshot": "repo", "repo": "a",
        "base_commit": "0" * 40}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "x.py").write_text("x = 1\n")

    def write(*records, end="\n"):
        path = tmp_path / "tasks.jsonl"
        path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + end)
        return path

    return write


def test_read_and_written_again(file, tmp_path):
    more = {**GOOD, "instance_id": "a-2", "plan": {"source": ["src"], "test_s": "3"}, "about": {"split": "train"},
            "setup_patch": "--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"}
    found = read_instances(file(GOOD, "", more))
    assert [i.instance_id for i in found] == ["a-1", "a-2"]
    assert found[0].pass_to_pass == ("t.py::b", "u.py::c") and found[0].test_files() == ["t.py", "u.py"]
    assert found[1].plan.source == ("src",) and found[1].plan.test_s == 3.0
    assert found[0].tree() == {"x.py": b"x = 1\n"} and found[1].tree() == {"x.py": b"x = 2\n"}
    write_instances(tmp_path / "again.jsonl", found)
    assert read_instances(tmp_path / "again.jsonl") == found
    assert json.loads((tmp_path / "again.jsonl").read_text().splitlines()[0])["snapshot"] == "repo"


def test_a_cut_line_is_dropped_only_at_the_end(file):
    assert len(read_instances(file(GOOD, json.dumps(GOOD)[:50], end=""))) == 1
    with pytest.raises(ConfigError, match=r"tasks\.jsonl:1: not valid JSON"):
        read_instances(file(json.dumps(GOOD)[:50], GOOD))


@pytest.mark.parametrize(("change", "words"), [
    ({"patch": None}, r":2: patch=None: must be text"), ({"problem_statement": " "}, ":2: problem_statement is empty"),
    ({"FAIL_TO_PASS": []}, ":2: FAIL_TO_PASS is empty"), ({"FAIL_TO_PASS": "a"}, "must be a list of test ids"),
    ({"PASS_TO_PASS": [1]}, ":2: PASS_TO_PASS=.*must be a list"), ({"PASS_TO_PASS": ["a", "a"]}, "holds 'a' twice"),
    ({"PASS_TO_PASS": ["t.py::a"]}, "share 't.py::a'"), ({"snapshot": "none"}, "snapshot='none': .*does not exist"),
    ({"plan": {"sources": []}}, r":2: plan: unknown key 'sources'; did you mean source, modules"),
    ({"plan": {"test_s": -1}}, "test_s"), ({"about": 3}, "about=3: must be an object"),
    ({"instance_id": "a-1"}, r":2: instance_id='a-1': is that of line 1 too"),
])
def test_bad_values_name_line_and_key(file, change, words):
    with pytest.raises(ConfigError, match=words):
        read_instances(file(GOOD, {**GOOD, "instance_id": "a-2", **change}))


def test_missing_keys_files_and_patches(file, tmp_path):
    for key in ("instance_id", "FAIL_TO_PASS", "snapshot"):
        record = {k: v for k, v in GOOD.items() if k != key}
        with pytest.raises(ConfigError, match=f":1: {key} is missing"):
            read_instances(file(record))
    with pytest.raises(ConfigError, match="holds no instance"):
        read_instances(file(""))
    with pytest.raises(ConfigError, match=":1: is list"):
        read_instances(file([1]))
    with pytest.raises(ConfigError, match="cannot be read"):
        read_instances(tmp_path / "missing.jsonl")
    with pytest.raises(ConfigError, match="'a-1': setup_patch: .*no such file"):
        read_instances(file({**GOOD, "setup_patch": "--- a/y\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n"}))[0].tree()
