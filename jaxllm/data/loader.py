"""Batches as a pure function of (sources, seed, step), through grain's random access."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check
from jaxllm.data.batch import Batch
from jaxllm.data.chat import ChatTemplate, load_chat_template
from jaxllm.data.documents import REJECTED, Documents, read_documents
from jaxllm.data.mixture import Mixture
from jaxllm.data.pack import PackedRows, Row, sft_problem, sft_row
from jaxllm.data.prepare import is_cache, open_cache
from jaxllm.data.sources import BadRecords, TaskSource
from jaxllm.data.tasks import TaskConfig, make_task

CACHE_BYTES = 256 * 2**20  # of rows kept once made, a task


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    Attributes:
      weight: its share of the rows, over the sum of all weights.
      path, task, size: as in `DataConfig`.
    """

    weight: float
    path: str | None = None
    task: TaskConfig = TaskConfig()
    size: int = 20_000

    def __post_init__(self) -> None:
        check(0 < self.weight < float("inf"), "mixture.weight", self.weight, "must be above 0")
        check(self.size >= 1, "mixture.size", self.size, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how they become rows.

    Attributes:
      path: JSONL or Parquet file, directory of such files, `datasets` directory or token cache (made by
        `jaxllm data prepare`); None to draw from `task`.
      task: the generator, when `path` is None.
      size: examples drawn from the task (an epoch).
      mixture: several sources with weights, in place of `path` and `task`.
      length: tokens of a row, T.
      response_length: EOS-filled response length of prompt and response records (masked-diffusion SFT),
        None for one EOS. Responses of preference records end in one EOS whatever it is.
      batch_size: rows of a global batch, B. Of preference records row 2i is the chosen and row 2i + 1 the rejected
        response to one prompt.
      pack: pack `text` and `messages` records into full rows; other records are never packed.
      chat_template: tokenizer directory or `.jinja` file with the template of `messages` records; None
        takes the tokenizer's own.
      ignore_fields: fields of records to pass over, `*` for any; others that are not known are an error.
      max_bad_share: share of a file's records that may be unusable (unreadable, empty, too long for a row);
        they are left out with a warning, one more stops the run.
      prefetch: batches made ahead of the step, in as many threads; 0 makes each when it is asked for.
    """

    path: str | None = None
    task: TaskConfig = TaskConfig()
    size: int = 20_000
    mixture: tuple[SourceConfig, ...] = ()
    length: int = 256
    response_length: int | None = 128
    batch_size: int = 32
    pack: bool = True
    chat_template: str | None = None
    ignore_fields: tuple[str, ...] = ()
    max_bad_share: float = 0.0
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("size", "length", "batch_size"):
            check(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        check(self.response_length is None or 1 <= self.response_length <= self.length, "data.response_length",
              self.response_length, f"must lie in 1..length={self.length}")
        check(0 <= self.max_bad_share < 1, "data.max_bad_share", self.max_bad_share, "must lie in [0, 1)")
        check(self.prefetch >= 0, "data.prefetch", self.prefetch, "must be at least 0")
        if self.mixture:
            check(self.path is None, "data.path", self.path, "stands beside data.mixture; put it into the mixture")
            check(self.task == TaskConfig(), "data.task", self.task.name,
                  "stands beside data.mixture; put it into the mixture")

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """The mixture, or the one source as a mixture of one."""
        return self.mixture or (SourceConfig(1.0, self.path, self.task, self.size),)


class Rows(Protocol):
    """Rows of a source by index: the arrays `[T]` of `Batch`; of a source of preferences, pairs of rows."""

    def __len__(self) -> int:
        """Number of rows."""
        ...

    def __getitem__(self, index: int) -> Row | tuple[Row, Row]:
        """The `index`-th row or pair."""
        ...


class Loader:
    """Random access to batches: `loader[step]` depends on the sources, the seed and the step alone.

    So a resumed run needs only its step, and any number of processes sees the same global order: each
    asks `rows` for its part of the batch and makes no other.
    """

    paired: bool  # rows 2i and 2i + 1 are the chosen and the rejected response to one prompt

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, eos_id: int, seed: int,
                 tokenizer_path: str | Path | None = None) -> None:
        """Open the sources; files are tokenised at once, caches mapped, tasks run on access.

        Args:
          config: sources and rows.
          tokenizer: turns text into ids.
          eos_id: token that ends a document, and pads.
          seed: of the order.
          tokenizer_path: where chat records find their template, unless the config names another place.

        Raises:
          ConfigError: a source is missing, empty, stale or holds more bad records than allowed.
        """
        import grain

        top = max(tokenizer.get_vocab().values(), default=0)
        check(0 <= eos_id <= top, "model.eos_id", eos_id, f"the tokenizer's ids end at {top}")
        self.config = config
        self.bad: dict[str, BadRecords] = {}
        template = functools.cache(lambda: _template(config, tokenizer_path))
        parts, kinds = [], set[bool]()
        for number, source in enumerate(config.sources):
            rows = self._open(source, tokenizer, eos_id, template)
            kinds.add(isinstance(rows, _Pairs))
            # Sources of one length must not be shuffled alike; a source alone keeps the run's own seed.
            mine = int(np.random.SeedSequence([seed, number]).generate_state(1)[0]) if config.mixture else seed
            parts.append(grain.MapDataset.source(rows).seed(mine).shuffle().repeat())
            parts[-1][0]  # a row that cannot be made is known now; and grain sets itself up in one thread
        self.paired = kinds == {True}
        check(len(kinds) == 1, "data.mixture", [s.path for s in config.sources],
              "preference records come in pairs of rows and mix with their like only")
        check(not self.paired or config.batch_size % 2 == 0, "data.batch_size", config.batch_size,
              "preference records come in pairs of rows; must be even")
        self._draws = Mixture(parts, [s.weight for s in config.sources]) if config.mixture else parts[0]

    def __getitem__(self, step: int) -> Batch:
        """Global batch number `step`, numpy arrays `[B, T]`."""
        return self.rows(step, 0, self.config.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of global batch `step`, numpy arrays `[stop - start, T]`; no other row is made."""
        b = self.config.batch_size
        check(0 <= start < stop <= b, "rows", (start, stop), f"must lie in 0..batch_size={b} and not be empty")
        first, last = int(step) * b + start, int(step) * b + stop
        if self.paired:
            pairs = [self._draws[i] for i in range(first // 2, (last + 1) // 2)]
            rows = [row for pair in pairs for row in pair][first % 2:][:last - first]
        else:
            rows = [self._draws[i] for i in range(first, last)]
        return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def batches(self, first: int, last: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """`rows(step, start, stop)` for steps `first` to `last`, made ahead in `config.prefetch` threads, in order."""
        stop = self.config.batch_size if stop is None else stop
        return made_ahead(lambda step: self.rows(step, start, stop), first, last, self.config.prefetch)

    def _open(self, source: SourceConfig, tokenizer: Tokenizer, eos_id: int,
              template: Callable[[], ChatTemplate]) -> Rows:
        config = self.config

        def known() -> ChatTemplate | None:  # a cache asks only whether the template is still the same
            try:
                return template()
            except ConfigError:
                if config.chat_template is not None:
                    raise
                return None

        if source.path is None:
            return _TaskRows(TaskSource(make_task(source.task), source.size), config, tokenizer, eos_id)
        if is_cache(source.path):
            documents, bad = open_cache(source.path, tokenizer, known, config.max_bad_share)
        else:
            documents, bad = read_documents(source.path, tokenizer, template, ignore=config.ignore_fields,
                                            max_bad_share=config.max_bad_share)
        made = _Pairs if documents.kind == "preference" else _DocumentRows
        rows = made(documents, config, eos_id, bad)
        if bad.first:
            warnings.warn(f"{bad.summary()}; they are left out", stacklevel=3)
        self.bad[source.path] = bad
        return rows


def made_ahead(make: Callable[[int], Batch], first: int, last: int, ahead: int) -> Iterator[Batch]:
    """`make(step)` for steps `first` to `last`, made `ahead` of their use in as many threads, in order."""
    import grain

    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)
    iterator = iter(grain.MapDataset.source(_Steps(make, first, last)).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The batches of a stretch of steps, as grain's source."""

    make: Callable[[int], Batch]
    first: int
    last: int

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def __getitem__(self, index: Any) -> Batch:
        return self.make(self.first + int(index))


def _template(config: DataConfig, tokenizer_path: str | Path | None) -> ChatTemplate:
    path = config.chat_template or tokenizer_path
    if path is None:
        raise ConfigError("data.chat_template=None: chat records need a template; name a tokenizer directory or a "
                          ".jinja file")
    return load_chat_template(path)


class _DocumentRows:
    """Rows of a file's documents; those that do not fit a row are counted as bad."""

    def __init__(self, documents: Documents, config: DataConfig, eos_id: int, bad: BadRecords) -> None:
        self._documents, self._config, self._eos = documents, config, eos_id
        lengths = documents.lengths()
        self._kept = np.flatnonzero(self._fits(lengths, bad))
        bad.check(final=True)
        self._packed = None
        if documents.kind != "prompt":
            ends = 1 if documents.kind == "text" else 0  # a chat template writes its own ends
            self._packed = PackedRows(lengths[self._kept] + ends, self._piece, length=config.length, pad_id=eos_id,
                                      pack=config.pack)

    def __len__(self) -> int:
        return len(self._kept) if self._packed is None else len(self._packed)

    def __getitem__(self, index: Any) -> Row:
        index = int(index)
        if self._packed is not None:
            return self._packed[index]
        at = int(self._kept[index])
        tokens, _ = self._documents.piece(at)
        split = len(tokens) - int(self._documents.counts[at])
        return sft_row(tokens[:split].tolist(), tokens[split:].tolist(), length=self._config.length,
                       response_length=self._config.response_length, eos_id=self._eos, name=self._documents.where(at))

    def _fits(self, lengths: np.ndarray, bad: BadRecords) -> np.ndarray:
        """Bool `[D]`; text fits always, for it may be cut."""
        documents, c = self._documents, self._config
        if documents.kind == "text":
            return np.ones(len(documents), bool)
        if documents.kind == "chat":
            long = lengths > c.length
        else:
            answers = np.asarray(documents.counts, np.int64) + 1
            filled = answers if c.response_length is None else np.full_like(answers, c.response_length)
            long = (answers > filled) | (lengths - documents.counts + filled > c.length)
        for at in np.flatnonzero(long).tolist():
            n, learned = int(lengths[at]), int(documents.counts[at])
            why = f"{n} tokens exceed the row length {c.length}; raise data.length" if documents.kind == "chat" else \
                sft_problem(n - learned, learned, length=c.length, response_length=c.response_length)
            bad.good -= 1
            bad.add(documents.where(at), str(why))
        return ~long

    def _piece(self, index: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, learned = self._documents.piece(int(self._kept[index]), start, stop)
        if self._documents.kind == "text" and len(tokens) < stop - start:
            tokens, learned = np.append(tokens, self._eos), np.append(learned, 1)
        return tokens, learned


class _Pairs:
    """Pairs of rows, chosen and rejected, of a file's preferences; a record of which one does not fit is bad."""

    def __init__(self, documents: Documents, config: DataConfig, eos_id: int, bad: BadRecords) -> None:
        self._documents, self._length, self._eos = documents, config.length, eos_id
        starts = documents.ends - documents.lengths()
        rejected = np.add.reduceat(documents.learned == REJECTED, starts, dtype=np.int64)
        prompts = documents.lengths() - documents.counts
        needed = prompts + np.maximum(documents.counts - rejected, rejected) + 1  # with EOS
        for at in np.flatnonzero(needed > config.length).tolist():
            bad.good -= 1
            bad.add(documents.where(at),
                    f"{needed[at]} tokens exceed the row length {config.length}; raise data.length")
        bad.check(final=True)
        self._kept = np.flatnonzero(needed <= config.length)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> tuple[Row, Row]:
        at = int(self._kept[int(index)])
        prompt, chosen, rejected = self._documents.split(at)
        better, worse = (sft_row(prompt, said, length=self._length, response_length=None, eos_id=self._eos,
                                 name=self._documents.where(at)) for said in (chosen, rejected))
        return better, worse


class _TaskRows:
    """Rows of a task, made on access; as many as fit `CACHE_BYTES` are kept.

    Every epoch asks for each row once, in another order: the rows kept first serve as well as any, and
    dropping the least recently used would lose each before it is asked for again.
    """

    def __init__(self, records: TaskSource, config: DataConfig, tokenizer: Tokenizer, eos_id: int) -> None:
        self._records, self._config, self._tokenizer, self._eos = records, config, tokenizer, eos_id
        self._made: dict[int, Row] = {}
        self._limit = CACHE_BYTES // (16 * config.length)  # four arrays of 4 bytes

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Row:
        index = int(index)
        if index in self._made:
            return self._made[index]
        record = self._records[index]
        response: list[int] = []
        learned: list[bool] = []
        for text, wanted in record.get("pieces") or ((record["response"], True),):
            response += self._tokenizer.encode(text, add_special_tokens=False).ids
            learned += [wanted] * (len(response) - len(learned))
        row = sft_row(
            self._tokenizer.encode(record["prompt"]).ids, response, length=self._config.length,
            response_length=self._config.response_length, eos_id=self._eos, learned=learned, name=f"record {index}")
        if len(self._made) < self._limit:
            self._made[index] = row
        return row
