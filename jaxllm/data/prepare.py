"""The token cache: a source tokenised once, with hashes of all it was made from, mapped into memory by the loader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import ConfigError
from jaxllm.data.chat import ChatTemplate
from jaxllm.data.documents import COLUMNS, Documents, token_type, write_documents
from jaxllm.data.sources import BadRecords, data_files, file_names
from jaxllm.files import aside_directory, read_json, write_json

FORMAT = "jaxllm tokens 1"  # changes whenever the same records would give other columns
MANIFEST = "tokens.json"


def is_cache(path: str | Path) -> bool:
    """Whether `path` is a directory that `prepare` wrote."""
    return (Path(path) / MANIFEST).is_file()


def prepare(
    path: str | Path, out: str | Path, tokenizer: Tokenizer, template: Callable[[], ChatTemplate], *,
    ignore: Collection[str] = (), max_bad_share: float = 0.0,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> tuple[dict[str, Any], bool]:
    """Tokenise `path` into the cache directory `out`, unless that is there and still right.

    The cache is written beside `out` and takes its place when whole.

    Args:
      path: as for `read_records`.
      out: directory; an older cache there is replaced.
      tokenizer: turns text into ids.
      template: gives the chat template, called for chat records alone.
      ignore: fields to pass over, `*` for any.
      max_bad_share: share of records that may be unusable.
      progress: told what is done, bytes done and bytes in all.

    Returns:
      The manifest, and whether it was written now.

    Raises:
      ConfigError: bad records, a source that changes meanwhile, an `out` that holds something else.
    """
    out = Path(out)
    if is_cache(path):
        raise ConfigError(f"{path}: is a token cache already; give the records it was made from")
    if out.exists() and not is_cache(out):
        raise ConfigError(f"{out}: exists and is no token cache; choose another directory")
    size = sum(f.stat().st_size for f in data_files(path))
    made_from = {
        "format": FORMAT, "tokenizer": tokenizer_hash(tokenizer), "ignore_fields": sorted(ignore),
        "files": _hashes(path, lambda done: progress("reading", done, size))}
    place = {"path": str(Path(path).resolve()), "names": file_names(path)}
    if is_cache(out):
        try:
            manifest: Any = read_json(out / MANIFEST)
        except ConfigError:  # cut short or damaged: built again
            manifest = None
        problem = _broken(out, manifest)
        if problem is None and not _changes(manifest, made_from, template):
            BadRecords.of(manifest, str(path), max_bad_share).check(final=True)
            same = {**manifest, **place, "made_from": {**manifest["made_from"], "files": made_from["files"]}}
            if same != manifest:  # times or the place alone; the loader looks there
                write_json(out / MANIFEST, same)
            return same, False
    bad = BadRecords(str(path), max_bad_share)
    with _named(out), aside_directory(out) as directory:
        kind = _write_columns(directory, path, tokenizer, template, bad, ignore,
                              lambda done: progress("tokenising", done, size))
        moved = [f["name"] for f, now in zip(made_from["files"], _stats(path), strict=False)
                 if (f["bytes"], f["mtime_ns"]) != (now["bytes"], now["mtime_ns"])]
        if moved or len(made_from["files"]) != len(data_files(path)):
            raise ConfigError(f"{moved[0] if moved else path}: changed while it was read; run again when it is whole")
        if kind == "chat":
            made_from["chat_template"] = template_hash(template())
        columns = {name: (directory / f"{name}.bin").stat().st_size for name in COLUMNS}
        manifest = {
            "hash": content_hash(made_from), "made_from": made_from, **place, "kind": kind,
            "token_type": token_type(tokenizer), "documents": bad.good, "column_bytes": columns,
            "tokens": columns["tokens"] // np.dtype(token_type(tokenizer)).itemsize,
            "bad": bad.to_dict()}
        write_json(directory / MANIFEST, manifest)
    return manifest, True


def _write_columns(
    directory: Path, path: str | Path, tokenizer: Tokenizer, template: Callable[[], ChatTemplate], bad: BadRecords,
    ignore: Collection[str], progress: Callable[[int], None],
) -> str:
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done)

    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context((directory / f"{name}.bin").open("wb")) for name in COLUMNS}
        return write_documents(path, tokenizer, template, files, bad, ignore=ignore, advance=advance)


@contextlib.contextmanager
def _named(out: Path) -> Iterator[None]:
    """Errors of writing, such as a full disk, name the directory."""
    try:
        yield
    except OSError as err:
        if err.filename is not None:
            raise
        raise ConfigError(f"{out}: not built ({err.strerror})") from None


def open_cache(path: str | Path, tokenizer: Tokenizer, template: Callable[[], ChatTemplate | None],
               max_bad_share: float) -> tuple[Documents, BadRecords]:
    """A cache, mapped into memory.

    Sources that are still where they were read must be unchanged (by size and time, and by content where
    those differ); a cache without its sources is taken as it is. So is the `template` of one of chats when
    it gives None.

    Raises:
      ConfigError: the cache is damaged, or stale: the text says what changed.
    """
    path = Path(path)
    manifest = read_json(path / MANIFEST)
    problem = _broken(path, manifest)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}; build it again with jaxllm data prepare")
    made_from = manifest["made_from"]
    now = {**made_from, "format": FORMAT, "tokenizer": tokenizer_hash(tokenizer)}
    if Path(manifest["path"]).exists():
        now["files"] = _hashes(manifest["path"], known=made_from["files"])
    changed = _changes(manifest, now, template)
    if changed:
        raise ConfigError(f"{path}: the token cache is stale: {'; '.join(changed)}; build it again with "
                          "jaxllm data prepare")
    types = {**COLUMNS, "tokens": manifest["token_type"]}
    columns = {name: np.memmap(path / f"{name}.bin", kind, "r") if manifest["column_bytes"][name] else
               np.zeros(0, kind) for name, kind in types.items()}
    documents = Documents(manifest["kind"], **columns, names=tuple(manifest["names"]))
    return documents, BadRecords.of(manifest, str(path), max_bad_share)


def content_hash(made_from: dict[str, Any]) -> str:
    """One SHA-256 of all a cache was made from; files by name and content, so that a copy counts as the same."""
    return _hash_of({**made_from, "files": [[f["name"], f["sha256"]] for f in made_from["files"]]})


def tokenizer_hash(tokenizer: Tokenizer) -> str:
    """SHA-256 of a tokenizer's settings and vocabulary, whatever the order of its keys."""
    return _hash_of(json.loads(tokenizer.to_str()))


