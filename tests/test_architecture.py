"""The tree is the architecture: who may import whom, and where Flax, orbax and meshes live."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxllm"
ORDER = ["config", "files", "endpoint", "distributed", "tracking", "studies", "parallel", "models", "checkpoint",
         "data", "training", "generation", "diffusion", "sandbox", "rl", "routing", "agents", "cells", "coordination",
         "curation", "swe",
         "evaluation", "serving", "bench", "cli"]
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    here = room(path)
    if here in ("__init__", "__main__"):
        return
    assert here in ORDER, f"{here} is not in the list of rooms"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "jaxllm" and len(parts) > 1 and parts[1] in ORDER:
            assert ORDER.index(parts[1]) <= ORDER.index(here), f"{path}: {here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_in_their_rooms(path):
    names, text = set(imports(path)), path.read_text()
    if room(path) != "models":
        assert not any(n.startswith("flax.linen") for n in names)
    if room(path) != "checkpoint":
        assert not any(n.startswith("orbax") for n in names)
    if room(path) != "distributed":
        assert "jax.process_" not in text
    if room(path) != "parallel":
        assert not re.search(r"make_mesh\(\(|[^A-Za-z]Mesh\(", text)


def test_rooms_say_what_they_are():
    for init in PACKAGE.glob("*/__init__.py"):
        assert ast.get_docstring(ast.parse(init.read_text())), f"{init} has no docstring"


def test_readme_shows_the_tree():
    tree = re.search(r"```\njaxllm/\n(.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    shown = [m.group(1).removesuffix("/").removesuffix(".py") for m in re.finditer(r"^  (\S+)", tree, re.M)]
    assert [name for name in shown if name != "assets"] == ORDER
