"""Texts of an episode to look at and to edit, and a corpus to search; in memory, nothing of the host's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.agents.tools import Answer, Tool
from jaxllm.config import ConfigError, check, nearest

LINES = 200  # shown at once
SHOWN = 600  # characters of a passage that was found


def file_tools(files: dict[str, str]) -> list[Tool]:
    """`view_file` and `edit_file` over an episode's own texts, which they change in place."""
    def missing(path: str) -> Answer:
        return Answer(f"Error: no file {path!r}; {nearest(path, files) if files else 'there are none'}", "failed")

    def view(arguments: Mapping[str, Any]) -> Answer:
        path = arguments["path"]
        if path == ".":
            return Answer("\n".join(sorted(files)) or "(no files)")
        if path not in files:
            return missing(path)
        lines = files[path].splitlines()
        first = arguments.get("first", 1)
        last = min(arguments.get("last", first + LINES - 1), len(lines), first + LINES - 1)
        if first > max(len(lines), 1):
            return Answer(f"Error: {path} has {len(lines)} lines", "failed")
        shown = [f"{number:5d}  {lines[number - 1]}" for number in range(first, last + 1)]
        more = [] if last >= len(lines) else [f"[{len(lines) - last} more lines]"]
        return Answer("\n".join([*shown, *more]) or "(empty)")

    def edit(arguments: Mapping[str, Any]) -> Answer:
        path, old, new = arguments["path"], arguments["old"], arguments["new"]
        if not old:
            if path in files:
                return Answer(f"Error: {path} exists; an empty old makes a new file", "failed")
            files[path] = new
            return Answer(f"made {path}")
        if path not in files:
            return missing(path)
        count = files[path].count(old)
        if count != 1:
            return Answer(f"Error: old stands {count} times in {path}; it must stand exactly once", "failed")
        files[path] = files[path].replace(old, new)
        return Answer(f"edited {path}")

    line = {"type": "integer", "minimum": 1}
    return [Tool("view_file", "Shows lines of a file; path '.' lists all files.",
                 {"type": "object", "properties": {"path": {"type": "string"}, "first": line, "last": line},
                  "required": ["path"], "additionalProperties": False}, view),
            Tool("edit_file", "Replaces old, which must stand exactly once in the file, by new; an empty old makes a "
                 "new file.", {"type": "object", "properties": {n: {"type": "string"} for n in ("path", "old", "new")},
                               "required": ["path", "old", "new"], "additionalProperties": False}, edit)]


class Corpus:
    """Passages and their BM25 index (Robertson; Lucene's variant, by the bm25s package)."""

    def __init__(self, passages: Sequence[Mapping[str, str]], source: str = "corpus") -> None:
        """Index passages of `text` and, if they have one, `title`.

        Raises:
          ConfigError: there are none, or one has no text.
        """
        import bm25s

        check(len(passages) > 0, source, 0, "holds no passages")
        for number, passage in enumerate(passages, 1):
            check(isinstance(passage.get("text"), str), f"{source}:{number}", dict(passage), "needs a text")
        self.passages = list(passages)
        texts = [f"{p.get('title', '')} {p['text']}" for p in passages]
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    @classmethod
    def read(cls, path: str | Path) -> Corpus:
        """A JSONL of `text` and `title`."""
        from jaxllm.files import read_jsonl

        if not Path(path).is_file():
            raise ConfigError(f"{path}: no such file; expected JSONL of text and title")
        return cls(read_jsonl(Path(path)), str(path))

    def find(self, query: str, count: int) -> list[tuple[int, float]]:
        """Number and score of the best passages, those without a word of the query left out."""
        import bm25s

        words = bm25s.tokenize(query, show_progress=False, return_ids=False)
        if not words[0]:
            return []
        found, scores = self._index.retrieve(words, k=min(count, len(self.passages)), show_progress=False)
        return [(int(i), float(s)) for i, s in zip(found[0], scores[0], strict=True) if s > 0]


def search_tool(corpus: Corpus, count: int = 3) -> Tool:
    """Searches a corpus by words."""
    def run(arguments: Mapping[str, Any]) -> Answer:
        found = corpus.find(arguments["query"], count)
        if not found:
            return Answer("nothing found")
        parts = []
        for number, _ in found:
            passage = corpus.passages[number]
            title = f"{passage['title']}\n" if passage.get("title") else ""
            parts.append(f"[{number}] {title}{passage['text'][:SHOWN]}")
        return Answer("\n\n".join(parts), about={"found": [n for n, _ in found]})

    return Tool("search", "Finds passages by words.", {"type": "object", "properties": {"query": {"type": "string"}},
                                                       "required": ["query"], "additionalProperties": False}, run)
