"""Blocks of records from JSONL and Parquet shards as columns, with the bytes they came from; malformed records by name.

A block of JSONL is read by Arrow at once. Where that fails, its lines are read one by one, so that one bad line costs
its block's speed and nothing else; what the two ways make of a good line is the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet

from jaxllm.config import ConfigError

BLOCK = 8 << 20  # bytes of JSONL at once
ROWS = 16384  # of Parquet
LARGEST = 1 << 30  # a line beyond this is malformed
_SPACE = np.zeros(256, bool)
_SPACE[[9, 10, 11, 12, 13, 32]] = True


@dataclasses.dataclass(frozen=True)
class Fields:
    """Where things stand in a record.

    Attributes:
      text: field of the text.
      popularity: number fields that are added up; a record that has none of them is malformed. Empty: popularity is 0.
    """

    text: str = "text"
    popularity: tuple[str, ...] = ("likes", "retweets", "replies", "quotes")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A record that cannot be judged: its line or row from 1, and why."""

    line: int
    why: str


@dataclasses.dataclass(frozen=True)
class Block:
    """Records in order.

    Attributes:
      lines: int64 [B], line or row of each good record, from 1.
      texts: Arrow strings [B].
      popularity: float64 [B].
      problems: records left out.
      bytes: of the file that the block took.
      source: JSONL: the block's bytes; Parquet: its rows as a table.
      spans: JSONL: int64 [B, 2], first and end byte of each record in `source`; Parquet: [B, 2] row and row + 1.
    """

    lines: np.ndarray
    texts: pa.Array
    popularity: np.ndarray
    problems: tuple[Problem, ...]
    bytes: int
    source: bytes | pa.Table
    spans: np.ndarray


def shards(paths: Sequence[str | Path]) -> list[Path]:
    """The `.jsonl` and `.parquet` files of paths, directories searched, in order of names.

    Raises:
      ConfigError: a path that is not there, a directory without such files, or two files of one name.
    """
    out: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in (".jsonl", ".parquet"))
            if not found:
                raise ConfigError(f"{path}: no .jsonl or .parquet file in it")
            out += found
        elif path.suffix not in (".jsonl", ".parquet"):
            raise ConfigError(f"{path}: neither .jsonl nor .parquet")
        elif not path.exists():
            raise ConfigError(f"{path}: no such file")
        else:
            out.append(path)
    names = [p.name for p in out]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise ConfigError(f"two shards are named {twice[0]}; results lie beside each other by name, so run them apart")
    return out


def read_blocks(path: Path, fields: Fields = Fields(), size: int = BLOCK) -> Iterator[Block]:  # noqa: B008 - frozen
    """Blocks of a shard in order.

    Args:
      path: `.jsonl` or `.parquet`.
      fields: of a record.
      size: bytes of JSONL at once; results do not depend on it.

    Raises:
      ConfigError: a Parquet file that cannot be read, or has no such column.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path, fields)
        return
    line = 1
    with path.open("rb") as file:
        rest = b""
        while True:
            data = file.read(size)
            whole = rest + data
            if data:
                end = whole.rfind(b"\n") + 1
                if not end:
                    rest = whole
                    continue
                whole, rest = whole[:end], whole[end:]
            if whole:
                block = _jsonl(whole, line, fields)
                line += whole.count(b"\n")
                yield block
            if not data:
                return


def _jsonl(data: bytes, first: int, fields: Fields) -> Block:
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10)
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    starts = np.concatenate([[0], ends[:-1] + 1])
    full = ends - starts > 2  # shorter ones hold no record; whether they are blank matters below alone
    short = np.flatnonzero(~full)
    blank = np.zeros(len(starts), bool)
    blank[short] = [not data[starts[i]:ends[i]].strip() for i in short]
    rows = np.flatnonzero(~blank)
    spans = np.stack([starts[rows], ends[rows]], 1)
    if not len(rows):
        return Block(rows, pa.array([], pa.string()), np.zeros(0), (), len(data), data, spans)
    try:
        read = _by_arrow(data, fields)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        read = None
    if read is None or len(read[0]) != len(rows):
        texts, popularity, problems, good = _by_line(data, spans, rows + first, fields)
    else:
        texts, popularity, problems, good = _usable(*read, rows + first, fields)
    return Block(rows[good] + first, texts, popularity, problems, len(data), data, spans[good])


def _by_arrow(data: bytes, fields: Fields) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Texts with nulls, popularity, and whether a record has any number of it."""
    schema = pa.schema([(fields.text, pa.string()), *((name, pa.float64()) for name in fields.popularity)])
    table = pyarrow.json.read_json(
        pa.BufferReader(data), read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
        parse_options=pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"))
    return _columns(table, fields)


def _columns(table: pa.Table, fields: Fields) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    texts = table[fields.text].combine_chunks()
    total = np.zeros(len(table))
    has = np.full(len(table), not fields.popularity)
    for name in fields.popularity:
        column = table[name].combine_chunks()
        there = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False)
        total += values
        has |= there
    return texts, total, has


