"""A trained model on cells that carry no labels: what it calls them, alone or in groups, and where it puts them."""

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
from jaxllm.config import check
from jaxllm.models import ModelConfig, apply

LABELS, TEXTS = AnswerConfig(max_tokens=32), AnswerConfig(max_tokens=128)


def annotate(model: CellModel, cells: Cells, task: str = "cell_type_prediction",
             config: AnswerConfig = LABELS, rows: np.ndarray | None = None) -> list[str]:
    """The model's answer for each cell, in the first wording of a task that shows single cells.

    A label that the training cells had is given as they wrote it; anything else as the model said it.

    Args:
      model: trained on the task.
      cells: with the model's vocabulary; no label column is needed.
      task: name of its template.
      config: decoder, and length, of which half a training row is the most.
      rows: of the cells; all by default.

    Raises:
      ConfigError: another vocabulary, no such task, or its prompt shows more than a cell.
    """
    opened = _without_response(model, cells, task, "cell")
    rows = np.arange(len(cells)) if rows is None else np.asarray(rows)
    said = _say(model, opened, rows.tolist(), config)
    return _as_learned(model, task, said)


def describe(model: CellModel, cells: Cells, group: str, task: str = "cluster_captioning",
             config: AnswerConfig = TEXTS, size: int | None = None, seed: int = 0) -> dict[str, str]:
    """The model's text for each group of cells, such as a cluster's caption or a sample's tissue.

    Cells without a group are left out.

    Args:
      model: trained on the task.
      cells: with the model's vocabulary.
      group: obs column of clusters, samples or other groups.
      task: name of a template that shows several cells.
      config: decoder, and length, of which half a training row is the most.
      size: cells shown of each group, drawn by the seed; as many as in training where None.
      seed: of the draws.

    Raises:
      ConfigError: as `annotate`, or no such column.
    """
    opened = _without_response(model, cells, task, "group", group, size)
    values = cells.texts(group)
    first = {str(values[row]): int(row) for row in opened.rows[::-1]}
    names = sorted(first)
    said = _say(model, opened, [first[name] for name in names], config, seed)
    return dict(zip(names, _as_learned(model, task, said), strict=True))


def _as_learned(model: CellModel, task: str, said: Sequence[str]) -> list[str]:
    """Answers, those that are labels of the training cells as they were written there."""
    fields = [part.field for part in model.data.template(model.task(task)).response]
    columns = [column for field, column in model.data.columns.items() if field in fields]
    learned = {text: label for column in columns for text, label in model.said_as(column).items()}
    return [learned.get(clean_label(text), text) for text in said]


def _without_response(model: CellModel, cells: Cells, task: str, draws: str, group: str | None = None,
                      size: int | None = None) -> TaskExamples:
    """A task in its first wording over all cells, none of which needs an answer of its own."""
    asked = model.task(task)
    template = model.data.template(asked)
    template = dataclasses.replace(template, prompts=template.prompts[:1], response=())
    shown = "sentence" if draws == "cell" else "sentences"
    check(template.draws == draws and shown in template.fields, "task", task,
          f"shows no {'single cell' if draws == 'cell' else 'group of cells'}; choose one that does")
    asked = dataclasses.replace(asked, dropout=0.0, redraw_ties=False, genes=bounds(asked.genes)[1], group=group,
                                cells=size or bounds(asked.cells)[1], texts=None)
    columns = {name: column for name, column in model.data.columns.items() if name in template.fields}
    return TaskExamples(cells, model.tokens, template, asked, np.arange(len(cells)), columns=columns,
                        organism=model.data.organism, seed=0, source="task")


def _say(model: CellModel, task: TaskExamples, rows: Sequence[int], config: AnswerConfig, seed: int = 0) -> list[str]:
    """What the model says where an example starts from each of `rows`."""
    room, filled = model.data.limits(task.config)
    most = min(config.max_tokens, room // 2) if filled is None else filled
    drawn = [task.of_cell(row, np.random.default_rng([seed, row])) for row in rows]
    prompts = [task.write(shown, task.template.prompts[0], room - most).prompt for shown in drawn]
    config = dataclasses.replace(config, max_tokens=most if filled is None else filled + 1)
    return [model.text(ids) for ids in model.answer(prompts, config)]


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
