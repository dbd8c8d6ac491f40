"""Cells that a model writes, against real ones: generated for a label, and perturbed from controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy.spatial.distance import pdist

from jaxllm.cells.baselines import copied_cells, marginal_cells, perturbation_baselines
from jaxllm.cells.decoding import WRITTEN, AnswerConfig, CellModel
from jaxllm.cells.embedder import CellEmbedder, EmbedderConfig, train_embedder
from jaxllm.cells.examples import Example, PairConfig, TaskExamples, bounds
from jaxllm.cells.expression import sample
from jaxllm.cells.feed import open_task
from jaxllm.cells.frechet import scfid, scfid_by_class
from jaxllm.cells.matrices import Components, components
from jaxllm.cells.metrics import (
    delta_agreement,
    knn_accuracy,
    levenshtein_distances,
    mean_agreement,
    mmd,
    sliced_wasserstein,
    wasserstein,
)
from jaxllm.cells.sentences import rank_cells
from jaxllm.cells.shards import Cells
from jaxllm.config import ConfigError, check, nearest

MEDIAN_CELLS = 1000  # real cells whose distances set the kernel's width
MATCHED_CELLS = 2000  # the most that are matched one by one
KNN = (3, 5, 10, 25)
PART = 1024  # cells made dense at a time
RARE = 20  # reference cells of a label, where there are so many


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured.

    Attributes:
      part: `test` of the split, or `all` cells of another data set that the model knows none of; without training cells
        there is nothing to compare with.
      limit: test cells of each task, drawn by the seed; 0 for all.
      reference: training cells that generated ones are compared through (embedder, baselines), drawn by the seed.
      answers: how cells are written; their length follows from the task. Labels and texts are greedy.
      components: principal components in which cells are compared by neighbours.
      unknown_labels: test cells with a label that no training cell had: `refuse` to measure, or `drop` them.
      baselines: whether to fit what the model is compared with.
      seed: of draws and baselines.
    """

    part: Literal["test", "all"] = "test"
    limit: int = 2000
    reference: int = 5000
    answers: AnswerConfig = WRITTEN
    components: int = 32
    unknown_labels: Literal["refuse", "drop"] = "refuse"
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.limit >= 0, "limit", self.limit, "must not be negative; 0 for all")
        check(self.components >= 2, "components", self.components, "must be at least 2")

    def of(self, max_tokens: int, cells: bool) -> AnswerConfig:
        """How a task is answered whose answers are `cells`, or else labels or texts."""
        if cells:
            return dataclasses.replace(self.answers, max_tokens=max_tokens, seed=self.seed)
        return dataclasses.replace(self.answers, max_tokens=max_tokens, temperature=0.0, once=False, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What every task's evaluation needs."""

    model: CellModel
    cells: Cells
    train: np.ndarray
    test: np.ndarray
    config: EvaluateConfig

    def task(self, number: int) -> TaskExamples:
        """Task `number` of the model over the test cells."""
        return open_task(self.model.data, self.cells, self.model.tokens, number, self.test, seed=self.model.seed,
                         part="test")

    def rows(self, task: TaskExamples) -> np.ndarray:
        """The task's test cells, no more than the limit."""
        return task.rows[sample(len(task.rows), self.config.limit or None, self.config.seed)]


def examples(setting: Setting, task: TaskExamples, rows: np.ndarray) -> list[Example]:
    """One example a cell, in the first wording, with as many genes as the task ever shows and the model reads."""
    task.config = dataclasses.replace(task.config, genes=bounds(task.config.genes)[1],
                                      cells=bounds(task.config.cells)[1])
    limit, response = setting.model.data.limits(task.config)

    def made(limit: int) -> list[Example]:
        return [task.write(task.of_cell(int(row), np.random.default_rng([setting.config.seed, int(row)])),
                           task.template.prompts[0], limit, response) for row in rows]

    found = made(limit)
    # An answer may be as long as the longest, which beside the longest prompt may be more than the model reads.
    over = max(len(e.prompt) for e in found) + _longest(setting, task, found) - setting.model.model.max_length
    return found if over <= 0 else made(limit - over)


def _longest(setting: Setting, task: TaskExamples, asked: Sequence[Example]) -> int:
    """Tokens that an answer may have: what masked diffusion fills, or the longest true answer and its end."""
    return setting.model.data.filled(task.config) or max(len(e.response) for e in asked) + 1


def known_rows(setting: Setting, rows: np.ndarray, column: str | None) -> np.ndarray:
    """`rows` whose label the model was trained on; see `EvaluateConfig.unknown_labels`."""
    if column is None or column not in setting.model.labels:
        return rows
    learned, values = setting.model.labels[column], setting.cells.texts(column)[rows]
    known = np.isin(values, learned)
    if not known.all() and setting.config.unknown_labels == "refuse":
        name = str(values[~known][0])
        raise ConfigError(f"obs column {column!r}: {int((~known).sum())} test cells have labels such as {name!r}, "
                          f"which no training cell had; {nearest(name, learned)}; rename them, or set "
                          "unknown_labels=drop")
    check(bool(known.any()), "unknown_labels", "drop", f"no test cell has a label of {column!r} that was trained on")
    return rows[known]


def answers(setting: Setting, task: TaskExamples, asked: Sequence[Example]) -> list[list[int]]:
    """What the model says to each prompt."""
    config = setting.config.of(_longest(setting, task, asked), task.template.answers in ("cell", "perturbed"))
    return setting.model.answer([e.prompt for e in asked], config)


def generated(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cells written for the labels of the test cells, against those cells."""
    model, cells, config = setting.model, setting.cells, setting.config
    column = next((model.data.columns[f] for f in sorted(task.template.fields) if f in model.data.columns), None)
    rows = known_rows(setting, setting.rows(task), column)
    asked = examples(setting, task, rows)
    count = bounds(task.config.genes)[1]
    said = answers(setting, task, asked)
    parsed = [model.tokens.ranked(ids) for ids in said]
    labels = np.full(len(cells), "cell") if column is None else cells.texts(column)
    wanted = labels[rows]
    train = _reference(setting.train[np.isin(labels[setting.train], wanted)], labels, config)
    sets = {"model": [ranked for ranked, _ in parsed]}
    real_ranked = [cells.ranked(int(r))[:count] for r in rows]
    seen = model.read_back([cells.ranked(int(r)) for r in train], count)
    if config.baselines:
        # Drawn from what ranks say, as all is that they are compared with: equal values then lie in the cells' order.
        made = {"marginals of the type": marginal_cells(seen, labels[train], wanted, config.seed),
                "marginals of all": marginal_cells(seen, None, len(rows), config.seed),
                "copies of training cells": copied_cells(seen, labels[train], wanted, config.seed)}
        if column is None:
            del made["marginals of the type"]
        sets |= {name: _ranked_again(x, setting) for name, x in made.items()}
    compared = Comparison.of(seen, model.read_back(real_ranked, count), real_ranked, wanted, model.tokens.genes, config)
    report: dict[str, Any] = {
        "kind": "cell", "cells": len(rows), "genes": count,
        "unknown_words": sum(p.unknown for _, p in parsed), "repeated_genes": sum(p.duplicates for _, p in parsed),
        "mean_length": float(np.mean([len(r) for r, _ in parsed])),
        "mean_length_real": float(np.mean([len(r) for r in real_ranked])), "sets": {}}
    arrays: dict[str, Any] = {"real": compared.real, "labels": wanted, "rows": rows}
    for name, ranked in sets.items():
        arrays[name] = model.read_back(ranked, count)
        report["sets"][name] = compared(arrays[name], [r[:count] for r in ranked])
    return report, arrays


def _reference(rows: np.ndarray, labels: np.ndarray, config: EvaluateConfig) -> np.ndarray:
    """No more of the training cells `rows` than are compared through, rare labels as well as their shares allow."""
    if not config.reference or len(rows) <= config.reference:
        return rows
    rng, kept = np.random.default_rng(config.seed), np.zeros(len(rows), bool)
    kept[sample(len(rows), config.reference, config.seed)] = True
    for label in sorted(set(labels[rows].tolist())):
        mine = np.flatnonzero(labels[rows] == label)
        wanting = min(RARE, len(mine)) - int(kept[mine].sum())
        if wanting > 0:
            kept[rng.choice(mine[~kept[mine]], wanting, replace=False)] = True
    return rows[kept]


def _ranked_again(expression: np.ndarray, setting: Setting) -> list[np.ndarray]:
    """Gene indices of made-up cells `[N, G]`, most expressed first."""
    names = [f"made {i}" for i in range(len(expression))]
    ties = setting.cells.manifest["settings"]
    found = rank_cells(expression, names, setting.model.tokens.genes, tie_break=ties["tie_break"], seed=ties["seed"])
    return [found.genes[a:b] for a, b in zip(found.ends[:-1], found.ends[1:], strict=True)]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Real test cells, to which each set of made ones is compared in the same embedding, kernel and components.

    Attributes:
      real: expression `[N, G]`.
      ranked: gene indices of each.
      labels: `[N]`; row i of a made set was made for label i.
      genes: names.
      embed: embedder of the training cells.
      axes: principal components of the real cells.
      bandwidth: of the kernel, the median distance of the real cells.
    """

    real: np.ndarray
    ranked: Sequence[np.ndarray]
    labels: np.ndarray
    genes: Sequence[str]
    embed: CellEmbedder
    axes: Components
    bandwidth: float

    @classmethod
    def of(cls, train: np.ndarray, real: np.ndarray, ranked: Sequence[np.ndarray], labels: np.ndarray,
           genes: Sequence[str], config: EvaluateConfig) -> Comparison:
        """Fit what all sets share; the embedder on training cells `[M, G]`."""
        embed = train_embedder(train, genes, None, EmbedderConfig(seed=config.seed))
        some = real[np.sort(np.random.default_rng(config.seed).permutation(len(real))[:MEDIAN_CELLS])]
        return cls(real, ranked, labels, genes, embed, components(real, config.components, config.seed),
                   float(np.median(pdist(some))) or 1.0)

    def __call__(self, made: np.ndarray, ranked: Sequence[np.ndarray]) -> dict[str, Any]:
        """Distances and agreement of made cells `[N, G]`."""
        found, real = scfid(self.real, made, self.embed, self.genes), self.real
        matched = wasserstein if len(real) <= MATCHED_CELLS else sliced_wasserstein
        out: dict[str, Any] = {
            "scfid": found.value, "scfid_deficient": found.deficient,
            **{f"mean_{k}": v for k, v in dataclasses.asdict(mean_agreement(real, made)).items()},
            "mmd": mmd(real, made, bandwidth=self.bandwidth), matched.__name__: matched(real, made),
            "levenshtein": float(levenshtein_distances([r.tolist() for r in self.ranked],
                                                       [r.tolist() for r in ranked]).mean())}
        if len(set(self.labels.tolist())) < 2:
            return out
        x, y, labels = self.axes.apply(real), self.axes.apply(made), self.labels
        ks = [k for k in KNN if k <= len(real)]
        out |= {f"knn_{k}": value for k, value in knn_accuracy(x, labels, y, labels, ks).items()}
        near = min(5, len(real))
        out["by_label"] = {name: {
            "scfid": d.value, "cells": d.n_real, "knn_5": knn_accuracy(
                x, labels, y[labels == name], labels[labels == name], [near])[near]}
            for name, d in scfid_by_class(real, labels, made, labels, self.embed, self.genes).items()}
        return out


def perturbed(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean effect of each test condition as predicted from control cells, against the measured one and baselines.

    Control and baselines are those of the strata in which the condition's test cells lie, weighted as these are.
    """
    rows, model, cells = setting.rows(task), setting.model, setting.cells
    count = bounds(task.config.genes)[1]
    pair = task.config.pair
    assert pair is not None
    conditions = cells.texts(pair.column)
    baselines, control = _by_stratum(setting, pair, rows, count)
    measured = np.isfinite(control).all(1)
    check(bool(measured.any()), "pair.match", pair.match, "no test cell lies where a training control was measured; "
          "match by fewer columns")
    without, rows, control = int((~measured).sum()), rows[measured], control[measured]
    baselines = {name: found[measured] for name, found in baselines.items()}
    asked = examples(setting, task, rows)
    parsed = [model.tokens.ranked(ids) for ids in answers(setting, task, asked)]
    made = model.read_back([ranked for ranked, _ in parsed], count)
    real = model.read_back([cells.ranked(int(r)) for r in rows], count)
    seen = set(conditions[setting.train].tolist())
    report: dict[str, Any] = {"kind": "perturbed", "cells": len(rows), "genes": count, "without_control": without,
                              "conditions": {}}
    for condition in sorted(set(conditions[rows].tolist())):
        mine = conditions[rows] == condition
        predicted = {"model": made[mine].mean(0), **{
            name: found[mine].mean(0) for name, found in baselines.items() if np.isfinite(found[mine]).all()}}
        report["conditions"][condition] = {
            "cells": int(mine.sum()), "in_training": condition in seen,
            "scores": {name: delta_agreement(real[mine].mean(0), x, control[mine].mean(0))
                       for name, x in predicted.items()}}
    return report, {"rows": rows, "real": real, "model": made, "conditions": conditions[rows], "control": control}


def _mean_profile(setting: Setting, rows: np.ndarray, count: int) -> np.ndarray:
    """Mean expression [G] of cells as sentences of `count` genes, few of them in memory at a time."""
    total = np.zeros(len(setting.model.tokens.genes))
    for start in range(0, len(rows), PART):
        part = rows[start:start + PART]
        total += setting.model.read_back([setting.cells.ranked(int(r)) for r in part], count).sum(0, dtype=np.float64)
    return total / len(rows)


def _by_stratum(setting: Setting, pair: PairConfig, rows: np.ndarray, count: int
                ) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Each test cell's baseline profiles `[N, G]` by name, NaN where a part was not measured, and control's `[N, G]`,
    NaN where it was not.

    All are means of the training cells in the test cell's own stratum.
    """
    cells, model = setting.cells, setting.model
    conditions = cells.texts(pair.column)
    strata = np.array(["\0".join(key) for key in zip(*(cells.texts(c).tolist() for c in pair.match), strict=True)]
                      or [""] * len(cells))
    names = ("no effect", "mean of perturbed", "additive")
    shape = (len(rows), len(model.tokens.genes))
    out, control = {name: np.full(shape, np.nan) for name in names}, np.full(shape, np.nan)
    for stratum in sorted(set(strata[rows].tolist())):
        inside, mine = setting.train[strata[setting.train] == stratum], strata[rows] == stratum
        of = conditions[inside]
        if pair.control not in of:
            continue
        means = {name: _mean_profile(setting, inside[of == name], count) for name in sorted(set(of.tolist()))}
        control[mine] = out["no effect"][mine] = means[pair.control]
        if len(means) < 2:
            continue  # a context in which nothing else was learned from
        whole = [c for c in sorted(set(conditions[rows][mine].tolist()))
                 if all(part in of for part in c.split(pair.separator))]
        found = perturbation_baselines(np.stack(list(means.values())), list(means), whole, pair.control,
                                       pair.separator) if whole else {}
        for name, profiles in found.items():
            for condition, profile in profiles.items():
                out[name][mine & (conditions[rows] == condition)] = profile
    return out, control
