"""Files written aside and renamed, so that a killed process leaves no half-written one."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError


@contextlib.contextmanager
def aside(path: str | Path) -> Iterator[Path]:
    """A path to write to beside `path`; takes its place when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: writers such as matplotlib choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def aside_directory(path: str | Path) -> Iterator[Path]:
    """A new directory beside `path`; takes its place, also an older one's, when the block ends without an error.

    What a killed process of this machine left beside `path` is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    for left in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(host)}.*.aside"):
        if not _runs(left.name.rsplit(".", 2)[1]):
            shutil.rmtree(left, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{host}.{os.getpid()}.aside")
    shutil.rmtree(temporary, ignore_errors=True)
    new, old = temporary / "new", temporary / "old"
    new.mkdir(parents=True)
    try:
        yield new
        if path.exists():
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _runs(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except PermissionError:  # another user's
        return True
    except (ProcessLookupError, ValueError):
        return False
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(data, indent=1, default=str) + "\n")


def read_json(path: str | Path) -> Any:
    """Contents of a JSON file.

    Raises:
      ConfigError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror})") from None
    except ValueError as err:  # bad JSON, bad UTF-8
        raise ConfigError(f"{path}: not valid JSON ({err})") from None


def write_jsonl(path: str | Path, lines: list[dict[str, Any]]) -> None:
    """Write records, whole or not at all."""
    with aside(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Records of a JSONL file; a last line cut short by a kill is dropped."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
