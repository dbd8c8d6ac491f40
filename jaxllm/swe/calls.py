"""Checks with concrete arguments, one by one: what a TestWriter of the closed form chooses from, and its test file.

A check is one `assert` of a test function of the package. A written test is that test function without its other
checks, put behind what its file holds.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

from jaxllm.swe.trees import Tree

WRITTEN = "test_written"


@dataclasses.dataclass(frozen=True)
class Call:
    """A check.

    Attributes:
      test: id of the test function that it is from, `path::name`.
      number: of the check in the function, from 0.
      statement: its text.
      names: words that the written test names.
    """

    test: str
    number: int
    statement: str
    names: frozenset[str]

    @property
    def path(self) -> str:
        """The test file."""
        return self.test.partition("::")[0]


def find_calls(tree: Tree, files: Iterable[str]) -> list[Call]:
    """Checks of the test functions of modules, not those of classes, in order."""
    out = []
    for path in files:
        for name, function in _functions(tree.get(path, b"")).items():
            asserts = _asserts(function)
            inside = {id(n) for check in asserts for n in ast.walk(check)}
            around = _names(n for n in ast.walk(function) if id(n) not in inside)
            out += [Call(f"{path}::{name}", number, ast.unparse(check), around | _names(ast.walk(check)))
                    for number, check in enumerate(asserts)]
    return out


@functools.lru_cache(maxsize=64)
def _functions(source: bytes) -> dict[str, ast.FunctionDef]:
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError):
        return {}
    return {n.name: n for n in module.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test")}


def _asserts(function: ast.FunctionDef) -> list[ast.Assert]:
    return sorted((n for n in ast.walk(function) if isinstance(n, ast.Assert)), key=lambda n: (n.lineno, n.col_offset))


def _names(nodes: Iterable[ast.AST]) -> frozenset[str]:
    return frozenset(n.id if isinstance(n, ast.Name) else n.attr for n in nodes
                     if isinstance(n, (ast.Name, ast.Attribute)))


class _Only(ast.NodeTransformer):
    """Takes all checks out but the one at a place."""

    def __init__(self, place: tuple[int, int]) -> None:
        self.place = place

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        return node if (node.lineno, node.col_offset) == self.place else ast.copy_location(ast.Pass(), node)


def checks_for(calls: Sequence[Call], function: str, report: str, most: int) -> list[Call]:
    """Checks that name a function, or its class for a method, those of tests that the report names first.

    Args:
      calls: of the package.
      function: qualified name.
      report: names of tests in it count.
      most: so many, at most three of a test until there are no others.
    """
    parts = [p for p in function.split(".") if p != "__init__"]
    wanted = {parts[-1], parts[0]} if parts else set()
    said = set(re.findall(r"\w+", report))
    found = [call for call in calls if wanted & call.names]
    seen: dict[str, int] = {}
    keyed = []
    for at, call in enumerate(found):
        seen[call.test] = seen.get(call.test, 0) + 1
        named = call.test.partition("::")[2] in said
        keyed.append((not named, seen[call.test] > 3, parts[-1] not in call.names, at))
    return [found[key[-1]] for key in sorted(keyed)[:most]]


def write_test(tree: Tree, whole: Tree, call: Call) -> dict[str, bytes]:
    """A tree whose test file holds a check as one more test.

    Args:
      tree: to write to.
      whole: where the check was found.
      call: the check.
    """
    function = copy.deepcopy(_functions(whole[call.path])[call.test.partition("::")[2]])
    check = _asserts(function)[call.number]
    function = ast.fix_missing_locations(_Only((check.lineno, check.col_offset)).visit(function))
    function.name = WRITTEN
    before = tree.get(call.path, b"")
    return {**tree, call.path: before.rstrip(b"\n") + b"\n\n\n" + ast.unparse(function).encode() + b"\n"}
