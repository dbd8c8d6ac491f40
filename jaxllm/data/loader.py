"""Batches as a pure function of (source, seed, step), through grain's random access."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import check
from jaxllm.data.batch import Batch
from jaxllm.data.pack import Row, pack_rows, sft_row
from jaxllm.data.sources import Source, TaskSource, open_source
from jaxllm.data.tasks import TaskConfig, make_task


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where records come from and how they become rows.

    Attributes:
      path: JSONL, Parquet or `datasets` directory; None to draw from `task`.
      task: the generator, when `path` is None.
      size: examples drawn from the task (an epoch).
      length: tokens of a row, T.
      response_length: EOS-filled response length (masked-diffusion SFT), None for one EOS.
      batch_size: rows of a global batch, B.
      pack: pack `text` records into full rows; prompt and response records are never packed.
    """

    path: str | None = None
    task: TaskConfig = TaskConfig()
    size: int = 20_000
    length: int = 256
    response_length: int | None = 128
    batch_size: int = 32
    pack: bool = True

    def __post_init__(self) -> None:
        for name in ("size", "length", "batch_size"):
            check(getattr(self, name) >= 1, f"data.{name}", getattr(self, name), "must be at least 1")
        check(self.response_length is None or 1 <= self.response_length <= self.length, "data.response_length",
              self.response_length, f"must lie in 1..length={self.length}")


class Loader:
    """Random access to batches: `loader[step]` depends on the source, the seed and the step alone.

    So a resumed run needs only its step, and any number of processes sees the same global order: each makes the
    `rows` that its devices hold.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, eos_id: int, seed: int) -> None:
        """Open the source; text sources are tokenised and packed at once, tasks on access."""
        import grain

        self.config = config
        records: Source = TaskSource(make_task(config.task), config.size) if config.path is None \
            else open_source(config.path)  # type: ignore[assignment]
        rows = _Rows(records, config, tokenizer, eos_id)
        self._rows = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()

    def __getitem__(self, step: int) -> Batch:
        """Batch number `step`, numpy arrays `[B, T]`."""
        return self.rows(step, 0, self.config.batch_size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of batch `step`, numpy arrays `[stop - start, T]`; no other row is made."""
        rows: list[Any] = [self._rows[step * self.config.batch_size + i] for i in range(start, stop)]
        return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})


class _Rows:
    """Rows of a source by index, kept once made (a row of 600 tokens takes 10 kB)."""

    def __init__(self, records: Source, config: DataConfig, tokenizer: Tokenizer, eos_id: int) -> None:
        self._records, self._config, self._tokenizer, self._eos = records, config, tokenizer, eos_id
        self._made: dict[int, Row] = {}
        self._length = len(records)
        if "text" in records[0]:
            self._made = dict(enumerate(self._packed()))
            self._length = len(self._made)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Row:
        index = int(index)
        if index not in self._made:
            record = self._records[index]
            prompt = self._tokenizer.encode(record["prompt"]).ids
            response = self._tokenizer.encode(record["response"], add_special_tokens=False).ids
            self._made[index] = sft_row(
                prompt, response, length=self._config.length, response_length=self._config.response_length,
                eos_id=self._eos, name=f"record {index}")
        return self._made[index]

    def _packed(self):
        def documents():
            for i in range(len(self._records)):
                ids = [*self._tokenizer.encode(self._records[i]["text"]).ids, self._eos]
                yield ids, [1.0] * len(ids)

        if self._config.pack:
            yield from pack_rows(documents(), length=self._config.length, pad_id=self._eos)
            return
        for document in documents():
            yield from pack_rows([document], length=self._config.length, pad_id=self._eos)
