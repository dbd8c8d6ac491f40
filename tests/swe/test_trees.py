"""Trees from directories and archives, and what is put back after a patch."""

import io
import tarfile
import tomllib
import zipfile

import pytest

from jaxllm.config import ConfigError
from jaxllm.swe.trees import bad_path, is_test_file, read_tree, restore_tests, tree_hash, write_archive

TREE = {"pack/__init__.py": b"x = 1\n", "pack/data.bin": b"\xff\x00", "tests/test_x.py": b"def test(): pass\n"}


def test_directory_and_archives_give_the_same_tree(tmp_path):
    root = tmp_path / "repo"
    for name, content in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("x")
    (root / "pack" / "__pycache__").mkdir()
    (root / "pack" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (root / "link").symlink_to("/etc/hostname")
    (root / "far").symlink_to("/etc")
    assert read_tree(root) == TREE
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(root / "pack", "pack-1.0/pack")
        archive.add(root / "tests", "pack-1.0/tests")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, content in TREE.items():
            archive.writestr(name, content)
    write_archive(tmp_path / "b.tar.gz", TREE)
    write_archive(tmp_path / "c.tar.gz", dict(reversed(TREE.items())))
    assert (tmp_path / "b.tar.gz").read_bytes() == (tmp_path / "c.tar.gz").read_bytes()
    for name in ("a.tar.gz", "a.zip", "b.tar.gz"):
        assert read_tree(tmp_path / name) == TREE, name
    assert tree_hash(TREE) == tree_hash(dict(reversed(TREE.items()))) != tree_hash({**TREE, "a": b""})


def test_bad_snapshots_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.tar.gz").write_text("no archive")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        info = tarfile.TarInfo("../evil")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
        archive.addfile(tarfile.TarInfo("good"))
    for name, words in (("empty", "holds no files"), ("text.tar.gz", "nor an archive"), ("missing", "cannot be read"),
                        ("bad.tar", r"'\.\./evil'")):
        with pytest.raises(ConfigError, match=words):
            read_tree(tmp_path / name)


@pytest.mark.parametrize("name", ["", "/a", "a/../b", "a//b", "./a", ".git/config", "a\\b"])
def test_bad_paths(name):
    assert bad_path(name)


def test_names_of_tests():
    for name in ("tests/util.py", "a/test/data.txt", "test_a.py", "a/b_test.py", "x/conftest.py"):
        assert is_test_file(name), name
    for name in ("pack/contest.py", "latest.py", "pack/testing_tools.py", "attest/a.py"):
        assert not is_test_file(name), name


SETUP = b"[metadata]\nname = a\n[tool:pytest]\naddopts = -x\ntestpaths = tests\n[flake8]\nmax = 3\n"
PROJECT = b'[project]\nname = "a"\n[tool.pytest.ini_options]\naddopts = "-x"\n[tool.ruff]\nline = 3\n'
BEFORE = {**TREE, "setup.cfg": SETUP, "pyproject.toml": PROJECT, "conftest.py": b"import pack\n"}


def restored(**changes):
    patched = {**BEFORE, **{k: v for k, v in changes["now"].items() if v is not None}}
    for name, content in changes["now"].items():
        if content is None:
            patched.pop(name)
    return restore_tests(patched, BEFORE)


def test_tests_and_settings_come_back():
    out, changed = restored(now={
        "tests/test_x.py": b"def test(): assert True\n", "tests/new.py": b"", "conftest.py": None,
        "pack/conftest.py": b"import os; os._exit(0)\n", "pytest.ini": b"[pytest]\naddopts=--co\n",
        "sitecustomize.py": b"", "x.pth": b"import os", "tox.ini": b"[pytest]\naddopts = -k nothing\n[tox]\na = 1\n",
        "pack/__init__.py": b"x = 2\n", "pack/more.py": b""})
    assert changed == ["conftest.py", "pack/conftest.py", "pytest.ini", "sitecustomize.py", "tests/new.py",
                       "tests/test_x.py", "tox.ini", "x.pth"]
    assert b"pytest" not in out.pop("tox.ini")
    assert out == {**BEFORE, "pack/__init__.py": b"x = 2\n", "pack/more.py": b""}


def test_only_pytests_sections_of_shared_files_come_back():
    out, changed = restored(now={
        "setup.cfg": SETUP.replace(b"-x", b"--collect-only").replace(b"max = 3", b"max = 4"),
        "pyproject.toml": PROJECT.replace(b'"-x"', b'"-k no"').replace(b"line = 3", b"line = 4")})
    assert changed == ["pyproject.toml", "setup.cfg"]
    assert b"max = 4" in out["setup.cfg"] and b"addopts = -x" in out["setup.cfg"] and b"collect" not in out["setup.cfg"]
    found = tomllib.loads(out["pyproject.toml"].decode())["tool"]
    assert found == {"ruff": {"line": 4}, "pytest": {"ini_options": {"addopts": "-x"}}}
    same, changed = restored(now={"setup.cfg": SETUP.replace(b"max = 3", b"max = 5")})
    assert not changed and b"max = 5" in same["setup.cfg"]


@pytest.mark.parametrize("now", [
    {"pyproject.toml": PROJECT.replace(b"[tool.pytest.ini_options]\n", b"[tool]\npytest.ini_options.")},
    {"pyproject.toml": b'tool.pytest.ini_options.addopts = "-k no"\n'},
    {"pyproject.toml": b'[tool.pytest]\nini_options = {addopts = "-k no"}\n'},
    {"pyproject.toml": b'[tool."pytest".ini_options]\naddopts = "-k no"\n'},
    {"pyproject.toml": b"not [toml"}, {"pyproject.toml": None},
    {"setup.cfg": b"[DEFAULT]\naddopts = -k no\n"}, {"setup.cfg": b"[tool:pytest]\naddopts=a\n[tool:pytest]\nb=1\n"},
    {"setup.cfg": b"[tool:pytest]\ntestpaths = tests\naddopts = -x\n  -k no\n"},
], ids=lambda now: str(now)[:60])
def test_other_ways_to_write_settings(now):
    out, _ = restored(now=now)
    for name in now:
        if name == "setup.cfg":
            import configparser

            parser = configparser.RawConfigParser()
            parser.read_string(out[name].decode())
            assert dict(parser["tool:pytest"]) == {"addopts": "-x", "testpaths": "tests"}
        else:
            assert tomllib.loads(out[name].decode())["tool"]["pytest"] == {"ini_options": {"addopts": "-x"}}
