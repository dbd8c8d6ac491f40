"""A model of cells measured on cells that it has not seen, beside what needs no language model.

Labels by exact match of what the model writes; generated cells, and perturbed ones, in the space of sentences: real,
generated and baseline cells alike are cut to the same number of genes and read back through the fitted line, so that
no side gains by its form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllm.cells.baselines import (
    LabelledCells,
    copied_cells,
    label_baselines,
    marginal_cells,
    perturbation_baselines,
    score_baselines,
)
from jaxllm.cells.classification import Classification, classification
from jaxllm.cells.decoding import AnswerConfig, CellModel
from jaxllm.cells.embedder import EmbedderConfig, train_embedder
from jaxllm.cells.examples import Example, TaskExamples, bounds
from jaxllm.cells.expression import reconstruct_ranked
from jaxllm.cells.feed import open_task
from jaxllm.cells.frechet import scfid, scfid_by_class
from jaxllm.cells.metrics import delta_agreement, knn_accuracy, levenshtein_distances, mean_agreement, mmd, wasserstein
from jaxllm.cells.sentences import rank_cells
from jaxllm.cells.shards import Cells
from jaxllm.cells.split import split_cells
from jaxllm.cells.templates import SENTENCES
from jaxllm.cells.texts import rouge, similarity
from jaxllm.config import ConfigError, check, nearest

LABEL_TOKENS = 32  # no label is longer
KNN = (3, 5, 10, 25)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured.

    Attributes:
      limit: test cells of each task, drawn by the seed; 0 for all.
      temperature: of generated cells; labels are greedy.
      top_p: of generated cells.
      slots: prompts decoded at a time.
      method, threshold: decoder of masked diffusion.
      components: principal components in which cells are compared by neighbours.
      unknown_labels: test cells with a label that no training cell had: `refuse` to measure, or `drop` them.
      baselines: whether to fit what the model is compared with.
      seed: of draws and baselines.
    """

    limit: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    slots: int = 32
    method: str = "elastic"
    threshold: float = 0.9
    components: int = 32
    unknown_labels: Literal["refuse", "drop"] = "refuse"
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.limit >= 0, "limit", self.limit, "must not be negative; 0 for all")
        check(self.components >= 2, "components", self.components, "must be at least 2")

    def answers(self, max_tokens: int, temperature: float) -> AnswerConfig:
        """How a task is answered."""
        return AnswerConfig(max_tokens=max_tokens, temperature=temperature, top_p=self.top_p, slots=self.slots,
                            method=self.method, threshold=self.threshold, seed=self.seed)


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


def kind(task: TaskExamples) -> str:
    """What a task's response is: `label`, `cell`, `cells`, `perturbed` or `text`."""
    fields = [part.field for part in task.template.response if part.field is not None]
    for field in fields:
        if field in SENTENCES:
            return {"sentence": "cell", "sentences": "cells"}.get(field, "perturbed")
    return "text" if "text" in fields else "label"


def evaluate(model: CellModel, cells: Cells, config: EvaluateConfig = EvaluateConfig(),
             log: Callable[[str], None] = print) -> dict[str, Any]:
    """Every task of the model on the test part of its split.

    Returns:
      `tasks`: by number and template, what was measured, as JSON; `arrays`: what the plots are drawn from.

    Raises:
      ConfigError: the cells are not those that the model was trained on, or a task has no test cells.
    """
    check(cells.genes == model.tokens.genes, "cells", str(cells.directory), "its genes are not the model's; convert "
          "with the same vocabulary")
    parts = split_cells(cells, model.data.split)
    setting = Setting(model, cells, parts["train"], parts["test"], config)
    out: dict[str, Any] = {"cells": {name: len(rows) for name, rows in parts.items()}, "tasks": {}}
    arrays: dict[str, Any] = {}
    for number, task in enumerate(model.data.tasks):
        name = f"{number}_{task.template}"
        opened = setting.task(number)
        measure = {"label": _labels, "cell": _generated, "perturbed": _perturbed, "text": _texts}.get(kind(opened))
        if measure is None:
            log(f"{name}: groups of generated cells are not measured; see its single-cell counterpart")
            continue
        log(f"{name}: {len(opened.rows)} cells to draw from")
        out["tasks"][name], arrays[name] = measure(setting, opened)
    return {**out, "arrays": arrays}