def template_hash(template: ChatTemplate) -> str:
    """SHA-256 of a chat template and its special tokens."""
    return _hash_of([template.source, template.special_tokens])


def _hash_of(data: Any) -> str:
    """SHA-256 of JSON data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _stats(path: str | Path) -> list[dict[str, Any]]:
    """Name below `path`, size and time of every file read."""
    root = Path(path)
    found = []
    for file in data_files(root):
        stat = file.stat()
        name = file.name if root.is_file() else str(file.relative_to(root))
        found.append({"name": name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return found


def _hashes(path: str | Path, progress: Callable[[int], None] = lambda _: None,
            known: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """`_stats` with the SHA-256 of each file, taken from `known` where size and time are the same."""
    seen = {(f["name"], f["bytes"], f["mtime_ns"]): f["sha256"] for f in known or ()}
    found, done = _stats(path), 0
    for entry, file in zip(found, data_files(path), strict=True):
        digest = seen.get((entry["name"], entry["bytes"], entry["mtime_ns"]))
        if digest is None:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entry["sha256"] = digest
        done += entry["bytes"]
        progress(done)
    return found


def _changes(manifest: dict[str, Any], now: dict[str, Any], template: Callable[[], ChatTemplate | None]) -> list[str]:
    """What a cache was made from that is different `now`, in words."""
    before = manifest["made_from"]
    changed = []
    if before["format"] != now["format"]:
        changed.append(f"the format is now {now['format']!r}, the cache is {before['format']!r}")
    if before["tokenizer"] != now["tokenizer"]:
        changed.append(f"the tokenizer is another (hash {now['tokenizer'][:12]}, cache {before['tokenizer'][:12]})")
    if before["ignore_fields"] != now["ignore_fields"]:
        changed.append(f"ignore_fields is {now['ignore_fields']}, the cache has {before['ignore_fields']}")
    if manifest["kind"] == "chat" and (known := template()) and before["chat_template"] != template_hash(known):
        changed.append("the chat template is another")
    old, new = ({f["name"]: f["sha256"] for f in made["files"]} for made in (before, now))
    root = Path(manifest["path"])
    where = {name: root / name if root.is_dir() else root for name in {*old, *new}}
    changed += [f"{where[n]} is gone" for n in old if n not in new]
    changed += [f"{where[n]} is new" for n in new if n not in old]
    changed += [f"{where[n]} changed" for n in old if n in new and old[n] != new[n]]
    return changed


def _broken(path: Path, manifest: Any) -> str | None:
    """What is wrong with a cache's own files; None if nothing is."""
    try:
        for name, size in manifest["column_bytes"].items():
            file = path / f"{name}.bin"
            if not file.is_file():
                return f"{file.name} is missing"
            if os.path.getsize(file) != size:
                return f"{file.name} has {os.path.getsize(file)} bytes, not {size}"
        needed = {"hash", "made_from", "path", "kind", "token_type", "documents", "names", "bad"} - manifest.keys()
    except (TypeError, KeyError, AttributeError):
        needed = {"column_bytes"}
    return f"{MANIFEST} lacks {sorted(needed)[0]}" if needed else None
