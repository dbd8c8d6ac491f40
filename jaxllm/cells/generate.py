"""Cells written by a trained model for labels that the caller names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from jaxllm.cells.decoding import AnswerConfig, CellModel
from jaxllm.cells.examples import column_of
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
    asked = next((t for t in model.data.tasks if t.template == task), None)
    if asked is None:
        raise ConfigError(f"task {task!r}: {nearest(task, [t.template for t in model.data.tasks])}")
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
    left = model.model.max_length - max(map(len, prompts), default=0)
    room = model.data.filled(asked) or min(model.tokens.longest(genes), left)
    found = model.answer(prompts, dataclasses.replace(answers, max_tokens=room))
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
