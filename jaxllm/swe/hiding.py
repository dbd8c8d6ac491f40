"""Failing tests taken out of the tree that a model sees, to come back with the test patch, as in SWE-bench."""

from __future__ import annotations

import ast
import collections
from collections.abc import Iterable

from jaxllm.swe.trees import Tree


def hide_tests(tree: Tree, tests: Iterable[str]) -> dict[str, bytes]:
    """A tree without the functions of `tests` (pytest's ids); one whose function is not found stays.

    A function goes with all its parameters; a class that loses its last statement keeps a `pass`.
    """
    out, wanted = dict(tree), collections.defaultdict(set)
    for test in tests:
        path, _, name = test.partition("::")
        wanted[path].add(tuple(name.partition("[")[0].split("::")))
    for path, names in wanted.items():
        try:
            module = ast.parse(tree.get(path, b""))
        except (SyntaxError, ValueError):
            continue
        lines = tree.get(path, b"").split(b"\n")
        for start, stop, filling in sorted(_spans(module, names), reverse=True):
            lines[start - 1:stop] = [filling] if filling else []
        if path in tree:
            out[path] = b"\n".join(lines)
    return out


def _spans(module: ast.Module, names: set[tuple[str, ...]]) -> list[tuple[int, int, bytes]]:
    """First and last line of what goes, and the line that comes in its place."""
    spans = []

    def walk(body: list[ast.stmt], scope: tuple[str, ...]) -> None:
        gone = []
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (*scope, node.name) in names:
                gone.append(node)
            elif isinstance(node, ast.ClassDef):
                walk(node.body, (*scope, node.name))
        for node in gone:
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            empty = bool(scope) and len(gone) == len(body) and node is gone[-1]
            spans.append((first, node.end_lineno or node.lineno, b" " * node.col_offset + b"pass" if empty else b""))

    walk(module.body, ())
    return spans
