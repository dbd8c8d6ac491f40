"""Random-access sources of documents: tasks, JSONL, Parquet, `datasets` directories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxllm.config import ConfigError
from jaxllm.data.tasks import Task


class Source(Protocol):
    """Random access to records: `{"prompt", "response"}` or `{"text"}`."""

    def __len__(self) -> int:
        """Number of records."""
        ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The `index`-th record."""
        ...


class TaskSource:
    """The first `size` examples of a task."""

    def __init__(self, task: Task, size: int) -> None:
        """Wrap `task`."""
        self._task, self._size = task, size

    def __len__(self) -> int:
        """Number of records."""
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Prompt and response of example `index`."""
        example = self._task.example(int(index))
        return {"prompt": example.prompt, "response": example.response}


def open_source(path: str | Path) -> Sequence[dict[str, Any]] | Source:
    """Open a `.jsonl` or `.parquet` file, or a directory written by `datasets.save_to_disk`.

    Every record needs `text`, or `prompt` and `response`.

    Raises:
      ConfigError: the path is missing, of another kind, or a record is malformed (file and line named).
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"data.path={str(path)!r}: no such file or directory")
    if path.is_file() and path.suffix == ".jsonl":
        return _read_jsonl(path)
    import datasets

    if path.is_file() and path.suffix == ".parquet":
        records = datasets.Dataset.from_parquet(str(path))
    elif path.is_dir():
        try:
            records = datasets.load_from_disk(str(path))
        except (FileNotFoundError, ValueError) as err:
            raise ConfigError(f"data.path={str(path)!r}: not a datasets directory ({err})") from None
    else:
        raise ConfigError(f"data.path={str(path)!r}: expected .jsonl, .parquet or a datasets directory")
    if isinstance(records, datasets.DatasetDict):
        raise ConfigError(f"data.path={str(path)!r}: holds splits {sorted(records)}; name one of its folders")
    if len(records) == 0:
        raise ConfigError(f"{path}: holds no records")
    _check_record(records[0], f"{path}: record 0")
    return records  # type: ignore[return-value]


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    records = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: not UTF-8 text ({err.reason})") from None
    for number, line in enumerate(text.split("\n"), 1):  # other line ends may stand inside JSON strings
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as err:
            raise ConfigError(f"{path}:{number}: not valid JSON ({err})") from None
        _check_record(record, f"{path}:{number}")
        if records and ("text" in record) != ("text" in records[0]):
            raise ConfigError(f"{path}:{number}: text and prompt-response records are mixed; use one kind")
        records.append(record)
    if not records:
        raise ConfigError(f"{path}: holds no records")
    return records


def _check_record(record: Any, where: str) -> None:
    if not isinstance(record, dict) or not ("text" in record or {"prompt", "response"} <= record.keys()):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise ConfigError(f"{where}: a record needs text, or prompt and response; found {found}")
    for name in ("text",) if "text" in record else ("prompt", "response"):
        if not isinstance(record[name], str):
            raise ConfigError(f"{where}: {name} must be text, found {type(record[name]).__name__}")
