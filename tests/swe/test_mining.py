"""Mining a small package: what is kept, what is refused, and going on after a kill."""

import dataclasses
import json
import tarfile

import pytest

from jaxllm.config import ConfigError
from jaxllm.files import read_jsonl, sha256
from jaxllm.swe.diffs import apply_diff
from jaxllm.swe.grading import RunCache, grade
from jaxllm.swe.instances import read_instances
from jaxllm.swe.issues import issue_text
from jaxllm.swe.mining import MineConfig, mine, split_of
from jaxllm.swe.packing import pack, unpack
from jaxllm.swe.recipes import SHIPPED, Recipe, code_files, fetch, open_recipe, test_files
from jaxllm.swe.running import Case


@pytest.fixture
def package(repo, tmp_path):
    """A recipe and a directory with its distribution."""

    def make(**changes):
        tree = {**repo, **{k: v for k, v in changes.items() if v}}
        archive = tmp_path / "downloads" / "lib-1.0.tar.gz"
        archive.parent.mkdir(exist_ok=True)
        with tarfile.open(archive, "w:gz") as out:
            for name, content in tree.items():
                path = tmp_path / "files" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                out.add(path, f"lib-1.0/{name}")
        return Recipe("lib", "1.0", sha256(archive), ("lib",), ("tests",), modules=("lib",), test_s=2, wall_s=20)

    return make


@pytest.mark.slow  # some thirty runs
def test_mines_and_goes_on(sandbox, package, tmp_path):
    recipe, out = package(), tmp_path / "out"
    settings = {"sandbox": sandbox, "downloads": tmp_path / "downloads", "log": lambda text: None}
    config = MineConfig(failing=0.6, most=4)
    summary = mine(recipe, out, config, **settings)
    home = out / "lib"
    assert summary["tried"] == 4 and summary["kept"] >= 1 and summary["tests"] == 7, summary
    records = read_jsonl(home / "attempts.jsonl")
    instances = read_instances(home / "instances.jsonl")
    assert len(instances) == summary["kept"] and len({r["mutant"] for r in records}) == 4
    instance, cache = instances[0], RunCache(sandbox)
    original = fetch(recipe, tmp_path / "downloads")
    mended = apply_diff(apply_diff(instance.tree(), instance.test_patch), instance.patch)
    assert mended == original and {n for n, c in instance.tree().items() if c != original[n]} == {
        "lib/core.py", "tests/test_core.py"}
    names = {test.partition("::")[2].partition("[")[0].rpartition("::")[2] for test in instance.fail_to_pass}
    assert not any(f"def {name}(".encode() in instance.tree()["tests/test_core.py"] for name in names)
    assert grade(instance, instance.patch, cache).resolved == "FULL"
    assert grade(instance, instance.setup_patch, cache).status == "not_applied"
    assert instance.about["split"] in ("train", "test") and instance.about["mended_by"]["operator"]
    changed = [line for line in instance.patch.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert not any(line[1:].strip() in instance.problem_statement for line in changed)
    # A kill in the middle of a line: the mutant is tried again, the rest is not.
    whole = (home / "attempts.jsonl").read_text()
    (home / "attempts.jsonl").write_text(whole[:-30])
    (home / "instances.jsonl").unlink()
    assert mine(recipe, out, config, **settings)["verdicts"] == summary["verdicts"]
    again = read_jsonl(home / "attempts.jsonl")
    assert [r["mutant"] for r in again] == [r["mutant"] for r in records]
    assert read_instances(home / "instances.jsonl") == instances
    # The packed file gives the same instances.
    data = pack(home, tmp_path / "lib.json")
    assert [task[0] for task in data["tasks"]] == [r["mutant"] for r in records if r["verdict"] == "kept"]
    mined = unpack(tmp_path / "lib.json", tmp_path / "again", tmp_path / "downloads")
    assert [dataclasses.replace(i, snapshot="", about={}) for i in mined.instances] == [
        dataclasses.replace(i, snapshot="", about={}) for i in instances]
    assert [dict(i.about) for i in mined.instances] == [dict(i.about) for i in instances]
    assert [name.rpartition("::")[2] for name in mined.callers["lib/core.py", 1]] == ["test_add", "test_unit"]
    with pytest.raises(ConfigError, match="mined with other settings .config.seed."):
        mine(recipe, out, dataclasses.replace(config, seed=1), **settings)


def test_a_package_that_does_not_pass_is_refused(sandbox, package, tmp_path):
    settings = {"sandbox": sandbox, "downloads": tmp_path / "downloads", "log": lambda text: None}
    recipe = package(**{"tests/test_bad.py": b"def test_bad():\n    assert 1 == 2\n"})
    with pytest.raises(ConfigError, match="lib: 1 tests do not pass unmodified, tests/test_bad.py::test_bad first"):
        mine(recipe, tmp_path / "a", **settings)


def test_distributions_are_checked(package, tmp_path):
    recipe = package()
    with pytest.raises(ConfigError, match="has sha256="):
        fetch(dataclasses.replace(recipe, sha256="0" * 64), tmp_path / "downloads")
    tree = fetch(recipe, tmp_path / "downloads")
    assert code_files(recipe, tree) == ["lib/__init__.py", "lib/core.py"]
    assert test_files(recipe, tree) == ["tests/test_core.py", "tests/test_marks.py"]
    with pytest.raises(ConfigError, match="has no test files"):
        test_files(dataclasses.replace(recipe, tests=("lib",)), tree)


def test_recipes_open():
    names = [path.stem for path in SHIPPED.glob("*.yaml")]
    assert {"toolz", "boltons", "parso"} <= set(names)
    for name in names:
        assert open_recipe(name).package == name
    with pytest.raises(ConfigError, match="did you mean toolz"):
        open_recipe("tools")


def test_splits_hang_on_names_alone():
    config = MineConfig(held_out=0.3, held_out_packages=("other",))
    found = [split_of("lib", "lib/a.py", f"f{i}", config) for i in range(400)]
    assert 80 < found.count("test") < 160 and set(found) == {"test", "train"}
    assert split_of("lib", "lib/a.py", "A.f", config) == split_of("lib", "lib/a.py", "A.g", config)
    assert split_of("other", "a.py", "f", config) == "test_package"


def test_issue_tells_of_tests_only():
    case = Case("failed", "AssertionError: assert 3 == 4\n  where 3 = f(1)", "assert f(1) == 4")
    text = issue_text("lib", ["t.py::a", "t.py::b", "t.py::c", "t.py::d"], {"t.py::a": case})
    assert "4 tests fail" in text and "`t.py::a`" in text and "    assert f(1) == 4" in text
    assert "    AssertionError: assert 3 == 4" in text and "and 1 more" in text and "t.py::d" not in text


def test_an_issue_does_not_say_where_the_miners_interpreter_lies():
    for place in ("/home/me/.venv/lib/python3.11/site-packages/", "/opt/py-3.12/lib/python3.12/"):
        case = Case("failed", f"TypeError: {place}_pytest/compare.py:29 of <function at {place}operator.py>\n"
                              "assert '-' == '/opt/py...in/python3.11'")
        text = issue_text("lib", ["t.py::a"], {"t.py::a": case})
        assert "TypeError: _pytest/compare.py:29 of <function at operator.py>" in text and "'-' == 'python3.11'" in text


def test_bad_settings():
    for settings in ({"failing": 0}, {"most": 0}, {"held_out": 2}, {"per_function": 0}):
        with pytest.raises(ConfigError):
            MineConfig(**settings)
    assert json.dumps(dataclasses.asdict(MineConfig()))
