"""Rows of cell sentences for the one train loop: a pure function of the step."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm.cells.config import CellsConfig, CellsDataConfig
from jaxllm.cells.examples import Example, TaskExamples, column_of
from jaxllm.cells.shards import Cells
from jaxllm.cells.split import Part, split_cells
from jaxllm.cells.templates import templates_file
from jaxllm.cells.vocabulary import GeneTokens
from jaxllm.config import check, to_dict
from jaxllm.data.batch import Batch
from jaxllm.data.loader import made_ahead
from jaxllm.data.mixture import pick, whole_shares
from jaxllm.data.pack import PackedRows, Row, sft_row
from jaxllm.diffusion import diffusion_objective
from jaxllm.files import sha256
from jaxllm.parallel import batch_rows, shard_batch
from jaxllm.training import Fed, Measured, Objective, TrainState, causal_objective
from jaxllm.training.feed import held_out, per_token
from jaxllm.training.loop import run_tokenizer

_RUN_ONLY = ("prefetch",)  # settings that change no row


def cells_objective(config: CellsConfig) -> Objective:
    """Causal, or masked diffusion where the model is not."""
    if config.cells.once:
        @functools.cache
        def made() -> Objective:  # when a step is traced: a config says what is wrong with it before cells are there
            return _objective(config, GeneTokens(run_tokenizer(config), config.cells.open().genes).gene_ids)

        def validate(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            return made().validate(params, batch, key)  # type: ignore[misc]

        return Objective(loss=lambda params, batch, key: made().loss(params, batch, key), validate=validate)
    return _objective(config)


def _objective(config: CellsConfig, once: tuple[int, ...] = ()) -> Objective:
    if config.model.causal:
        return causal_objective(config.model, once)
    return diffusion_objective(config.model, config.objective, once)


class CellRows:
    """Batches of one part of the split: `rows(step, start, stop)` is a pure function."""

    def __init__(self, config: CellsDataConfig, cells: Cells, tokens: GeneTokens, part: Part, *, eos_id: int,
                 seed: int) -> None:
        """Open every task.

        Raises:
          ConfigError: as `TaskExamples`.
        """
        self.config, self._eos = config, eos_id
        rows = split_cells(cells, config.split)[part]
        self.tasks = [open_task(config, cells, tokens, number, rows, seed=seed, part=part)
                      for number in range(len(config.tasks))]
        self._weighted = part == "train"  # nats a token are told of all tokens alike
        self._shares = whole_shares([task.weight for task in config.tasks])
        for task in self.tasks:
            self._fit(task, 0)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of global batch `step`, numpy arrays `[stop - start, T]`."""
        made = [self._row(step * self.config.batch_size + i) for i in range(start, stop)]
        return Batch(**{name: np.stack([row[name] for row in made]) for name in made[0]})

    def _row(self, index: int) -> Row:
        config = self.config
        examples, counts, filled = [], [], None
        for number in range(config.examples_per_row):
            task, place = pick(index * config.examples_per_row + number, self._shares)
            examples.append(self._fit(self.tasks[task], place))
            filled = config.filled(config.tasks[task])
            counts.append(config.tasks[task].loss_weight if self._weighted else 1.0)
        if filled is not None:
            (prompt, response), = examples
            row = sft_row(prompt, response, length=config.length, response_length=filled, eos_id=self._eos)
            if config.learn == "all":
                row["loss_weights"][:len(prompt)] = 1.0
            row["loss_weights"] *= counts[0]
            return row
        row = packed(examples, config.length, self._eos, config.learn == "all")
        row["loss_weights"] *= np.array([0.0, *counts], np.float32)[row["segment_ids"]]
        return row

    def _fit(self, task: TaskExamples, place: int) -> Example:
        """An example that leaves room for its end and, in masked diffusion, for the whole response."""
        return task.example(place, *self.config.limits(task.config))


def packed(examples: list[Example], length: int, eos_id: int, whole: bool) -> Row:
    """A row of several examples, each its own segment that ends in EOS; `whole` learns the prompts too."""
    ids = [[*prompt, *response, eos_id] for prompt, response in examples]
    learned = [[float(whole)] * len(prompt) + [1.0] * (len(response) + 1) for prompt, response in examples]
    lengths = np.array([len(tokens) for tokens in ids])
    return PackedRows(lengths, lambda i, start, stop: (ids[i][start:stop], learned[i][start:stop]), length=length,
                      pad_id=eos_id)[0]


