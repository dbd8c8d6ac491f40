"""Cells written by a trained model: for labels that the caller names, or as given cells after a perturbation."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from jaxllm.cells.decoding import AnswerConfig, CellModel
from jaxllm.cells.examples import CONTROL, PERTURBED, Drawn, TaskExamples, bounds, column_of
from jaxllm.cells.feed import open_task
from jaxllm.cells.shards import Cells
from jaxllm.cells.templates import Part
from jaxllm.config import ConfigError, check, nearest
from jaxllm.files import aside


@dataclasses.dataclass(frozen=True)
class WrittenCells:
    """N cells as a model wrote them.

    Attributes:
      labels: what each was written for.
      ranked: gene indices of each, most expressed first.
      unknown, repeated: words that are no gene, and genes named again; both are left out.
    """

    labels: tuple[str, ...]
    ranked: tuple[np.ndarray, ...]
    unknown: int
    repeated: int

    def expression(self, model: CellModel) -> csr_matrix:
        """Expression `[N, G]` float32 by the model's line."""
        return csr_matrix(model.read_back(self.ranked))


def write_cells(model: CellModel, task: str, labels: Sequence[str], genes: int, answers: AnswerConfig,
                organism: str | None = None) -> WrittenCells:
    """A cell for each of `labels`, in the first wording of a task whose response is one cell.

    Args:
      model: trained on the task.
      task: name of its template.
      labels: fill the template's one field that is a column; empty texts where it has none.
      genes: asked for.
      answers: temperature, decoder and seed; the length follows from `genes`.
      organism: what the prompts call it; needed where the model was trained with an obs column of them.

    Raises:
      ConfigError: the task's response is no cell, or it asks for other fields than one label.
    """
    asked = model.task(task)
    template = model.data.template(asked)
    fields = {p.field for p in template.prompts[0] if p.field} - {"num_genes", "organism"}
    if [p.field for p in template.response if p.field] != ["sentence"] or not fields <= set(model.data.columns):
        raise ConfigError(f"task {task!r}: asks for {', '.join(sorted(map(str, fields)))}; choose one that writes a "
                          "cell for a label")
    if len(fields) > 1 or (fields and not all(labels)):
        raise ConfigError(f"task {task!r}: give a value for {', '.join(sorted(map(str, fields)))}")
    for field in fields:
        learned = model.labels.get(model.data.columns[field], ())
        for label in dict.fromkeys(labels):
            check(not learned or label in learned, "label", label, f"no training cell had it; "
                  f"{nearest(label, learned)}")
    if (column := column_of(model.data.organism)) is not None and organism is None:
        raise ConfigError(f"organism: the model was trained on the obs column {column!r} of them; name one")
    called = model.data.organism if organism is None else organism

    def prompt(label: str) -> list[int]:
        words = {"num_genes": str(genes), "organism": called, **dict.fromkeys(map(str, fields), label)}
        return model.tokens.words("".join(_text(part, words) for part in template.prompts[0]))

    prompts = [prompt(label) for label in labels]
    return _write(model, prompts, labels, genes, model.data.filled(asked), answers)


def perturbed_task(model: CellModel, cells: Cells) -> tuple[TaskExamples, int]:
    """The model's first task that writes perturbed cells, opened on `cells` to start from any of them; its number.

    Raises:
      ConfigError: the model has none, or the cells lack the obs column of perturbations or other genes.
    """
    for number, task in enumerate(model.data.tasks):
        if model.data.template(task).answers != "perturbed":
            continue
        assert task.pair is not None
        # Base cells need no treated ones beside them.
        tasks = list(model.data.tasks)
        tasks[number] = dataclasses.replace(task, pair=dataclasses.replace(task.pair, match=(), controls=True))
        data = dataclasses.replace(model.data, tasks=tuple(tasks))
        return open_task(data, cells, model.tokens, number, np.arange(len(cells)), seed=model.seed, part="test"), number
    raise ConfigError("model: was trained on no task that writes perturbed cells, such as perturbation_response")


def perturbations(model: CellModel, task: TaskExamples, wanted: Sequence[str], what: str) -> list[str]:
    """Names in `wanted`, all of which the model has the words for; every one that it learned where none is wanted.

    A combination may be new if each of its parts was learned.

    Raises:
      ConfigError: another name; `what` says where it stands.
    """
    pair = task.config.pair
    assert pair is not None
    known = [name for name in model.labels.get(pair.column, ()) if name != pair.control]
    parts = {part.strip() for name in known for part in name.split(pair.separator)} | {pair.control}
    for name in wanted:
        check(all(part.strip() in parts for part in name.split(pair.separator)), what, name,
              f"the model was not trained on it; {nearest(name, [*known, pair.control])}")
    return list(wanted) or known


def write_perturbed(model: CellModel, task: TaskExamples, rows: Sequence[int], names: Sequence[str],
                    answers: AnswerConfig, seeds: Sequence[int] | None = None) -> WrittenCells:
    """Cells `rows` as each would be after the perturbation that stands at its place in `names`.

    Args:
      model: trained on the task.
      task: from `perturbed_task`.
      rows: [N] of its cells.
      names: [N] perturbations.
      answers: temperature, decoder and seed; the length follows from the task.
      seeds: [N] of the draws; by place from `answers.seed` where None.
    """
    genes = bounds(task.config.genes)[1]
    limits = model.data.limits(task.config)

    def prompt(row: int, name: str) -> list[int]:
        drawn = task.of_base(row, name, genes)
        # Cut as in training, beside a response of as many genes.
        both = Drawn(drawn.words, {CONTROL: drawn.genes[CONTROL], PERTURBED: drawn.genes[CONTROL]}, drawn.cells)
        return task.write(both, task.template.prompts[0], *limits).prompt

    prompts = [prompt(int(row), name) for row, name in zip(rows, names, strict=True)]
    return _write(model, prompts, names, genes, model.data.filled(task.config), answers, seeds)


def _write(model: CellModel, prompts: Sequence[Sequence[int]], labels: Sequence[str], genes: int, filled: int | None,
           answers: AnswerConfig, seeds: Sequence[int] | None = None) -> WrittenCells:
    left = model.model.max_length - max(map(len, prompts), default=0)
    room = filled or min(model.tokens.longest(genes), left)
    found = model.answer(prompts, dataclasses.replace(answers, max_tokens=room), seeds)
    parsed = [model.tokens.ranked(ids) for ids in found]
    return WrittenCells(tuple(labels), tuple(r[:genes] for r, _ in parsed), sum(p.unknown for _, p in parsed),
                        sum(p.duplicates for _, p in parsed))


def write_h5ad(path: str | Path, expression: Any, genes: Sequence[str], names: Sequence[str],
               obs: Mapping[str, Sequence[str]]) -> None:
    """Made cells [N, G] as AnnData, whole or not at all.

    Args:
      path: .h5ad.
      expression: by the fitted line.
      genes: [G] names.
      names: [N] of the cells.
      obs: columns [N].
    """
    import anndata
    import pandas

    data = anndata.AnnData(csr_matrix(expression), obs=pandas.DataFrame(dict(obs), index=pandas.Index(list(names))),
                           var=pandas.DataFrame(index=pandas.Index(list(genes))))
    with aside(path) as temporary:
        data.write_h5ad(temporary)


def _text(part: Part, words: dict[str, str]) -> str:
    return part.text if part.field is None else words[part.field]
