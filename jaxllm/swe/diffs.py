"""Unified diffs between trees: written, read, applied without fuzz.

A hunk must match line for line at its stated place, or at exactly one other place of the file. What does not apply
raises `PatchError`, which says where and why; nothing is applied then.
"""

from __future__ import annotations

import codecs
import dataclasses
import difflib
import re

from jaxllm.swe.trees import Tree, bad_path

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NO_NEWLINE = "\\ No newline at end of file"


class PatchError(ValueError):
    """A patch cannot be read, or does not fit the tree."""


@dataclasses.dataclass(frozen=True)
class Hunk:
    """Lines of one place, `kind` first: ` ` stays, `-` goes, `+` comes. Lines hold their newline, if they have one.

    Attributes:
      start: first line of the old file, from 1; 0 for none.
      lines: (kind, text).
      number: line of the patch.
    """

    start: int
    lines: tuple[tuple[str, str], ...]
    number: int

    @property
    def old(self) -> list[str]:
        """What must stand there."""
        return [text for kind, text in self.lines if kind != "+"]

    @property
    def new(self) -> list[str]:
        """What stands there afterwards."""
        return [text for kind, text in self.lines if kind != "-"]


@dataclasses.dataclass(frozen=True)
class FileChange:
    """Changes of one file; `old` is None for a new one, `new` for one that goes."""

    old: str | None
    new: str | None
    hunks: tuple[Hunk, ...]