def open_task(config: CellsDataConfig, cells: Cells, tokens: GeneTokens, number: int, rows: np.ndarray, *, seed: int,
              part: Part) -> TaskExamples:
    """Task `number` of the config over `rows`; genes are left out and ties redrawn at random in training alone."""
    task = config.tasks[number]
    mine = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if part != "train":
        task = dataclasses.replace(task, dropout=0.0, redraw_ties=False)
    return TaskExamples(cells, tokens, config.template(task), task, rows, columns=config.columns,
                        organism=config.organism, seed=mine, source=f"cells.tasks.{number}")


class CellsFeed:
    """What the loop trains on and is measured by; nothing is kept between steps."""

    def __init__(self, config: CellsConfig, objective: Objective, tokenizer: Tokenizer, mesh: Mesh,
                 layout: TrainState) -> None:
        """Open the cells."""
        model, data = config.model, config.cells
        check(model.eos_id is not None, "model.eos_id", None, "training needs the id that ends a response")
        assert model.eos_id is not None
        self._config, cells = config, data.open()
        tokens = GeneTokens(tokenizer, cells.genes)
        check(not data.once or len(tokens.gene_ids) > 0, "cells.once", True, "needs genes that are single tokens; give "
              "the tokenizer genes by jaxllm cells tokens")
        self._rows = CellRows(data, cells, tokens, "train", eos_id=model.eos_id, seed=config.seed)
        files = [task.texts for task in data.tasks if task.texts is not None and column_of(task.texts) is None]
        self._sums = {"templates": sha256(templates_file(data.templates)), "texts": [sha256(file) for file in files],
                      "sha256": [shard["sha256"] for shard in cells.manifest["shards"]]}
        self._validate = None
        if config.validation_batches and objective.validate is not None:
            check(config.keep_best == 0 or data.split.validation > 0, "keep_best", config.keep_best,
                  "the best are told by validation; give cells.split.validation a share")
            if data.split.validation > 0:
                rows = CellRows(data, cells, tokens, "validation", eos_id=model.eos_id, seed=config.seed)
                self._validate = held_out(objective.validate, rows.rows, data.batch_size, config.validation_batches,
                                          mesh, layout)

    def batches(self, start: int, sharding: NamedSharding) -> Iterator[Fed]:
        """From step `start` to the last; this process makes the rows it holds."""
        size = self._config.cells.batch_size
        first, last = batch_rows(size, sharding)
        made = made_ahead(lambda step: self._rows.rows(step, first, last), start, self._config.steps,
                          self._config.cells.prefetch)
        return (Fed(step, shard_batch(part, first, size, sharding)) for step, part in enumerate(made, start))

    def ended(self) -> str:
        """Examples do not end."""
        return "no cells are left"

    def weights(self, done: int, state: TrainState) -> None:
        """Nothing: rows do not depend on them."""

    def validate(self, state: TrainState, done: int) -> Measured | None:
        """Nats a token of examples from held-out cells."""
        return None if self._validate is None else per_token(self._validate(state.model))

    def first(self) -> bool:
        """No."""
        return False

    def about(self) -> dict[str, Any]:
        """Seed, settings, and sums of shards, wordings and texts."""
        data = {k: v for k, v in to_dict(self._config.cells).items() if k not in _RUN_ONLY}
        return {"seed": self._config.seed, "cells": {**data, **self._sums}}

    def files(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def restore(self, step: int, saved: Mapping[str, Any], directory: Path) -> None:
        """The rows behind a checkpoint must be those of this config.

        Raises:
          ConfigError: a setting or the cells are not those of the checkpoint.
        """
        mine = json.loads(json.dumps(self.about()))
        check(saved["seed"] == mine["seed"], "seed", mine["seed"],
              f"the checkpoint of step {step} was made with seed={saved['seed']}")
        for name, value in mine["cells"].items():
            old = saved.get("cells", {}).get(name)
            check(name == "path" or old == value, f"cells.{name}", value,
                  f"the checkpoint of step {step} was made with {old!r}; examples would repeat or be left out")

    def close(self) -> None:
        """Nothing runs."""
