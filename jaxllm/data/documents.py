"""Documents: the tokens of a file's records, one after another in flat columns, in memory or mapped from disk."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import ConfigError
from jaxllm.data.chat import ChatError, ChatTemplate, encode_chat
from jaxllm.data.sources import BadRecords, Record, data_files, file_names, kind_of, problem_of, read_records

CHUNK = 512  # records tokenised together
# Columns and their types; `tokens` is uint16 where the vocabulary allows it.
COLUMNS = {"tokens": "<u4", "learned": "|u1", "ends": "<i8", "counts": "<i4", "lines": "<i8", "files": "<i4"}
REJECTED = 2  # in the column `learned`


@dataclasses.dataclass(frozen=True)
class Documents:
    """D documents of N tokens in all, without the EOS that ends one.

    Attributes:
      kind: `text` (every token learned), `prompt` (prompt, then response), `chat` or `preference` (prompt, then the
        chosen response, then the rejected one).
      tokens: unsigned `[N]`.
      learned: uint8 `[N]`, 1 on tokens of the response or of assistant turns, `REJECTED` on those of a rejected
        response; empty for text.
      ends: int64 `[D]`, where each document ends in `tokens`.
      counts: int32 `[D]`, learned tokens of each document.
      lines: int64 `[D]`, line or row of the record, from 1.
      files: int32 `[D]`, into `names`.
      names: the files.
    """

    kind: str
    tokens: np.ndarray
    learned: np.ndarray
    ends: np.ndarray
    counts: np.ndarray
    lines: np.ndarray
    files: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.ends)

    def piece(self, index: int, start: int = 0, stop: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """int32 tokens and uint8 learned `[n]` of a document's tokens `start` to `stop` (its end by default)."""
        first, end = (int(self.ends[index - 1]) if index else 0), int(self.ends[index])
        where = slice(first + start, end if stop is None else min(first + stop, end))
        tokens = self.tokens[where].astype(np.int32)
        return tokens, np.ones(len(tokens), np.uint8) if self.kind == "text" else np.asarray(self.learned[where])

    def lengths(self) -> np.ndarray:
        """int64 `[D]`: tokens of each document."""
        return np.diff(self.ends, prepend=0)

    def split(self, index: int) -> tuple[list[int], list[int], list[int]]:
        """Prompt, chosen and rejected tokens of a `preference` document."""
        tokens, learned = self.piece(index)
        prompt, chosen, rejected = (tokens[learned == part].tolist() for part in (0, 1, REJECTED))
        return prompt, chosen, rejected

    def where(self, index: int) -> str:
        """File and line of a document."""
        return f"{self.names[int(self.files[index])]}:{int(self.lines[index])}"


def token_type(tokenizer: Tokenizer) -> str:
    """The smallest of the two column types that holds every id of the vocabulary."""
    return "<u2" if max(tokenizer.get_vocab().values(), default=0) < 2**16 else "<u4"


def read_documents(path: str | Path, tokenizer: Tokenizer, template: Callable[[], ChatTemplate], *,
                   ignore: Collection[str] = (), max_bad_share: float = 0.0) -> tuple[Documents, BadRecords]:
    """The documents of `path`, tokenised into memory; `template` is called if its records are chats.

    Raises:
      ConfigError: more than `max_bad_share` of the records cannot be used, or there are none.
    """
    sinks = {name: io.BytesIO() for name in COLUMNS}
    bad = BadRecords(str(path), max_bad_share)
    kind = write_documents(path, tokenizer, template, sinks, bad, ignore=ignore)
    types = {**COLUMNS, "tokens": token_type(tokenizer)}
    columns = {name: np.frombuffer(sink.getbuffer(), types[name]) for name, sink in sinks.items()}
    return Documents(kind, **columns, names=tuple(file_names(path))), bad


