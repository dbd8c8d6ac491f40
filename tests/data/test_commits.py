"""Mid-training records of a small repository: they tell the change and nothing else."""

import os
import subprocess

import pytest

from jaxllm.cli.main import main
from jaxllm.config import ConfigError
from jaxllm.data.commits import CommitsConfig, read_commits, replacements, write_commits
from jaxllm.files import read_jsonl

FIRST = "def f(x):\n    return x\n\n\ndef g(x):\n    return x\n" + "\n\ndef more():\n    pass\n" * 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("repo")
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull} | {
        f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
        (("NAME", "a"), ("EMAIL", "a@example.org"), ("DATE", "2024-01-01T00:00:00Z"))}

    def git(*words):
        subprocess.run(["git", "-C", str(root), *words], check=True, env=env, capture_output=True)

    def commit(message, **files):
        for name, text in files.items():
            (root / name.replace("__", ".")).write_text(text)
        git("add", "-A")
        git("commit", "-m", message)

    git("init", "-b", "main")
    commit("Start", a__py=FIRST, b__py="def other():\n    pass\n", notes__txt="x\n")
    commit("Double g", a__py=FIRST.replace("def g(x):\n    return x", "def g(x):\n    return 2 * x"))
    commit("Notes only", notes__txt="y\n")
    git("checkout", "-b", "branch")
    commit("One more", c__py="def c():\n    pass\n")
    commit("And tell", c__py="def c():\n    return 3\n")
    git("checkout", "main")
    git("merge", "--no-ff", "-m", "Merge branch: c", "branch")
    return root


def test_changes_are_told_so_that_they_can_be_made_again(repository):
    commits = {c.message: c for c in read_commits(repository, CommitsConfig())}
    assert set(commits) == {"Double g", "One more", "And tell"}
    for commit in commits.values():
        texts = dict(commit.before)
        for path, old, new in replacements(commit):
            assert texts.get(path, "").count(old) == 1 if old else path not in texts
            texts[path] = texts[path].replace(old, new) if old else new
        assert texts == commit.after


def test_three_kinds(repository, tmp_path):
    assert write_commits(repository, tmp_path / "out") == {"natural": 3, "traces": 3, "packs": 1}
    natural = [r["text"] for r in read_jsonl(tmp_path / "out" / "natural.jsonl")]
    mine = next(text for text in natural if text.startswith("Double g"))
    assert "Files to change:\na.py\n\n### a.py\n" in mine and mine.count("return 2 * x") == 1
    pack = read_jsonl(tmp_path / "out" / "packs.jsonl")[0]["text"]
    assert [pack.index(t) for t in ("Merge branch: c", "One more", "And tell", "+    return 3")] == sorted(
        pack.index(t) for t in ("Merge branch: c", "One more", "And tell", "+    return 3"))
    traces = [r["text"] for r in read_jsonl(tmp_path / "out" / "traces.jsonl")]
    assert all(text.endswith("<execute>stop()</execute>\n") for text in traces)
    assert any("I do not need to modify this file." in text for text in traces)
    assert "str_replace('a.py', " in next(text for text in traces if text.startswith("Double g"))
    assert write_commits(repository, tmp_path / "two", CommitsConfig(kinds=("natural",), bytes=60)) == {"natural": 0}
    assert not (tmp_path / "two" / "natural.jsonl").exists()


def test_command_and_bad_input(repository, tmp_path, capsys):
    assert main(["data", "commits", str(repository), "--out", str(tmp_path / "out"), "kinds=[packs]"]) == 0
    assert "1 packs" in capsys.readouterr().out
    assert main(["data", "commits", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    with pytest.raises(ConfigError, match="is to be left out"):
        write_commits(repository, tmp_path, CommitsConfig(left_out=(repository.name,)))
    for settings in ({"kinds": ("x",)}, {"files": 0}, {"most": 0}, {"astray": -1}):
        with pytest.raises(ConfigError):
            CommitsConfig(**settings)
