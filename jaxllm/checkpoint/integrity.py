"""The manifest of a checkpoint: what it is of, which files it holds, and whether they are still as written."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.files import write_json

MANIFEST = "manifest.json"
# Orbax touches these after the manifest is written; restoring needs neither.
_NOT_LISTED = {MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt"}
_THREADS = 8  # hashing leaves the interpreter lock


def write_manifest(directory: Path, about: Mapping[str, Any]) -> None:
    """Write `manifest.json` of `directory`: `about`, and size and hash of every file below; whole or not at all."""
    names = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    names = [n for n in names if n not in _NOT_LISTED]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        hashes = list(pool.map(lambda n: _hash(directory / n), names))
    files = {n: [(directory / n).stat().st_size, h] for n, h in zip(names, hashes, strict=True)}
    data = {**about, "files": files}
    write_json(directory / MANIFEST, {**data, "hash": _hash_of(data)})


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
      ValueError: it is missing, cannot be read or is not what was written; the text begins with its name.
    """
    try:
        data = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        written = data.pop("hash")
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST}: is missing") from None
    except OSError as err:
        raise ValueError(f"{MANIFEST}: cannot be read ({err.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{MANIFEST}: is not valid JSON of a manifest") from None
    if _hash_of(data) != written:
        raise ValueError(f"{MANIFEST}: differs from what was written")
    return data


def problem(directory: Path, share: int = 0, shares: int = 1) -> str | None:
    """The first file of a checkpoint that is not as it was written, with what is wrong; None for a whole one.

    Args:
      directory: of the checkpoint.
      share, shares: look at every `shares`-th file only, so that several processes divide the reading.
    """
    try:
        files = read_manifest(directory)["files"]
    except ValueError as err:
        return str(err)

    def one(item: tuple[str, list[Any]]) -> str | None:
        name, (size, written) = item
        try:
            found = (directory / name).stat().st_size
            if found != size:
                return f"{name}: holds {found} bytes, {size} were written"
            return None if _hash(directory / name) == written else f"{name}: its content differs from what was written"
        except FileNotFoundError:
            return f"{name}: is missing"
        except OSError as err:
            return f"{name}: cannot be read ({err.strerror})"

    mine = sorted(files.items())[share::shares]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return next((text for text in pool.map(one, mine) if text is not None), None)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _hash_of(data: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()
