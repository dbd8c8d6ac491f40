"""What a model's reply holds: SEARCH/REPLACE blocks, and paths in a fence (Kimi-Dev, arXiv 2509.23045, section 2).

    ### path/to/file.py
    <<<<<<< SEARCH
    lines as they stand
    =======
    lines in their place
    >>>>>>> REPLACE
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jaxllm.swe.diffs import PatchError, text_of
from jaxllm.swe.trees import Tree, bad_path

SEARCH = re.compile(r"<{5,9} ?SEARCH\s*")
MIDDLE = re.compile(r"={5,9}\s*")
REPLACE = re.compile(r">{5,9} ?REPLACE\s*")
HEADING = re.compile(r"#{3}\s+[`*]*([^`*\s](?:[^`*]*[^`*\s])?)[`*]*\s*")


@dataclasses.dataclass(frozen=True)
class Block:
    """One replacement: `search` must stand exactly once in the file; empty, it makes a new file."""

    path: str
    search: str
    replace: str


def answer_of(reply: str) -> str:
    """What follows the thinking; all of it where there is none. Thinking that never ends leaves nothing."""
    head, mark, tail = reply.rpartition("</think>")
    if mark:
        return tail
    return "" if "<think>" in reply else reply


def read_blocks(text: str) -> list[Block]:
    """Blocks of a reply, in order; each heads with its path, or goes on with that of the block before.

    Raises:
      PatchError: names the line: a block without a path, one that does not end, or a path that leaves the tree.
    """
    blocks, path, at, lines = [], None, 0, text.replace("\r\n", "\n").split("\n")
    while at < len(lines):
        if heading := HEADING.fullmatch(lines[at]):
            path = heading[1]
        elif SEARCH.fullmatch(lines[at]):
            begun = at + 1
            if path is None:
                raise PatchError(f"reply line {begun}: a SEARCH block without '### PATH' before it")
            if problem := bad_path(path):
                raise PatchError(f"reply line {begun}: path {path!r}: {problem}")
            middle = _find(lines, MIDDLE, begun, begun, "=======")
            end = _find(lines, REPLACE, middle + 1, begun, ">>>>>>> REPLACE")
            search, replace = ("".join(f"{line}\n" for line in part)
                               for part in (lines[begun:middle], lines[middle + 1:end]))
            blocks.append(Block(path, search, replace))
            at = end
        at += 1
    return blocks


def _find(lines: Sequence[str], mark: re.Pattern[str], start: int, begun: int, name: str) -> int:
    for at in range(start, len(lines)):
        if mark.fullmatch(lines[at]):
            return at
        if SEARCH.fullmatch(lines[at]):
            break
    raise PatchError(f"reply line {begun}: the SEARCH block that begins here has no line {name!r}")


def apply_blocks(tree: Tree, blocks: Sequence[Block]) -> dict[str, bytes]:
    """A tree with replacements made one after another.

    Lines are compared whole and exactly. A file with `\\r\\n` keeps them; one whose last line has no newline too.

    Raises:
      PatchError: a file is missing, or the text stands there never or more than once. Nothing is applied then.
    """
    out = dict(tree)
    for number, block in enumerate(blocks, 1):
        where = f"{block.path}: block {number}"
        if not block.search.strip("\n"):
            if block.path in out:
                raise PatchError(f"{where}: SEARCH is empty and the file exists; quote the lines that change")
            out[block.path] = block.replace.encode("utf-8", "surrogatepass")
            continue
        text = text_of(out, block.path)
        windows = "\r\n" in text and "\n" not in text.replace("\r\n", "")
        text = text.replace("\r\n", "\n") if windows else text
        whole = text if text.endswith("\n") else text + "\n"
        places = [at for at in _places(whole, block.search) if at == 0 or whole[at - 1] == "\n"]
        if len(places) != 1:
            lines = [whole.count("\n", 0, at) + 1 for at in places]
            first = block.search.strip().split("\n")[0]
            raise PatchError(f"{where}: SEARCH text, {first!r} first, " + (
                f"stands {len(places)} times (lines {', '.join(map(str, lines))}); quote more lines around it" if lines
                else "does not stand in the file; it must match line for line, indentation included"))
        new = whole[:places[0]] + block.replace + whole[places[0] + len(block.search):]
        if whole != text:
            new = new.removesuffix("\n")
        out[block.path] = (new.replace("\n", "\r\n") if windows else new).encode("utf-8", "surrogatepass")
    return out


def _places(text: str, part: str) -> list[int]:
    found, at = [], text.find(part)
    while at >= 0:
        found.append(at)
        at = text.find(part, at + 1)
    return found


def read_paths(text: str, known: Sequence[str], most: int = 5) -> list[str]:
    """Paths of the last fenced block that holds any, in order, without repeats; only those that are `known`.

    Args:
      text: a reply.
      known: paths of the tree.
      most: that are taken.
    """
    there, best = set(known), []
    for block in re.findall(r"^```[^\n`]*\n(.*?)^```", text, re.M | re.S):
        named = [re.sub(r"^(?:[-*]|\d+[.)])\s+", "", line.strip()).strip("`'\" ").removeprefix("./")
                 for line in block.split("\n")]
        found = list(dict.fromkeys(path for path in named if path in there))
        best = found or best
    return best[:most]