def write_documents(
    path: str | Path, tokenizer: Tokenizer, template: Callable[[], ChatTemplate], sinks: Mapping[str, BinaryIO],
    bad: BadRecords, *, ignore: Collection[str] = (), advance: Callable[[int], None] = lambda _: None,
) -> str:
    """Tokenise every record of `path` into the columns' `sinks`; memory holds one chunk. Returns the kind.

    Raises:
      ConfigError: more bad records than `bad` allows, or no good one.
    """
    names, size = file_names(path), sum(f.stat().st_size for f in data_files(path))
    types = {**COLUMNS, "tokens": token_type(tokenizer)}
    kind, encode, end = None, None, 0
    for chunk in _chunks(read_records(path, advance), CHUNK):
        good: list[Record] = []
        for record in chunk:
            where = f"{names[record.file]}:{record.line}"
            if record.count is None:
                name = names[record.file]
                lost = Path(name).stat().st_size if Path(name).is_file() else size
                bad.add_file(name, str(record.problem), lost, size)
                continue
            problem = record.problem or problem_of(record.fields, kind, ignore)
            if problem is not None:
                bad.add(where, problem, record.count)
                continue
            if kind is None:
                kind = kind_of(record.fields)
                encode = _encoder(str(kind), tokenizer, template)
            good.append(record)
        for record, found in zip(good, encode([r.fields for r in good]) if encode else (), strict=True):
            if isinstance(found, str):
                bad.add(f"{names[record.file]}:{record.line}", found)
                continue
            tokens, learned = found
            end += len(tokens)
            row = {"tokens": tokens, "learned": learned, "ends": [end], "lines": [record.line], "files": [record.file],
                   "counts": [len(tokens) if kind == "text" else int(np.count_nonzero(learned))]}
            for name, values in row.items():
                sinks[name].write(np.asarray(values, types[name]).tobytes())
            bad.good += 1
        bad.check(final=False)
    bad.check(final=True)
    return str(kind)


# What an encoder makes of a record: its tokens and which of them are learned, or what is wrong with it.
Encoded = tuple[Any, Any] | str


def _encoder(kind: str, tokenizer: Tokenizer,
             template: Callable[[], ChatTemplate]) -> Callable[[list[dict[str, Any]]], Iterable[Encoded]]:
    def text(records: list[dict[str, Any]]) -> Iterator[Encoded]:
        for encoded in tokenizer.encode_batch([r["text"] for r in records]):
            yield (encoded.ids, ()) if encoded.ids else "text has no tokens"

    def prompt(records: list[dict[str, Any]]) -> Iterator[Encoded]:
        prompts = tokenizer.encode_batch([r["prompt"] for r in records])
        responses = tokenizer.encode_batch([r["response"] for r in records], add_special_tokens=False)
        for asked, said in zip(prompts, responses, strict=True):
            learned = [0] * len(asked.ids) + [1] * len(said.ids)
            yield ([*asked.ids, *said.ids], learned) if said.ids else "response has no tokens"

    def chat(records: list[dict[str, Any]]) -> Iterator[Encoded]:
        chat_template = template()
        for r in records:
            try:
                ids, learned = encode_chat(tokenizer, chat_template, r["messages"], r.get("tools"))
            except ChatError as err:
                yield str(err)
                continue
            yield (ids, learned) if learned.any() else "no token of an assistant turn to learn"

    def preference(records: list[dict[str, Any]]) -> Iterator[Encoded]:
        prompts = tokenizer.encode_batch([r["prompt"] for r in records])
        better, worse = (tokenizer.encode_batch([r[name] for r in records], add_special_tokens=False)
                         for name in ("chosen", "rejected"))
        for asked, chosen, rejected in zip(prompts, better, worse, strict=True):
            if chosen.ids == rejected.ids:
                yield "chosen and rejected are the same tokens, which say nothing"
            elif not chosen.ids or not rejected.ids:
                yield f"{'rejected' if chosen.ids else 'chosen'} has no tokens"
            else:
                learned = [0] * len(asked.ids) + [1] * len(chosen.ids) + [REJECTED] * len(rejected.ids)
                yield [*asked.ids, *chosen.ids, *rejected.ids], learned

    encoders = {"text": text, "prompt": prompt, "chat": chat, "preference": preference}
    if kind not in encoders:
        raise ConfigError(f"records of kind {kind!r} are not known")
    return encoders[kind]


def _chunks(items: Iterable[Record], size: int) -> Iterator[list[Record]]:
    items = iter(items)
    while chunk := list(itertools.islice(items, size)):
        yield chunk