def _usable(texts: pa.Array, total: np.ndarray, has: np.ndarray, lines: np.ndarray,
            fields: Fields) -> tuple[pa.Array, np.ndarray, tuple[Problem, ...], np.ndarray]:
    valid = texts.is_valid().to_numpy(zero_copy_only=False)
    finite = np.isfinite(total)
    good = valid & has & finite
    problems = []
    for i in np.flatnonzero(~good):
        problems.append(Problem(int(lines[i]), f"no text in {fields.text!r}" if not valid[i] else
                                f"none of {', '.join(fields.popularity)}" if not has[i] else "popularity is no number"))
    if good.all():
        return texts, total, (), good
    return texts.filter(pa.array(good)), total[good], tuple(problems), good


def _by_line(data: bytes, spans: np.ndarray, lines: np.ndarray,
             fields: Fields) -> tuple[pa.Array, np.ndarray, tuple[Problem, ...], np.ndarray]:
    texts, totals, problems, good = [], [], [], np.zeros(len(spans), bool)
    for i, (start, end) in enumerate(spans.tolist()):
        try:
            text, total = _record(data[start:end], fields)
        except ValueError as error:
            problems.append(Problem(int(lines[i]), str(error)))
            continue
        texts.append(text)
        totals.append(total)
        good[i] = True
    return pa.array(texts, pa.string()), np.array(totals, np.float64), tuple(problems), good


def _record(line: bytes, fields: Fields) -> tuple[str, float]:
    """Text and popularity of one line; a ValueError says what is wrong."""
    try:
        row: Any = json.loads(line)
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("no JSON: nested too deep") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    text = row.get(fields.text)
    if not isinstance(text, str):
        raise ValueError(f"no text in {fields.text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{fields.text!r} holds half a surrogate pair") from None
    values = [row[name] for name in fields.popularity if row.get(name) is not None]
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError("popularity is no number")
    if fields.popularity and not values:
        raise ValueError(f"none of {', '.join(fields.popularity)}")
    try:
        total = float(sum(float(v) for v in values))
    except OverflowError:
        total = math.inf
    if not math.isfinite(total):
        raise ValueError("popularity is no number")
    return text, total


def open_parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    """A Parquet file.

    Raises:
      ConfigError: it is none.
    """
    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{path}: no Parquet file that can be read: {error}") from None


def _parquet(path: Path, fields: Fields) -> Iterator[Block]:
    file = open_parquet(path)
    names = file.schema_arrow.names
    missing = [n for n in (fields.text, *fields.popularity) if n not in names]
    if fields.text in missing or (fields.popularity and all(n in missing for n in fields.popularity)):
        raise ConfigError(f"{path}: no column {', '.join(missing)}; it has {', '.join(names)}")
    there = dataclasses.replace(fields, popularity=tuple(n for n in fields.popularity if n in names))
    row = 1
    for batch in file.iter_batches(ROWS):
        table = pa.Table.from_batches([batch])
        read = table.set_column(table.schema.get_field_index(fields.text), fields.text,
                                table[fields.text].cast(pa.string()))
        lines = np.arange(row, row + len(table))
        texts, total, problems, good = _usable(*_columns(read, there), lines, there)
        at = np.flatnonzero(good)
        yield Block(lines[good], texts, total, problems, table.nbytes, table, np.stack([at, at + 1], 1))
        row += len(table)


def count_words(texts: pa.Array) -> np.ndarray:
    """int64 [B]: runs of bytes that are no ASCII white space."""
    if not len(texts):
        return np.zeros(0, np.int64)
    _, offsets_buffer, values = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[texts.offset:texts.offset + len(texts) + 1].astype(np.int64)
    if values is None or offsets[-1] == offsets[0]:
        return np.zeros(len(texts), np.int64)
    space = _SPACE[np.frombuffer(values, np.uint8)[offsets[0]:offsets[-1]]]
    begins = ~space
    begins[1:] &= space[:-1]
    offsets -= offsets[0]
    # A text that begins with a word begins one, whatever the text before it ended with.
    at = offsets[:-1][np.diff(offsets) > 0]
    begins[at] = ~space[at]
    ends = np.concatenate([[0], np.cumsum(begins, dtype=np.int64)])
    return np.diff(ends[offsets])
