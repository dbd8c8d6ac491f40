"""A model of cells measured on cells that it has not seen, beside what needs no language model.

Labels by exact match of what the model writes; generated cells, and perturbed ones, in the space of sentences: real,
generated and baseline cells alike are cut to the same number of genes and read back through the fitted line, so that
no side gains by its form. Labels and texts are here, cells in `evaluation_cells`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.cells.baselines import LABEL_BASELINES, LabelledCells, label_baselines, score_baselines
from jaxllm.cells.classification import Classification, classification, clean_label
from jaxllm.cells.decoding import CellModel
from jaxllm.cells.evaluation_cells import (
    EvaluateConfig,
    Setting,
    answers,
    examples,
    generated,
    known_rows,
    perturbed,
)
from jaxllm.cells.examples import TaskExamples
from jaxllm.cells.generate import write_h5ad
from jaxllm.cells.metrics import reconstruction
from jaxllm.cells.shards import Cells
from jaxllm.cells.split import split_cells
from jaxllm.cells.texts import rouge, similarity
from jaxllm.config import check
from jaxllm.files import write_json, write_jsonl

DEFAULTS = EvaluateConfig()
RECONSTRUCTED = 256  # test cells whose way through the line is measured


def evaluate(model: CellModel, cells: Cells, config: EvaluateConfig = DEFAULTS,
             log: Callable[[str], None] = print) -> dict[str, Any]:
    """Every task of the model on the test part of its split.

    Returns:
      `tasks`: by number and template, what was measured, as JSON; `arrays`: what the plots are drawn from.

    Raises:
      ConfigError: the cells are not those that the model was trained on, or a task has no test cells.
    """
    if config.part == "test":
        parts = split_cells(cells, model.data.split)
    else:
        parts = {"train": np.zeros(0, np.int64), "validation": np.zeros(0, np.int64), "test": np.arange(len(cells))}
    check(config.part == "all" or cells.manifest["made_from"] == model.made_from, "cells", str(cells.directory),
          "are not the ones that the model was trained on, so which of them it knows cannot be told; set part=all if "
          "it knows none")
    setting = Setting(model, cells, parts["train"], parts["test"], config)
    out: dict[str, Any] = {"cells": {name: len(rows) for name, rows in parts.items()}, "tasks": {}}
    out["reconstruction"] = _reconstruction(setting)
    arrays: dict[str, Any] = {}
    for number, task in enumerate(model.data.tasks):
        name = f"{number}_{task.template}"
        opened = setting.task(number)
        measure = {"label": _labels, "cell": generated, "perturbed": perturbed, "text": _texts}.get(
            opened.template.answers)
        if measure is None:
            log(f"{name}: groups of generated cells are not measured; see its single-cell counterpart")
            continue
        if measure in (generated, perturbed) and not len(setting.train):
            log(f"{name}: is measured against training cells, of which there are none here; left out")
            continue
        left = f"; {opened.missing} lack a value" if opened.missing else ""
        left += f"; {opened.unmatched} have no control that matches" if opened.unmatched else ""
        log(f"{name}: {len(opened.rows)} cells to draw from{left}")
        out["tasks"][name], arrays[name] = measure(setting, opened)
    return {**out, "arrays": arrays}


def _reconstruction(setting: Setting) -> dict[str, Any]:
    """How measured expression comes back through ranks and the line, over the genes that a cell expresses."""
    if not setting.cells.manifest["settings"]["expression"]:
        return {}
    rows = setting.test[:RECONSTRUCTED]
    found = reconstruction(setting.cells.matrix(rows).toarray(),
                           setting.model.read_back([setting.cells.ranked(int(r)) for r in rows]), nonzero=True)
    return {"cells": len(rows), "mean": dataclasses.asdict(found.mean),
            "per_cell": {name: [i.value, i.low, i.high] for name, i in found.cells.items()}}


def _independent(setting: Setting, task: TaskExamples) -> np.ndarray:
    """Test cells to start from: one of each group, since draws of one group are no independent items."""
    if task.template.draws != "group" or task.config.group is None:
        return setting.rows(task)
    values = setting.cells.texts(task.config.group)[task.rows]
    return task.rows[np.sort(np.unique(values, return_index=True)[1])]


def _labels(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """Accuracy and macro-F1 by exact match, beside classifiers of the same training cells."""
    model = setting.model
    field = next(p.field for p in task.template.response if p.field is not None)
    pair = task.config.pair
    column = model.data.columns.get(field) if pair is None or field != "perturbation" else pair.column
    rows = known_rows(setting, _independent(setting, task), column)
    asked = examples(setting, task, rows)
    said = [model.text(ids) for ids in answers(setting, task, asked)]
    truth = [model.text(e.response) for e in asked]
    known, learned = None, {}
    if column is not None and column in model.labels:
        known = list(model.labels[column])
        learned = model.said_as(column, str if pair is None else pair.spoken)
    truth, said = ([learned.get(clean_label(text), text) for text in texts] for texts in (truth, said))
    found = {"model": classification(np.array(truth), said, known, seed=setting.config.seed)}
    if setting.config.baselines and len(setting.train) and column is not None:
        # Training leaves out cells without a label, and so do the classifiers.
        shown = setting.train[setting.cells.texts(column)[setting.train] != ""]
        train, test = (labelled(setting.cells, part, column) for part in (shown, rows))
        # A group or a pair is no single cell for a classifier to see.
        names = LABEL_BASELINES if task.template.draws == "cell" else ("majority",)
        plain = label_baselines(train, test, seed=setting.config.seed, names=names)
        found |= score_baselines(test.labels, plain, model.labels[column], seed=setting.config.seed)
    report = {"kind": "label", "cells": len(rows), "invalid": found["model"].invalid,
              "scores": {name: _scores(c) for name, c in found.items()},
              "f1": found["model"].f1}
    return report, {"confusion": found["model"].confusion, "labels": found["model"].labels,
                    "rows": rows, "truth": truth, "answers": said}


def labelled(cells: Cells, rows: np.ndarray, column: str) -> LabelledCells:
    """Cells as the classifiers take them."""
    ranked: Any = [cells.ranked(int(row)) for row in rows]
    return LabelledCells(cells.matrix(rows), cells.texts(column)[rows], ranked)


def _scores(found: Classification) -> dict[str, list[float]]:
    return {name: [i.value, i.low, i.high] for name, i in (("accuracy", found.accuracy), ("macro_f1", found.macro_f1))}


def _texts(setting: Setting, task: TaskExamples) -> tuple[dict[str, Any], dict[str, Any]]:
    """ROUGE and similarity of captions and summaries, one of each group.

    Cells are new, but the text of a group that has training cells was learned: `in_training` counts those.
    """
    rows, model = _independent(setting, task), setting.model
    asked = examples(setting, task, rows)
    said = [model.text(ids) for ids in answers(setting, task, asked)]
    truth = [model.text(e.response) for e in asked]
    found = {**rouge(truth, said), "similarity": similarity(truth, said)}
    seen = 0
    if task.config.group is not None:
        values = setting.cells.texts(task.config.group)
        seen = int(np.isin(values[rows], values[setting.train]).sum())
    return ({"kind": "text", "groups": len(rows), "in_training": seen,
             "scores": {n: [i.value, i.low, i.high] for n, i in found.items()}},
            {"rows": rows, "truth": truth, "answers": said})


def cell_names(cells: Cells, arrays: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Predicted and true texts by cell, for a JSONL."""
    return [{"task": name, "cell": str(cells.names[row]), "truth": str(t), "answer": str(a)}
            for name, found in arrays.items() if "truth" in found
            for row, t, a in zip(found["rows"], found["truth"], found["answers"], strict=True)]


def write(out: str | Path, report: dict[str, Any], cells: Cells) -> None:
    """`evaluation.json`, `predictions.jsonl` and, of each task of generated cells, all sets in one .h5ad.

    Their obs says set and label; embedded elsewhere, such as by scGPT, `jaxllm cells scfid` compares them again.
    """
    Path(out).mkdir(parents=True, exist_ok=True)
    write_json(Path(out) / "evaluation.json", {k: v for k, v in report.items() if k != "arrays"})
    write_jsonl(Path(out) / "predictions.jsonl", cell_names(cells, report["arrays"]))
    for task, found in report["arrays"].items():
        if report["tasks"][task]["kind"] != "cell":
            continue
        sets = {name: found[name] for name in ("real", *report["tasks"][task]["sets"])}
        count = len(found["labels"])
        write_h5ad(Path(out) / f"{task}.h5ad", np.concatenate(list(sets.values())), cells.genes,
                   [f"{name} {i}" for name in sets for i in range(count)],
                   {"set": np.repeat(list(sets), count).tolist(), "label": found["labels"].tolist() * len(sets)})
