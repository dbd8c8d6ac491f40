"""Roles: prompts, replies and rewards."""

import pytest

from jaxllm.config import ConfigError
from jaxllm.swe import roles
from jaxllm.swe.diffs import write_diff
from jaxllm.swe.grading import RunCache
from jaxllm.swe.instances import Instance
from jaxllm.swe.trees import write_archive

CORE = "tests/test_core.py"


def block(path, search, replace):
    return f"### {path}\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def test_prompts_show_what_a_role_may_see(repo):
    fixer = roles.localisation_prompt("bugfixer", "add is off\n", repo)
    writer = roles.localisation_prompt("testwriter", "add is off", repo)
    assert "lib/core.py" in fixer and "add is off" in fixer and "test_core" not in fixer and "5 paths" in fixer
    assert CORE in writer and "lib/core.py" not in writer
    edit = roles.edit_prompt("bugfixer", "add is off", repo, ["lib/core.py"])
    assert repo["lib/core.py"].decode() in edit and "<<<<<<< SEARCH" in edit
    with pytest.raises(ConfigError, match="role"):
        roles.candidates("judge", repo)


def test_localisation(repo):
    reply = f"<think>\n```\nlib/core.py\n```\n</think>\n```\nlib/__init__.py\n{CORE}\nlib/core.py\n```"
    assert roles.read_localisation("bugfixer", reply, repo) == ["lib/__init__.py", "lib/core.py"]
    assert roles.read_localisation("testwriter", reply, repo) == [CORE]
    assert roles.read_localisation("bugfixer", "lib/core.py", repo) == []


def test_edits_stay_within_the_role(repo):
    both = block("lib/core.py", "    return a + b\n", "    return b + a\n") + block(
        CORE, "    assert half(7) == 3\n", "    assert True\n")
    fixer, writer = (roles.read_edit(role, both, repo) for role in roles.ROLES)
    assert fixer.status == writer.status == "ok"
    assert CORE not in fixer.patch and "lib/core.py" in fixer.patch
    assert CORE in writer.patch and "lib/core.py" not in writer.patch
    only = roles.read_edit("testwriter", block("lib/core.py", "    return a + b\n", "    return b + a\n"), repo)
    assert only.status == "empty" and not only.patch
    assert roles.read_edit("bugfixer", "no idea", repo).status == "empty"
    assert roles.read_edit("bugfixer", block("lib/core.py", "none\n", "x\n"), repo).status == "not_applied"
    assert roles.read_edit("bugfixer", block("lib/core.py", "    return a + b\n", "    return a + b\n"),
                           repo).status == "empty"


def test_up_to_five_retries_while_empty(repo):
    good = block("lib/core.py", "    return a + b\n", "    return b + a\n")
    asked = []

    def ask(prompt, number):
        asked.append(number)
        return good if number == 2 else "hm"

    found = roles.edit_with_retries("bugfixer", ask, "add is off", repo, ["lib/core.py"])
    assert found.status == "ok" and found.replies == 3 and asked == [0, 1, 2]
    never = roles.edit_with_retries("bugfixer", lambda prompt, number: "", "x", repo, ["lib/core.py"])
    assert never.status == "empty" and never.replies == 6


def test_rewards(sandbox, repo, plan, tmp_path):
    broken = {**repo, "lib/core.py": repo["lib/core.py"].replace(b"a + b", b"a - b")}
    write_archive(tmp_path / "repo.tar.gz", repo)
    instance = Instance("lib-1", "add is off", write_diff(broken, repo), "", (f"{CORE}::test_add",), (),
                        str(tmp_path / "repo.tar.gz"), write_diff(repo, broken), plan=plan)
    cache = RunCache(sandbox)
    assert roles.bugfixer_reward(instance, instance.patch, cache)[0] == 1
    wrong = write_diff(broken, {**repo, "lib/core.py": repo["lib/core.py"].replace(b"a + b", b"5 - 1")})
    assert roles.bugfixer_reward(instance, wrong, cache)[0] == roles.bugfixer_reward(instance, None, cache)[0] == 0

    def written(body, path="tests/test_new.py"):
        return write_diff(broken, {**broken, path: b"from lib import add, half\n\n\n" + body})

    for body, wanted in ((b"def test():\n    assert add(1, 1) == 2\n", (1.0, "ok")),
                         (b"def test():\n    assert half(4) == 2\n", (0.0, "does_not_fail")),
                         (b"def test():\n    assert add(1, 1) == 3\n", (0.0, "does_not_pass")),
                         (b"def test(:\n", (0.0, "does_not_run"))):
        assert roles.testwriter_reward(instance, written(body), cache) == wanted, body
    assert roles.testwriter_reward(instance, written(b"", "lib/new.py"), cache) == (0.0, "no_test")
    assert roles.testwriter_reward(instance, "", cache) == (0.0, "no_patch")
    assert roles.testwriter_reward(instance, "x", cache) == (0.0, "not_applied")
