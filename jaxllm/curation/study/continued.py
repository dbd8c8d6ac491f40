"""Continued training of a checkpoint on given rows, by the one train loop."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm.config import check
from jaxllm.data import DataConfig
from jaxllm.data.batch import Batch
from jaxllm.parallel import batch_rows, shard_batch
from jaxllm.training import Fed, Objective, Stage, TrainConfig, TrainState, train
from jaxllm.training.feed import DataFeed


class RowsFeed(DataFeed):
    """Rows that are there, in their order, each once; step `s` takes rows `s * B` to `(s + 1) * B`."""

    def __init__(self, rows: Batch, config: TrainConfig, objective: Objective, tokenizer: Tokenizer, mesh: Mesh,
                 layout: TrainState) -> None:
        """As for `DataFeed`; rows are arrays `[steps * B, T]`."""
        super().__init__(config, objective, tokenizer, mesh, layout)
        self._rows = rows

    def batches(self, start: int, sharding: NamedSharding) -> Iterator[Fed]:
        """From step `start` to the last."""
        size = self._config.stages[0].data.batch_size
        top, bottom = batch_rows(size, sharding)
        for step in range(start, self._config.total_steps):
            first = step * size
            part = jax.tree.map(lambda x, a=first + top, b=first + bottom: x[a:b], self._rows)
            yield Fed(step, shard_batch(part, top, size, sharding))


def continue_training(config: TrainConfig, objective: Objective, start: str | Path, rows: Batch, run_dir: str | Path, *,
                      log: Callable[[str], None] = lambda text: None) -> Path:
    """Train a checkpoint on `rows`, each once; the model's directory.

    Args:
      config: of one stage, whose batch size is kept; its data, steps and start are those given here.
      objective: of the model.
      start: directory of the checkpoint.
      rows: arrays `[steps * B, T]`.
      run_dir: of the run.
      log: told what the loop tells.

    Raises:
      ConfigError: rows that are not whole batches.
    """
    count, length = np.shape(rows.tokens)
    size = config.stages[0].data.batch_size
    check(count > 0 and count % size == 0, "rows", count, f"must be a multiple of batch_size={size}")
    data: Any = DataConfig(length=length, batch_size=size, response_length=None)
    config = dataclasses.replace(config, init_from=str(start), tokenizer=str(start),
                                 stages=(Stage(count // size, data),))
    train(config, objective, run_dir, make_feed=functools.partial(RowsFeed, rows), log=log)
    return Path(run_dir) / "model"
