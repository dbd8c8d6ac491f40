"""Two patches that say the same: what they make of the code, without comments, layout and white space of docstrings."""

from __future__ import annotations

import ast
import hashlib
import inspect
import warnings

from jaxllm.swe.trees import Tree

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def normal_code(source: str) -> str:
    """Python as its syntax tree, docstrings by their words; what does not parse, without trailing white space."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the code's own strings
            tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
                string = node.body[0].value  # type: ignore[attr-defined]
                string.value = " ".join(inspect.cleandoc(string.value).split())
        return ast.dump(tree)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "\n".join(line.rstrip() for line in source.strip().split("\n"))


def normal_patch(before: Tree, after: Tree) -> str:
    """SHA-256, in hex, over what a patch changed, in normal form; equal for patches that say the same.

    Args:
      before: the tree that is patched.
      after: the tree that came of it.
    """
    total = hashlib.sha256()
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        old, new = (_normal(name, tree.get(name)) for tree in (before, after))
        if old != new:
            total.update(f"{name}\0{new}\0".encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def _normal(name: str, content: bytes | None) -> str:
    if content is None:
        return "none"
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return f"bytes {hashlib.sha256(content).hexdigest()}"
    return f"text {normal_code(text) if name.endswith('.py') else text}"
