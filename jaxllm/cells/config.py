"""Settings of a run on cell sentences."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Literal

from tokenizers import Tokenizer

from jaxllm.cells.examples import CellTaskConfig, bounds, column_of
from jaxllm.cells.shards import Cells, open_cells
from jaxllm.cells.split import SplitConfig
from jaxllm.cells.templates import Template, load_templates
from jaxllm.cells.vocabulary import build_gene_tokenizer
from jaxllm.config import ConfigError, check, nearest
from jaxllm.diffusion import MaskedDiffusionConfig
from jaxllm.files import read_jsonl
from jaxllm.training import BatchShape, RunConfig


@dataclasses.dataclass(frozen=True)
class CellsDataConfig:
    """Cells and how they become rows.

    Attributes:
      path: directory that `jaxllm cells convert` wrote.
      tasks: mixed by weight.
      columns: placeholder of the templates to obs column, such as `{cell_type: bulk_labels}`.
      organism: what prompts call it, or `column:NAME` for an obs column.
      templates: YAML of templates; None for jaxllm's own.
      split: which cells are trained, validated and tested on.
      learn: `response`, or `all` for the prompt's tokens too.
      once: learn what follows given that a gene is named once at most, as cells are then written: a gene that the
        response has named is no choice any more. For genes that are single tokens.
      length: tokens of a row, T.
      batch_size: rows of a global batch, B.
      examples_per_row: packed into a row, each in `length / examples_per_row` tokens; an example that is longer loses
        the last genes of its cells.
      response_length: EOS-filled response length, for masked diffusion; None for one EOS. A task may have its own.
      prefetch: batches made ahead, in as many threads.
    """

    path: str
    tasks: tuple[CellTaskConfig, ...]
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    organism: str = "Homo sapiens"
    templates: str | None = None
    split: SplitConfig = SplitConfig()
    learn: Literal["response", "all"] = "response"
    once: bool = False
    length: int = 256
    batch_size: int = 32
    examples_per_row: int = 1
    response_length: int | None = None
    prefetch: int = 2

    def __post_init__(self) -> None:
        for name in ("length", "batch_size", "examples_per_row"):
            check(getattr(self, name) >= 1, f"cells.{name}", getattr(self, name), "must be at least 1")
        check(len(self.tasks) >= 1, "cells.tasks", self.tasks, "needs at least one task")
        check(self.prefetch >= 0, "cells.prefetch", self.prefetch, "must be at least 0")
        if self.response_length is not None:
            check(1 <= self.response_length < self.length, "cells.response_length", self.response_length,
                  f"must lie in 1..length-1, length={self.length}")
            check(self.examples_per_row == 1, "cells.examples_per_row", self.examples_per_row,
                  "must be 1 with response_length: a masked response fills its row")
        for task in self.tasks:
            length = task.response_length
            check(length is None or self.response_length is not None, "cells.tasks.response_length", length,
                  "goes with cells.response_length, for masked diffusion")
            check(length is None or 1 <= length < self.length, "cells.tasks.response_length", length,
                  f"must lie in 1..length-1, length={self.length}")
        templates = load_templates(self.templates)
        for task in self.tasks:
            if task.template not in templates:
                raise ConfigError(f"cells.tasks.template={task.template!r}: {nearest(task.template, templates)}")
        if self.once:
            check(self.learn == "response", "cells.once", True, "goes with cells.learn=response: prompts name genes of "
                  "their own")
            for task in self.tasks:
                fields = [part.field for part in templates[task.template].response]
                check("sentences" not in fields, "cells.once", True, f"responses of {task.template!r} hold several "
                      "cells, which share genes")

    def filled(self, task: CellTaskConfig) -> int | None:
        """EOS-filled length of a task's responses; None where one EOS ends them."""
        return None if self.response_length is None else task.response_length or self.response_length

    def limits(self, task: CellTaskConfig) -> tuple[int, int | None]:
        """Most tokens of an example without its end, and of its response where that is filled."""
        filled = self.filled(task)
        return (self.length // self.examples_per_row - 1, None) if filled is None else (self.length - 1, filled - 1)

    def template(self, task: CellTaskConfig) -> Template:
        """The wordings of a task."""
        return load_templates(self.templates)[task.template]

    def open(self) -> Cells:
        """The converted cells."""
        return open_cells(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellsConfig(RunConfig):
    """A run on cell sentences: causal, or masked diffusion where the model is not.

    Attributes:
      cells: data.
      steps: optimiser steps.
      validation_batches: batches of one validation, from cells held out for it; 0 for none.
      objective: of a model that is not causal.
    """

    cells: CellsDataConfig
    steps: int
    validation_batches: int = 4
    objective: MaskedDiffusionConfig = MaskedDiffusionConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.steps >= 1, "steps", self.steps, "must be at least 1")
        check(self.validation_batches >= 0, "validation_batches", self.validation_batches, "must not be negative")
        check(self.cells.batch_size % self.accumulate == 0, "accumulate", self.accumulate,
              f"must divide cells.batch_size={self.cells.batch_size}")
        filled = self.cells.response_length is not None
        check(filled != self.model.causal, "cells.response_length", self.cells.response_length,
              "masked diffusion learns where to end from responses filled with EOS; set it" if not filled else
              "is for masked diffusion; a causal model ends by one EOS: leave it out")
        check(self.cells.length <= self.model.max_length, "cells.length", self.cells.length,
              f"the model reads {self.model.max_length} tokens")

    @property
    def total_steps(self) -> int:
        """Optimiser steps."""
        return self.steps

    @property
    def batch_shapes(self) -> list[BatchShape]:
        """The one."""
        return [BatchShape(("cells.batch_size", "cells.length"), self.cells.batch_size, self.cells.length,
                           self.accumulate)]

    def build_tokenizer(self) -> Tokenizer:
        """One token a gene, and the words of all templates, labels and texts."""
        cells = self.cells.open()
        return build_gene_tokenizer(cells.genes, _texts(self.cells, cells))


def _texts(config: CellsDataConfig, cells: Cells) -> Iterator[str]:
    """Every word that an example may hold, apart from genes."""
    genes = max(bounds(task.genes)[1] for task in config.tasks)
    count = max(bounds(task.cells)[1] for task in config.tasks)
    for task in config.tasks:
        template = config.template(task)
        for parts in (*template.prompts, template.response):
            yield " ".join(part.text for part in parts if part.field is None)
            for part in parts:  # a sign right behind a field is a word of its own
                yield part.text.lstrip()
        for name, column in config.columns.items():
            if name in template.fields:
                yield from dict.fromkeys(cells.texts(column).tolist())
        if task.pair is not None:
            yield from map(task.pair.spoken, dict.fromkeys(cells.texts(task.pair.column).tolist()))
        if task.texts is not None and (column := column_of(task.texts)) is not None:
            yield from dict.fromkeys(cells.texts(column).tolist())
        elif task.texts is not None:
            yield from (str(line.get("text")) for line in read_jsonl(task.texts))
    if (column := column_of(config.organism)) is not None:
        yield from dict.fromkeys(cells.texts(column).tolist())
    else:
        yield config.organism
    if count > 1:
        yield from (f"Cell {number}:" for number in range(1, count + 1))
    yield from map(str, range(max(genes, count) + 1))
