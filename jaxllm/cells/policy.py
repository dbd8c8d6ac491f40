"""Cells as prompts for reinforcement learning: `prompts.source: jaxllm.cells.policy:CellResponses`.

Rewards after C2S-Scale, whose own definitions are not published: labels by exact match, texts by similarity to the
reference, perturbed cells by how the ranks of a gene program follow those of the measured cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from scipy.stats import kendalltau

from jaxllm.cells.classification import clean_label
from jaxllm.cells.decoding import describe_cell_model
from jaxllm.cells.expression import post_process
from jaxllm.cells.feed import open_task
from jaxllm.cells.shards import open_cells
from jaxllm.cells.split import Part, split_cells
from jaxllm.cells.texts import similarities
from jaxllm.cells.vocabulary import GENERATED
from jaxllm.config import ConfigError, check, nearest
from jaxllm.data.tasks import Example

RewardKind = Literal["auto", "exact", "similarity", "program"]


class CellResponses:
    """A task of a trained model of cells, asked of the policy again and scored."""

    pauses: tuple[str, ...] = ()
    thinking_end: str | None = None

    def __init__(self, model: str, task: str, part: Part = "train", reward: RewardKind = "auto",
                 program: Sequence[str] = (), path: str | None = None, seed: int = 0) -> None:
        """Open cells and wordings of a model.

        Args:
          model: directory of a model of cells: its wordings, columns and split are asked with.
          task: name of its template.
          part: cells that the prompts show.
          reward: `exact` (labels), `similarity` (texts), `program` (generated and perturbed cells); `auto` by what the
            task's response is.
          program: genes whose order counts, for `program`; none for all that the measured cell shows.
          path: converted cells; the model's own by default.
          seed: of the draws.

        Raises:
          ConfigError: no such task, or a reward that does not fit it.
        """
        check(reward in get_args(RewardKind), "prompts.settings.reward", reward, nearest(reward, get_args(RewardKind)))
        tokens, data, _ = describe_cell_model(model)
        names = [t.template for t in data.tasks]
        check(task in names, "prompts.settings.task", task, nearest(task, names))
        cells = open_cells(path or data.path)
        self._tokens, self._index = tokens, cells.index
        number = names.index(task)
        self._limits = data.limits(data.tasks[number])
        self._task = open_task(data, cells, tokens, number, split_cells(cells, data.split)[part], seed=seed,
                               part=part)
        found = self._task.template.answers
        fitting = {"label": "exact", "text": "similarity"}.get(found, "program")
        self._reward = fitting if reward == "auto" else reward
        check(found != "cells" and (self._reward == "program") == (fitting == "program"), "prompts.settings.reward",
              reward, f"the response of {task!r} is a {found}; use {fitting}")
        check(fitting != "program" or not data.once, "prompts.settings.model", model, "was trained with cells.once, "
              "which rollouts do not keep to; train it without for rewards of cells")
        shown = tokens.sentence(cells.ranked(0))
        check(self._reward != "program" or tokens.tokenizer.decode(shown) == tokens.decode(shown),
              "prompts.settings.reward", "program", "this tokenizer's text runs genes together (added tokens); use one "
              "that is built for genes or writes them as words")
        unknown = [gene for gene in program if gene not in self._index]
        if unknown:
            raise ConfigError(f"prompts.settings.program={unknown[0]!r}: {nearest(unknown[0], self._index)}")
        self._program = frozenset(self._index[gene] for gene in program)

    def example(self, index: int) -> Example:
        """The `index`-th prompt, its answer, and what it is scored by."""
        found = self._task.example(index, *self._limits)
        decode = self._tokens.decode
        answer = decode(found.response).strip()
        return Example(decode(found.prompt), answer, {"answer": answer})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 at best: a right label, the reference text, or a program in the measured order."""
        answer = entry["answer"]
        if self._reward == "exact":
            return float(clean_label(text) == clean_label(answer))
        if self._reward == "similarity":
            return float(similarities([answer], [text])[0])
        return self._order(text, answer)

    def _order(self, text: str, answer: str) -> float:
        """Kendall's tau-b of the two orders of the program's genes, brought to 0..1.

        Genes that a cell does not show share the place behind its last. Without a program all genes count that either
        cell shows, so that leaving genes out costs.
        """
        made, real = ([self._index[g] for g in post_process(t, self._index, GENERATED).genes] for t in (text, answer))
        counted = sorted(self._program or {*made, *real})
        if len(counted) < 2 or not made:
            return 0.0
        places = [{gene: place for place, gene in enumerate(genes)} for genes in (made, real)]
        a, b = (np.array([p.get(gene, len(p)) for gene in counted]) for p in places)
        tau = float(kendalltau(a, b)[0])  # pyright: ignore[reportArgumentType]
        return 0.0 if np.isnan(tau) else (tau + 1) / 2
