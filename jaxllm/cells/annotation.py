"""A trained model on cells that carry no labels: what it calls them, and where it puts them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.cells.classification import clean_label
from jaxllm.cells.decoding import BUCKET, AnswerConfig, CellModel
from jaxllm.cells.examples import TaskExamples, bounds
from jaxllm.cells.shards import Cells
from jaxllm.config import ConfigError, check, nearest
from jaxllm.models import ModelConfig, apply

LABELS = AnswerConfig(max_tokens=32)


def annotate(model: CellModel, cells: Cells, task: str = "cell_type_prediction",
             config: AnswerConfig = LABELS, rows: np.ndarray | None = None) -> list[str]:
    """The model's answer for each cell, in the first wording of a task that shows single cells.

    A label that the training cells had is given as they wrote it; anything else as the model said it.

    Args:
      model: trained on the task.
      cells: with the model's vocabulary; no label column is needed.
      task: name of its template.
      config: length and decoder.
      rows: of the cells; all by default.

    Raises:
      ConfigError: another vocabulary, no such task, or its prompt shows more than a cell.
    """
    names = [t.template for t in model.data.tasks]
    if task not in names:
        raise ConfigError(f"task {task!r}: the model knows {', '.join(names)}; {nearest(task, names)}")
    asked = model.data.tasks[names.index(task)]
    template = dataclasses.replace(model.data.template(asked), response=())
    template = dataclasses.replace(template, prompts=template.prompts[:1])
    check(template.draws == "cell" and "sentence" in template.fields, "task", task, "shows no single cell; choose one "
          "that does")
    shown = {name: column for name, column in model.data.columns.items() if name in template.fields}
    asked = dataclasses.replace(asked, dropout=0.0, redraw_ties=False, genes=bounds(asked.genes)[1])
    rows = np.arange(len(cells)) if rows is None else np.asarray(rows)
    opened = TaskExamples(cells, model.tokens, template, asked, rows, columns=shown, organism=model.data.organism,
                          seed=0, source="task")
    room, filled = model.data.limits(asked)
    limit = room - (config.max_tokens if filled is None else filled)
    prompts = [opened.write(opened.of_cell(int(row), np.random.default_rng(0)), template.prompts[0], limit).prompt
               for row in rows]
    if filled is not None:
        config = dataclasses.replace(config, max_tokens=filled + 1)
    fields = [part.field for part in model.data.template(model.data.tasks[names.index(task)]).response]
    columns = [column for field, column in model.data.columns.items() if field in fields]
    learned = {text: label for column in columns for text, label in model.said_as(column).items()}
    said = [model.text(ids) for ids in model.answer(prompts, config)]
    return [learned.get(clean_label(text), text) for text in said]


def embed(model: CellModel, ranked: Sequence[np.ndarray], genes: int = 200, batch: int = 32) -> np.ndarray:
    """Mean hidden state of each cell's genes, float32 `[N, D]`; padding and neighbours play no part.

    Args:
      model: trained.
      ranked: gene indices of each cell, most expressed first.
      genes: the first so many count.
      batch: cells in one pass.

    Raises:
      ConfigError: a cell has no genes.
    """
    ids = [model.tokens.sentence(r[:genes]) for r in ranked]
    check(all(ids), "ranked", "an empty cell", "has no genes to embed; leave it out")
    width = -(-max(map(len, ids), default=1) // BUCKET) * BUCKET
    check(width <= model.model.max_length, "genes", genes, f"the model reads {model.model.max_length} tokens")
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *model.params["layers"])
    params, out = {**model.params, "layers": stacked}, []
    for start in range(0, len(ids), batch):
        part = ids[start:start + batch]
        tokens, valid = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
        for row, sentence in enumerate(part):
            tokens[row, :len(sentence)], valid[row, :len(sentence)] = sentence, True
        out.append(np.asarray(_means(params, jnp.asarray(tokens), jnp.asarray(valid), model.model))[:len(part)])
    return np.concatenate(out) if out else np.zeros((0, model.model.d_model), np.float32)


@functools.partial(jax.jit, static_argnames="config")
def _means(params: Any, tokens: jax.Array, valid: jax.Array, config: ModelConfig) -> jax.Array:
    hidden = apply(params, config, tokens, segment_ids=valid.astype(jnp.int32), head=False).hidden
    count = jnp.maximum(jnp.sum(valid, axis=1, keepdims=True), 1)
    return jnp.sum(hidden.astype(jnp.float32) * valid[..., None], axis=1) / count