def split_lines(text: str) -> list[str]:
    """Lines with their newlines; only `\\n` ends one, as for `git` and `patch`."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def write_diff(before: Tree, after: Tree, context: int = 3) -> str:
    """A unified diff in `git`'s form; empty for equal trees.

    Raises:
      PatchError: a changed file is not UTF-8 text.
    """
    parts = []
    for name in sorted({*before, *after}):
        if before.get(name) == after.get(name):
            continue
        old, new = (split_lines(text_of(tree, name)) if name in tree else [] for tree in (before, after))
        parts.append(f"diff --git {_quoted(f'a/{name}')} {_quoted(f'b/{name}')}\n")
        if name not in before:
            parts.append("new file mode 100644\n")
        elif name not in after:
            parts.append("deleted file mode 100644\n")
        here = [_quoted(f"a/{name}") if name in before else "/dev/null",
                _quoted(f"b/{name}") if name in after else "/dev/null"]
        here = [f"{path}\t" if " " in path else path for path in here]
        for line in difflib.unified_diff(old, new, *here, n=context):
            if not line.endswith("\n"):
                line = f"{line}\n{NO_NEWLINE}\n"
            parts.append(line)
    return "".join(parts)


def text_of(tree: Tree, name: str) -> str:
    """A file's text.

    Raises:
      PatchError: it is not there, or not UTF-8.
    """
    if name not in tree:
        raise PatchError(f"{name}: no such file")
    try:
        return tree[name].decode()
    except UnicodeDecodeError:
        raise PatchError(f"{name}: not UTF-8 text, which a patch cannot change") from None


def _quoted(path: str) -> str:
    """As `git` writes names that hold quotes, backslashes, control or non-ASCII characters."""
    data = path.encode()
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in data):
        return path
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in data) + '"'


def _unquoted(path: str) -> str:
    if len(path) >= 2 and path[0] == path[-1] == '"':
        try:
            return codecs.escape_decode(path[1:-1].encode())[0].decode()  # type: ignore[attr-defined]
        except ValueError:
            raise PatchError(f"name {path}: cannot be read") from None
    return path


def _name(text: str, number: int) -> str | None:
    """Path of a `---` or `+++` line; None for /dev/null."""
    path = _unquoted(text.split("\t")[0].strip())
    if path == "/dev/null":
        return None
    path = path[2:] if path[:2] in ("a/", "b/") else path
    if problem := bad_path(path):
        raise PatchError(f"patch line {number}: path {path!r}: {problem}")
    return path


def read_diff(patch: str) -> list[FileChange]:
    """Files of a unified diff, with or without `git`'s own lines.

    Raises:
      PatchError: names the line of the patch.
    """
    lines, found, at = split_lines(patch), [], 0
    header: dict[str, str] = {}
    while at < len(lines):
        line = lines[at].rstrip("\n")
        if line.startswith("diff --git "):
            found += _bare(header)
            header = {"git": line, "number": str(at + 1)}
        elif match := re.match(r"(new file|deleted file|rename from|rename to|similarity)\b ?(.*)", line):
            header[match[1]] = match[2]
        elif line.startswith(("GIT binary patch", "Binary files ")):
            raise PatchError(f"patch line {at + 1}: binary changes cannot be applied")
        elif line.startswith("copy from "):
            raise PatchError(f"patch line {at + 1}: copies are not understood; write the new file out")
        elif line.startswith("--- ") and at + 1 < len(lines) and lines[at + 1].startswith("+++ "):
            old, new = _name(line[4:], at + 1), _name(lines[at + 1][4:].rstrip("\n"), at + 2)
            at, hunks = _hunks(lines, at + 2)
            if old is None and new is None:
                raise PatchError(f"patch line {at}: both names are /dev/null")
            found.append(FileChange(old, new, tuple(hunks)))
            header = {}
            continue
        elif line.startswith("@@ "):
            raise PatchError(f"patch line {at + 1}: a hunk without the two lines '--- a/PATH' and '+++ b/PATH' before")
        at += 1
    return found + _bare(header)


def _bare(header: dict[str, str]) -> list[FileChange]:
    """A change that `git` writes without hunks: an empty file made or removed, a renaming."""
    if not header or not {"new file", "deleted file", "rename to"} & set(header):
        return []
    number = int(header.get("number", 0))
    if "rename to" in header:
        return [FileChange(_name(f"a/{_unquoted(header['rename from'])}", number),
                           _name(f"b/{_unquoted(header['rename to'])}", number), ())]
    names = header["git"].removeprefix("diff --git ")
    path = _name(names[:(len(names) - 1) // 2], number)
    return [FileChange(None, path, ())] if "new file" in header else [FileChange(path, None, ())]


def _hunks(lines: list[str], at: int) -> tuple[int, list[Hunk]]:
    hunks = []
    while at < len(lines) and (match := HUNK.match(lines[at])):
        number, start = at + 1, int(match[1])
        old, new = (int(match[i]) if match[i] is not None else 1 for i in (2, 4))
        at, body = at + 1, []
        while old > 0 or new > 0:
            line = lines[at] if at < len(lines) else ""
            kind = " " if line in ("\n", "\r\n") else line[:1]  # mail programs drop a lone space
            if kind not in (" ", "-", "+"):
                raise PatchError(f"patch line {at + 1}: hunk of line {number} lacks {old} old and {new} new lines")
            text = line if line in ("\n", "\r\n") else line[1:]
            old, new = old - (kind != "+"), new - (kind != "-")
            at += 1
            if at < len(lines) and lines[at].startswith("\\"):
                text, at = text.removesuffix("\n"), at + 1
            elif not text.endswith("\n"):
                text += "\n"  # the patch's own last line
            body.append((kind, text))
        if old or new:
            raise PatchError(f"patch line {number}: hunk has more lines than it states")
        hunks.append(Hunk(start, tuple(body), number))
    return at, hunks


def apply_diff(tree: Tree, patch: str) -> dict[str, bytes]:
    """A tree with a unified diff applied.

    Raises:
      PatchError: it cannot be read, holds no change, or one does not fit.
    """
    changes = read_diff(patch)
    if not changes:
        raise PatchError("patch: holds no change; expected a unified diff with '--- a/PATH', '+++ b/PATH' and '@@'")
    out = dict(tree)
    for change in changes:
        if change.old is None:
            assert change.new is not None
            if change.new in out:
                raise PatchError(f"{change.new}: is to be made, and is there")
            lines: list[str] = []
        else:
            lines = split_lines(text_of(out, change.old)) if change.hunks or change.old in out else []
            if change.old not in out:
                raise PatchError(f"{change.old}: no such file")
        for path in (change.old, change.new):
            if path is not None and any(str(parent) in out for parent in _parents(path)):
                raise PatchError(f"{path}: a file stands where its directory would be")
        lines = _apply(lines, change.hunks, change.old or str(change.new))
        if change.new is None and lines:
            raise PatchError(f"{change.old}: is to be removed, and the patch does not hold all its lines")
        if change.old is not None:
            del out[change.old]
        if change.new is not None:
            if change.new in out:
                raise PatchError(f"{change.new}: is to be made by renaming, and is there")
            out[change.new] = "".join(lines).encode()
    return out


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


def _apply(lines: list[str], hunks: tuple[Hunk, ...], name: str) -> list[str]:
    out, at, shift = [], 0, 0  # `at`: first line that is not in `out` yet
    for hunk in hunks:
        stated = hunk.start - 1 if hunk.old else hunk.start  # an insertion names the line before it
        place = stated + shift
        if place < at or lines[place:place + len(hunk.old)] != hunk.old:
            fits = [i for i in range(at, len(lines) - len(hunk.old) + 1)
                    if lines[i:i + len(hunk.old)] == hunk.old] if hunk.old else []
            if len(fits) != 1:
                raise PatchError(f"{name}: hunk of patch line {hunk.number} fits neither at line {hunk.start} nor at "
                                 f"exactly one other place ({len(fits)} places); line {hunk.start} is "
                                 f"{lines[place].rstrip() if 0 <= place < len(lines) else 'past the end'!r}")
            place = fits[0]
        if place > len(lines):
            raise PatchError(f"{name}: hunk of patch line {hunk.number} starts at line {hunk.start} of {len(lines)}")
        shift = place - stated
        out += lines[at:place] + hunk.new
        at = place + len(hunk.old)
    return out + lines[at:]