def _rows(setting: Setting, task: TaskExamples) -> np.ndarray:
    limit = setting.config.limit
    if not limit or limit >= len(task.rows):
        return task.rows
    return np.sort(np.random.default_rng(setting.config.seed).choice(task.rows, limit, replace=False))


def _examples(setting: Setting, task: TaskExamples, rows: np.ndarray) -> list[Example]:
    """One example a cell, in the first wording, with as many genes as the task ever shows."""
    most = dataclasses.replace(task.config, genes=bounds(task.config.genes)[1], cells=bounds(task.config.cells)[1])
    task.config = most
    room, response = setting.model.data.limits(task.config)
    return [task.write(task.of_cell(int(row), np.random.default_rng([setting.config.seed, int(row)])),
                       task.template.prompts[0], room, response) for row in rows]


def _answers(setting: Setting, task: TaskExamples, examples: Sequence[Example], max_tokens: int,
             temperature: float) -> list[list[int]]:
    length = setting.model.data.filled(task.config) or max_tokens  # what masked diffusion was trained to fill
    return setting.model.answer([e.prompt for e in examples], setting.config.answers(length, temperature))


def _labels(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy and macro-F1 by exact match, beside classifiers of the same training cells."""
    model = setting.model
    field = next(p.field for p in task.template.response if p.field is not None)
    column = model.data.columns.get(field) if task.config.pair is None else task.config.pair.column
    rows = _known(setting, _rows(setting, task), column)
    examples = _examples(setting, task, rows)
    answers = [model.text(ids) for ids in _answers(setting, task, examples, LABEL_TOKENS, 0.0)]
    truth = np.array([model.text(e.response) for e in examples])
    known = None
    if column is not None and column in model.labels:
        known = [model.text(model.tokens.words(f" {name}")) for name in model.labels[column]]
    found = {"model": classification(truth, answers, known, seed=setting.config.seed)}
    # A group or a pair is no single cell for a classifier to see.
    if setting.config.baselines and column is not None and task.template.draws == "cell":
        train, test = (labelled(setting.cells, part, column) for part in (setting.train, rows))
        plain = label_baselines(train, test, seed=setting.config.seed)
        found |= score_baselines(test.labels, plain, model.labels[column], seed=setting.config.seed)
    report = {"kind": "label", "cells": len(rows), "invalid": found["model"].invalid,
              "scores": {name: _scores(c) for name, c in found.items()},
              "f1": found["model"].f1}
    return report, {"confusion": found["model"].confusion, "labels": found["model"].labels,
                    "rows": rows, "truth": truth, "answers": answers}


def _known(setting: Setting, rows: np.ndarray, column: str | None) -> np.ndarray:
    """`rows` whose label the model was trained on; see `EvaluateConfig.unknown_labels`."""
    if column is None or column not in setting.model.labels:
        return rows
    learned, values = setting.model.labels[column], setting.cells.labels(column).astype(str)[rows]
    known = np.isin(values, learned)
    if not known.all() and setting.config.unknown_labels == "refuse":
        name = str(values[~known][0])
        raise ConfigError(f"obs column {column!r}: {int((~known).sum())} test cells have labels such as {name!r}, which "
                          f"no training cell had; {nearest(name, learned)}; rename them, or set unknown_labels=drop")
    check(bool(known.any()), "unknown_labels", "drop", f"no test cell has a label of {column!r} that was trained on")
    return rows[known]


def labelled(cells: Cells, rows: np.ndarray, column: str) -> LabelledCells:
    """Cells as the classifiers take them."""
    ranked = [cells.ranked(int(row)) for row in rows]
    ids = np.full((len(rows), max(map(len, ranked), default=0)), -1, np.int32)
    for row, genes in zip(ids, ranked, strict=True):
        row[:len(genes)] = genes
    return LabelledCells(cells.matrix(rows), cells.labels(column).astype(str)[rows], ids)


def _scores(found: Classification) -> dict[str, list[float]]:
    return {name: [i.value, i.low, i.high] for name, i in (("accuracy", found.accuracy), ("macro_f1", found.macro_f1))}


def read_back(ranked: Sequence[np.ndarray], genes: int, model: CellModel) -> np.ndarray:
    """Expression `[N, G]` float32 of the first `genes` of each ranked cell, by the fitted line."""
    return np.stack([reconstruct_ranked(r[:genes], len(model.tokens.genes), model.line) for r in ranked]) \
        if len(ranked) else np.zeros((0, len(model.tokens.genes)), np.float32)


def _ranked_again(expression: np.ndarray, setting: Setting) -> list[np.ndarray]:
    """Gene indices of made-up cells `[N, G]`, most expressed first."""
    names = [f"made {i}" for i in range(len(expression))]
    found = rank_cells(expression, names, setting.model.tokens.genes, seed=setting.config.seed)
    return [found.genes[a:b] for a, b in zip(found.ends[:-1], found.ends[1:], strict=True)]


def _generated(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Cells written for the labels of the test cells, against those cells."""
    rows, model, cells, config = _rows(setting, task), setting.model, setting.cells, setting.config
    examples = _examples(setting, task, rows)
    count = bounds(task.config.genes)[1]
    room = max(len(e.response) for e in examples) + 1
    answers = _answers(setting, task, examples, room, config.temperature)
    parsed = [model.tokens.ranked(ids) for ids in answers]
    column = next((model.data.columns[f] for f in sorted(task.template.fields) if f in model.data.columns), None)
    labels = None if column is None else cells.labels(column).astype(str)
    wanted = np.full(len(rows), "") if labels is None else labels[rows]
    sets = {"model": [ranked for ranked, _ in parsed]}
    real = read_back([cells.ranked(int(r)) for r in rows], count, model)
    if config.baselines:
        seen = cells.matrix(setting.train).toarray()
        seen_labels = None if labels is None else labels[setting.train]
        asked: Any = len(rows) if labels is None else wanted
        made = {"marginals of the type": marginal_cells(seen, seen_labels, asked, config.seed),
                "marginals of all": marginal_cells(seen, None, len(rows), config.seed),
                "copies of training cells": copied_cells(seen, seen_labels, asked, config.seed)}
        if labels is None:
            del made["marginals of the type"]
        sets |= {name: _ranked_again(x, setting) for name, x in made.items()}
    train = read_back([cells.ranked(int(r)) for r in setting.train], count, model)
    embedder = train_embedder(train, model.tokens.genes, None if labels is None else labels[setting.train],
                              EmbedderConfig(seed=config.seed))
    report: dict[str, Any] = {
        "kind": "cell", "cells": len(rows), "genes": count, "real": len(real),
        "unknown_words": sum(p.unknown for _, p in parsed), "repeated_genes": sum(p.duplicates for _, p in parsed),
        "mean_length": float(np.mean([len(r) for r, _ in parsed])),
        "mean_length_real": float(np.mean([min(count, len(cells.ranked(int(r)))) for r in rows])), "sets": {}}
    arrays: dict[str, Any] = {"real": real, "labels": wanted, "rows": rows, "answers": answers}
    for name, ranked in sets.items():
        x = read_back(ranked, count, model)
        arrays[name] = x
        report["sets"][name] = compare(real, x, wanted, embedder, model.tokens.genes, config,
                                       [cells.ranked(int(r))[:count] for r in rows], [r[:count] for r in ranked])
    return report, arrays


def compare(real: np.ndarray, made: np.ndarray, labels: np.ndarray, embed: Any, genes: Sequence[str],
            config: EvaluateConfig, real_ranked: Sequence[np.ndarray], made_ranked: Sequence[np.ndarray]
            ) -> dict[str, Any]:
    """Distances and agreement of made cells `[N, G]` with real ones of the same labels, row by row of one label."""
    distance = scfid(real, made, embed, genes)
    out: dict[str, Any] = {"scfid": distance.value, "scfid_deficient": distance.deficient,
                           **{f"mean_{k}": v for k, v in dataclasses.asdict(mean_agreement(real, made)).items()},
                           "mmd": mmd(real, made, seed=config.seed), "wasserstein": wasserstein(real, made),
                           "levenshtein": float(levenshtein_distances(
               [r.tolist() for r in real_ranked], [r.tolist() for r in made_ranked]).mean())}
    if len(set(labels.tolist())) > 1:
        found = knn_accuracy(real, labels, made, labels, [k for k in KNN if k <= len(real)],
                             min(config.components, len(real) - 1), config.seed)
        out |= {f"knn_{k}": value for k, value in found.items()}
        out["by_label"] = {name: {"scfid": d.value, "cells": d.n_real, "knn_5": float(np.nan)}
                           for name, d in scfid_by_class(real, labels, made, labels, embed, genes).items()}
        for name in out["by_label"]:
            mine = labels == name
            out["by_label"][name]["knn_5"] = knn_accuracy(
                real, labels, made[mine], labels[mine], [min(5, len(real))],
                min(config.components, len(real) - 1), config.seed)[min(5, len(real))]
    return out


def _perturbed(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Mean effect of each test condition as predicted from control cells, against the measured one and baselines."""
    rows, model, cells, config = _rows(setting, task), setting.model, setting.cells, setting.config
    examples = _examples(setting, task, rows)
    count = bounds(task.config.genes)[1]
    room = max(len(e.response) for e in examples) + 1
    parsed = [model.tokens.ranked(ids) for ids in _answers(setting, task, examples, room, config.temperature)]
    pair = task.config.pair
    assert pair is not None
    conditions = cells.labels(pair.column).astype(str)
    train = read_back([cells.ranked(int(r)) for r in setting.train], count, model)
    control = train[conditions[setting.train] == pair.control].mean(0)
    wanted = sorted(set(conditions[rows]))
    # Where a part was never measured alone there is no additive prediction.
    seen = set(conditions[setting.train])
    whole = [c for c in wanted if all(p in seen for p in c.split("+"))]
    baselines = perturbation_baselines(train, conditions[setting.train], whole, pair.control) if whole else {}
    made = read_back([ranked for ranked, _ in parsed], count, model)
    real = read_back([cells.ranked(int(r)) for r in rows], count, model)
    report: dict[str, Any] = {"kind": "perturbed", "cells": len(rows), "genes": count, "conditions": {}}
    for condition in wanted:
        mine = conditions[rows] == condition
        truth = real[mine].mean(0)
        predicted: Mapping[str, np.ndarray] = {"model": made[mine].mean(0), **{
            name: found[condition] for name, found in baselines.items() if condition in found}}
        report["conditions"][condition] = {
            "cells": int(mine.sum()), "in_training": condition in seen,
            "scores": {name: delta_agreement(truth, x, control) for name, x in predicted.items()}}
    return report, {"rows": rows, "real": real, "model": made, "conditions": conditions[rows], "control": control}


def _texts(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """ROUGE and similarity of captions and summaries."""
    rows, model = _rows(setting, task), setting.model
    examples = _examples(setting, task, rows)
    room = max(len(e.response) for e in examples) + 1
    answers = [model.text(ids) for ids in _answers(setting, task, examples, room, 0.0)]
    truth = [model.text(e.response) for e in examples]
    found = {**rouge(truth, answers), "similarity": similarity(truth, answers)}
    return ({"kind": "text", "groups": len(rows), "scores": {n: [i.value, i.low, i.high] for n, i in found.items()}},
            {"rows": rows, "truth": truth, "answers": answers})


def cell_names(cells: Cells, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Predicted and true texts by cell, for a JSONL."""
    return [{"task": name, "cell": str(cells.names[row]), "truth": str(t), "answer": str(a)}
            for name, found in arrays.items() if "truth" in found
            for row, t, a in zip(found["rows"], found["truth"], found["answers"], strict=True)]


def write(out: str | Path, report: dict[str, Any], cells: Cells) -> None:
    """`evaluation.json` and `predictions.jsonl` in a directory."""
    from jaxllm.files import write_json, write_jsonl

    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(Path(out) / "evaluation.json", {k: v for k, v in report.items() if k != "arrays"})
    write_jsonl(Path(out) / "predictions.jsonl", cell_names(cells, report["arrays"]))
