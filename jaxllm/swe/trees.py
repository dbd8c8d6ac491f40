"""Repositories in memory: file contents by relative path, read from a directory or an archive, with pytest's settings.

What a patch must not decide about itself are the tests, `conftest.py` and pytest's settings; `restore_tests` puts them
back (SWE-bench's order of steps, and what its graders were fooled by: a patch that edits what judges it).
"""

from __future__ import annotations

import configparser
import hashlib
import io
import re
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jaxllm.config import ConfigError

Tree = Mapping[str, bytes]
TEST_DIRECTORIES = ("test", "tests", "testing")
WHOLE = ("conftest.py", "pytest.ini", ".pytest.ini", "pytest.toml", ".pytest.toml")  # pytest's alone
# Files that hold pytest's settings among others: table headers that are pytest's.
SECTIONS = {"setup.cfg": r"tool:pytest", "tox.ini": r"pytest", "pyproject.toml": r"tool\s*\.\s*pytest(\s*\..*)?"}
# Read by the interpreter or by pytest before any test is.
START_UP = ("sitecustomize.py", "usercustomize.py")
LEFT_OUT = (".git", "__pycache__", ".hg", ".svn", ".tox", ".venv")


def read_tree(path: str | Path) -> dict[str, bytes]:
    """Files of a directory or of a `.tar`, `.tar.gz`, `.tgz`, `.tar.bz2`, `.tar.xz` or `.zip`, by relative path.

    A single directory that holds all of an archive (that of an sdist) is cut off. Links, version control and byte
    code are left out.

    Raises:
      ConfigError: it is missing, no archive, holds nothing, or a name in it leaves it.
    """
    path = Path(path)
    if path.is_dir():
        found = {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*"))
                 if p.is_file() and not p.is_symlink() and not any(q.is_symlink() for q in _between(p, path))}
    else:
        found = _one_root(_read_archive(path))
    found = {name: content for name, content in found.items()
             if not any(part in LEFT_OUT for part in PurePosixPath(name).parts) and not name.endswith(".pyc")}
    for name in found:
        if problem := bad_path(name):
            raise ConfigError(f"{path}: name {name!r}: {problem}")
    if not found:
        raise ConfigError(f"{path}: holds no files")
    return found


def _between(path: Path, root: Path) -> list[Path]:
    """Directories of `path` below `root`."""
    return [parent for parent in path.parents if parent != root and root in parent.parents]


def _read_archive(path: Path) -> dict[str, bytes]:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}
        with tarfile.open(path) as archive:
            found = {}
            for member in archive.getmembers():
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None:
                    found[member.name.removeprefix("./")] = stream.read()
            return found
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise ConfigError(f"{path}: neither a directory nor an archive (.tar, .tar.gz, .zip): {error}") from None


def _one_root(files: dict[str, bytes]) -> dict[str, bytes]:
    roots = {name.partition("/")[0] for name in files}
    if len(roots) == 1 and all("/" in name for name in files):
        return {name.partition("/")[2]: content for name, content in files.items()}
    return files


def write_archive(path: str | Path, tree: Tree) -> None:
    """Write a tree as a `.tar.gz` whose bytes depend on the tree alone; whole or not at all."""
    import gzip

    from jaxllm.files import aside

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(tree):
            info = tarfile.TarInfo(name)
            info.size = len(tree[name])
            archive.addfile(info, io.BytesIO(tree[name]))
    with aside(path) as temporary:
        temporary.write_bytes(gzip.compress(buffer.getvalue(), mtime=0))


def tree_hash(tree: Tree) -> str:
    """SHA-256 over names and contents, in hex."""
    total = hashlib.sha256()
    for name in sorted(tree):
        total.update(f"{name}\0{len(tree[name])}\0".encode())
        total.update(tree[name])
    return total.hexdigest()


def bad_path(name: str) -> str | None:
    """Why a path may not stand in a tree; None if it may."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or "\0" in name or "\n" in name:
        return "must be a relative path with forward slashes"
    if any(part in ("", ".", "..") for part in parts):
        return "must not hold empty parts, '.' or '..'"
    return "is version control's" if parts[0] == ".git" else None


def is_test_file(name: str) -> bool:
    """Whether a path belongs to the tests: in a directory of tests, or named as pytest finds tests."""
    path = PurePosixPath(name)
    return (any(part in TEST_DIRECTORIES for part in path.parts[:-1]) or path.name == "conftest.py"
            or re.fullmatch(r"test_.*\.py|.*_tests?\.py|tests?\.py", path.name) is not None)


def restore_tests(tree: Tree, before: Tree) -> tuple[dict[str, bytes], list[str]]:
    """Put back all that judges a patch: tests, `conftest.py`, pytest's settings, files read at the start of Python.

    Such files that the patch added are taken out. Of `setup.cfg`, `tox.ini` and `pyproject.toml` only the sections of
    pytest are put back, unless that does not give the settings back, when the whole file is.

    Args:
      tree: after the patch.
      before: before it, with the instance's own tests.

    Returns:
      The tree to run, and the paths that were put back, in order.
    """
    out, changed = dict(tree), []
    for name in sorted({*tree, *before}):
        if tree.get(name) == before.get(name):
            continue
        last = PurePosixPath(name).name
        if last in SECTIONS and not is_test_file(name):
            content = _restore_sections(last, tree.get(name), before.get(name))
        elif last in WHOLE or last in START_UP or last.endswith(".pth") or is_test_file(name):
            content = before.get(name)
        else:
            continue
        if content != tree.get(name):
            changed.append(name)
            out.pop(name, None)
            if content is not None:
                out[name] = content
    return out, changed


def _restore_sections(kind: str, now: bytes | None, before: bytes | None) -> bytes | None:
    """A file of settings with pytest's part as it was."""
    wanted = _settings(kind, before or b"")
    if now is None:  # deleted
        return before if wanted not in ({}, None) else None
    if wanted is not None and _settings(kind, now) == wanted:
        return now
    theirs = _sections(kind, now, lambda header: not header)
    ours = _sections(kind, before or b"", lambda header: header)
    mended = theirs if not ours else theirs.rstrip(b"\n") + b"\n\n" + ours
    return mended if wanted is not None and _settings(kind, mended) == wanted else before


def _settings(kind: str, content: bytes) -> Any:
    """What pytest would read; None if the file cannot be read."""
    try:
        text = content.decode()
        if kind == "pyproject.toml":
            return tomllib.loads(text).get("tool", {}).get("pytest", {})
        parser = configparser.RawConfigParser(strict=True)
        parser.read_string(text)
        name = SECTIONS[kind]
        # Values of [DEFAULT] show in every section, so that they are among what is compared.
        return {name: dict(parser.items(name))} if parser.has_section(name) else {}
    except (ValueError, configparser.Error):
        return None


def _sections(kind: str, content: bytes, keep: Callable[[bool], bool]) -> bytes:
    """The lines of sections that `keep` takes, which is told whether one is pytest's."""
    header = re.compile(rb"\s*\[+\s*(?:" + SECTIONS[kind].encode() + rb")\s*\]+\s*(#.*)?")
    mine, out = False, []
    for line in content.splitlines(keepends=True):
        if re.match(rb"\s*\[", line) and re.fullmatch(rb"\s*\[[^=]*\]\s*(#.*)?\s*", line):
            mine = header.fullmatch(line.strip()) is not None
        if keep(mine):
            out.append(line)
    return b"".join(out)
