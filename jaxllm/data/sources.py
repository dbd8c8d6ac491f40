"""Records from files, one after another: JSONL, Parquet, directories of such, `datasets` directories.

What cannot be read is yielded as a `Record` with a `problem`, so that the caller counts it in
`BadRecords` and decides whether the run goes on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, nearest
from jaxllm.data.tasks import Task

# Kind of record -> fields it must have, fields it may have.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text": (("text",), ()), "prompt": (("prompt", "response"), ()), "chat": (("messages",), ("tools",)),
    "preference": (("prompt", "chosen", "rejected"), ())}
SUFFIXES = (".jsonl", ".parquet")
BATCH = 1024  # rows read at once
SHOWN = 5  # bad records that an error lists


class TaskSource:
    """The first `size` examples of a task, by index."""

    def __init__(self, task: Task, size: int) -> None:
        """Wrap `task`."""
        self._task, self._size = task, size

    def __len__(self) -> int:
        """Number of records."""
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Prompt, response and its pieces, if any, of example `index`."""
        example = self._task.example(int(index))
        return {"prompt": example.prompt, "response": example.response, "pieces": example.pieces}


@dataclasses.dataclass(frozen=True)
class Record:
    """One record, or what stands where one should be.

    Attributes:
      file: index into `data_files(path)`.
      line: number of its line or row, from 1.
      fields: the record as read, not checked; None with a `problem`.
      problem: why it cannot be read.
      count: records that the problem takes away; None for all of a file that cannot be opened.
    """

    file: int
    line: int
    fields: Any = None
    problem: str | None = None
    count: int | None = 1


class BadRecords:
    """Counts and names the records of one source that cannot be used."""

    def __init__(self, source: str, max_share: float) -> None:
        """Nothing bad yet; `max_share` of the records may be."""
        self.source, self.max_share = source, max_share
        self.count, self.good, self.first = 0, 0, list[str]()
        self._lost_bytes, self._other_bytes = 0, 0

    def add(self, where: str, why: str, count: int = 1) -> None:
        """`count` bad records."""
        self.count += count
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {why}")

    def add_file(self, where: str, why: str, lost_bytes: int, all_bytes: int) -> None:
        """A file that cannot be opened; it counts for as many records as its bytes hold elsewhere."""
        self.add(where, why, 0)
        self._lost_bytes += lost_bytes
        self._other_bytes = all_bytes - self._lost_bytes

    def to_dict(self) -> dict[str, Any]:
        """What `of` builds from."""
        return {"count": self.count, "first": self.first, "lost_bytes": self._lost_bytes,
                "other_bytes": self._other_bytes}

    @classmethod
    def of(cls, manifest: dict[str, Any], source: str, max_share: float) -> BadRecords:
        """The records that were bad when a cache was built."""
        new, data = cls(source, max_share), manifest["bad"]
        new.count, new.good, new.first = data["count"], manifest["documents"], list(data["first"])
        new._lost_bytes, new._other_bytes = data["lost_bytes"], data["other_bytes"]
        return new

    @property
    def share(self) -> float:
        """Bad records among all."""
        seen = self.count + self.good
        if not seen:
            return 1.0 if self.first else 0.0
        lost = self._lost_bytes * seen / max(self._other_bytes, 1)
        return (self.count + lost) / (seen + lost)

    def summary(self) -> str:
        """How many, of how many, and the first few by name."""
        more = ", ..." if self.count > len(self.first) else ""
        return (f"{self.source}: {self.count} of {self.count + self.good} records ({self.share:.2%}) cannot be used: "
                f"{'; '.join(self.first)}{more}")

    def check(self, *, final: bool) -> None:
        """Stop when too many are bad; before the end only where none may be.

        Raises:
          ConfigError: the share exceeds `max_share`, or nothing is left.
        """
        if self.first and (self.max_share == 0 or (final and self.share > self.max_share)):
            raise ConfigError(f"{self.summary()}; data.max_bad_share={self.max_share:g} allows "
                              f"{'none' if self.max_share == 0 else f'{self.max_share:.2%}'}: mend them or raise it")
        if final and self.good == 0:
            raise ConfigError(f"{self.summary() if self.first else f'{self.source}: holds no records'}")


