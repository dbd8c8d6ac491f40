"""Prose of docstrings: paragraphs of Python's library and of packages that jaxllm depends on, read and not imported.

The same versions give the same paragraphs in the same order; a paragraph's hash decides what it is for, so that what a
model starts from, goes on with and is measured on never share one.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

# Python's own, and of what `pip install jaxllm` brings that with the most prose.
SOURCES = ("python", "numpy", "scipy", "matplotlib", "jax", "flax", "optax", "orbax", "transformers", "datasets",
           "pandas")
LONG, LONGEST = 40, 160  # words
WORD = re.compile(r"[\"'(`]*[A-Za-z][A-Za-z'-]*[\"')`.,;:!?]*")
# What for, and which share of the paragraphs: what base models learn, what arms are clean with, what junk is made from,
# what heals, and what is measured on.
PARTS = {"base": 0.4, "clean": 0.24, "junk": 0.24, "healing": 0.07, "held_out": 0.05}


def root_of(source: str) -> Path:
    """Directory of a source."""
    if source == "python":
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(source)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{source} is not installed; run launch/setup.sh")
    return Path(next(iter(spec.submodule_search_locations)))


def docstrings(root: Path) -> Iterator[str]:
    """Those of the modules under `root`, in order of their paths; tests and what lies in site-packages are left out."""
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).parts
        if {"test", "tests", "site-packages", "idlelib", "lib2to3"} & set(parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about escapes in others' strings
                tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    yield text


def is_prose(words: list[str]) -> bool:
    """Whether nearly all are words as people write them: no code, tables or formulas."""
    return LONG <= len(words) <= LONGEST and sum(bool(WORD.fullmatch(w)) for w in words) >= 0.85 * len(words)


def paragraphs(sources: Sequence[str] = SOURCES) -> list[str]:
    """Long paragraphs of sources, each once; of those that begin or end alike the first."""
    kept: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for source in sources:
        for text in docstrings(root_of(source)):
            if not text.isascii():
                continue
            for paragraph in re.split(r"\n\s*\n", text):
                words = paragraph.split()
                if ">>>" in paragraph or "---" in paragraph or not is_prose(words):
                    continue
                ends = {("first", *words[:6]), ("last", *words[-6:])}
                if not ends & seen:
                    kept.append(" ".join(words))
                seen |= ends
    return kept


def part_of(text: str) -> str:
    """What a paragraph is for, a name of `PARTS`."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") / 2 ** 32
    for name, share in PARTS.items():
        place -= share
        if place < 0:
            return name
    return next(reversed(PARTS))


def about(sources: Sequence[str] = SOURCES) -> dict[str, dict[str, str]]:
    """Versions of what is read, on which the paragraphs hang."""
    return {"versions": {name: platform.python_version() if name == "python" else _version(name) for name in sources}}


def _version(package: str) -> str:
    return importlib.metadata.version(importlib.metadata.packages_distributions()[package][0])