def data_files(path: str | Path) -> list[Path]:
    """The files that `path` stands for, in reading order: itself, the shards below it, a `datasets` directory's files.

    Raises:
      ConfigError: the path is missing, of another kind, or an empty directory.
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"data.path={str(path)!r}: no such file or directory")
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ConfigError(f"data.path={str(path)!r}: expected .jsonl, .parquet, a directory of such files, a "
                              "datasets directory or a token cache")
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(p.name for p in path.iterdir() if p.is_dir())
        raise ConfigError(f"data.path={str(path)!r}: holds splits {splits}; name one of its folders")
    if _is_datasets(path):
        return [path / "state.json", *sorted(path.glob("*.arrow"))]
    files = sorted(p for suffix in SUFFIXES for p in path.rglob(f"*{suffix}") if p.is_file())
    if not files:
        raise ConfigError(f"data.path={str(path)!r}: holds no .jsonl or .parquet files and is no datasets directory "
                          "or token cache")
    return files


def file_names(path: str | Path) -> list[str]:
    """The names of `data_files(path)` in messages; rows of a `datasets` directory count through all of its files."""
    path = Path(path)
    files = data_files(path)
    return [str(path)] if path.is_dir() and _is_datasets(path) else [str(file) for file in files]


def read_records(path: str | Path, advance: Callable[[int], None] = lambda _: None) -> Iterator[Record]:
    """Every record of `path` in order; `advance` is told the bytes read."""
    path = Path(path)
    files = data_files(path)
    if path.is_dir() and _is_datasets(path):
        yield from _read_datasets(path, sum(f.stat().st_size for f in files), advance)
        return
    for number, file in enumerate(files):
        yield from (_read_jsonl if file.suffix == ".jsonl" else _read_parquet)(number, file, advance)


def kind_of(fields: Any) -> str | None:
    """The key of `KINDS` by the fields that are there; None for none."""
    if not isinstance(fields, dict):
        return None
    return next((kind for kind, (needed, _) in KINDS.items() if set(needed) <= fields.keys()), None)


def problem_of(fields: Any, kind: str | None, ignore: Collection[str]) -> str | None:
    """What is wrong with a record in a source of `kind` records (None before the first); None if nothing is."""
    mine = kind_of(fields)
    if mine is None:
        found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
        return f"a record needs text, prompt and response, messages, or prompt, chosen and rejected; found {found}"
    if kind is not None and mine != kind:
        return f"{mine} and {kind} records are mixed; use one kind"
    needed, optional = KINDS[mine]
    if "*" not in ignore:
        unknown = sorted(fields.keys() - {*needed, *optional, *ignore})
        if unknown:
            return (f"unknown field {unknown[0]!r} in a {mine} record; {nearest(unknown[0], (*needed, *optional))} "
                    "(data.ignore_fields lists those to pass over)")
    if mine == "chat":
        return _chat_problem(fields)
    for name in needed:
        if not isinstance(fields[name], str):
            return f"{name} must be text, found {type(fields[name]).__name__}"
        if not is_encodable(fields[name]):
            return f"{name} holds half a surrogate pair, which is no character"
    for name in needed[1:] or needed:
        if not fields[name].strip():
            return f"{name} is empty"
    if mine == "preference" and fields["chosen"] == fields["rejected"]:
        return "chosen and rejected are the same text, which says nothing"
    return None


def is_encodable(text: str) -> bool:
    r"""Whether `text` is Unicode that tokenizers take; JSON may hold a lone `\ud800`."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _chat_problem(fields: dict[str, Any]) -> str | None:
    messages, tools = fields["messages"], fields.get("tools")
    if not isinstance(messages, list) or not messages:
        return f"messages must be a list of turns, found {'none' if messages == [] else type(messages).__name__}"
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return f"messages[{number}]: a turn needs a role and content"
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
            return f"messages[{number}]: content must be text, found {type(content).__name__}"
    if not any(m["role"] == "assistant" for m in messages):
        return "messages: no assistant turn to learn"
    if tools is not None and not (isinstance(tools, list) and all(isinstance(t, dict) for t in tools)):
        return "tools must be a list of JSON schemas"
    return None


def _is_datasets(path: Path) -> bool:
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def _read_jsonl(number: int, file: Path, advance: Callable[[int], None]) -> Iterator[Record]:
    with file.open("rb") as lines:  # bytes: only \n ends a line, others may stand inside JSON strings
        for line, data in enumerate(lines, 1):
            advance(len(data))
            if not data.strip():
                continue
            try:
                yield Record(number, line, json.loads(data.decode("utf-8")))
            except UnicodeDecodeError as err:
                yield Record(number, line, problem=f"not UTF-8 text ({err.reason})")
            except (ValueError, RecursionError) as err:
                yield Record(number, line, problem=f"not valid JSON ({err})")


def _read_parquet(number: int, file: Path, advance: Callable[[int], None]) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    size = file.stat().st_size
    try:
        opened = pyarrow.parquet.ParquetFile(file, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as err:
        advance(size)
        yield Record(number, 1, problem=f"not a readable Parquet file ({_brief(err)})", count=None)
        return
    with opened:
        rows, line = opened.metadata.num_rows, 0
        for group in range(opened.num_row_groups):
            end = line + opened.metadata.row_group(group).num_rows
            try:
                for batch in opened.iter_batches(BATCH, row_groups=[group]):
                    for fields in batch.to_pylist():
                        line += 1
                        yield Record(number, line, _without_nulls(fields))
                    advance(size * batch.num_rows // max(rows, 1))
            except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as err:
                yield Record(number, line + 1, count=end - line,
                             problem=f"rows {line + 1} to {end} of row group {group} cannot be read ({_brief(err)})")
            line = end


def _read_datasets(path: Path, size: int, advance: Callable[[int], None]) -> Iterator[Record]:
    import datasets
    import pyarrow

    if not any(path.glob("*.arrow")):
        return  # saved empty; the library cannot open it
    try:
        records = datasets.load_from_disk(str(path))
    except (ValueError, LookupError, OSError, pyarrow.ArrowException) as err:
        yield Record(0, 1, problem=f"not a readable datasets directory ({_brief(err)})", count=None)
        return
    total, line = len(records), 0
    try:
        while line < total:
            columns: Any = records[line:line + BATCH]
            for values in zip(*columns.values(), strict=True):
                line += 1
                yield Record(0, line, _without_nulls(dict(zip(columns, values, strict=True))))
            advance(size * BATCH // total)
    except (ValueError, OSError, pyarrow.ArrowException) as err:
        yield Record(0, line + 1, problem=f"rows {line + 1} to {total} cannot be read ({_brief(err)})",
                     count=total - line)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    """Columns give every row every field, null where it has none; so do the turns of `messages`."""
    out = {name: value for name, value in fields.items() if value is not None}
    if isinstance(out.get("messages"), list):
        out["messages"] = [{k: v for k, v in m.items() if v is not None} if isinstance(m, dict) else m
                           for m in out["messages"]]
    return out


def _brief(err: BaseException) -> str:
    return " ".join(str(err).split())[:160]
