"""Training on cell sentences by the one loop, and what the written model must know to be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxllm import distributed
from jaxllm.cells.config import CellsConfig
from jaxllm.cells.feed import CellsFeed, cells_objective
from jaxllm.cells.shards import Cells
from jaxllm.cells.split import split_cells
from jaxllm.cells.templates import templates_file
from jaxllm.config import to_dict
from jaxllm.files import write_json, write_text
from jaxllm.training import TrainState, train

TEMPLATES = "templates.yaml"  # in the model's directory: the wordings it was asked with
ABOUT = "cells.json"  # in the model's directory: the cells and settings that it was trained on


def train_cells(config: CellsConfig, run_dir: str | Path, *, resume: bool = False,
                log: Callable[[str], None] = print, on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """All steps of `config`, as `jaxllm.training.train`; `run_dir/model` tells the genes, the line and the split too.

    Raises:
      RunStopped, Diverged, CheckpointError, ConfigError: as `train`.
    """
    state = train(config, cells_objective(config), run_dir, make_feed=CellsFeed, resume=resume, log=log,
                  on_step=on_step)
    if config.export and distributed.is_primary():
        cells = config.cells.open()
        wordings = templates_file(config.cells.templates).read_text(encoding="utf-8")
        write_text(Path(run_dir) / "model" / TEMPLATES, wordings)
        write_json(Path(run_dir) / "model" / ABOUT, {
            "cells": to_dict(config.cells), "seed": config.seed, "genes": list(cells.genes),
            "line": cells.manifest["line"], "labels": _labels(config, cells), "made_from": cells.manifest["made_from"]})
    return state


def _labels(config: CellsConfig, cells: Cells) -> dict[str, list[str]]:
    """Values of each labelled column among the training cells: what the model can have learned to say."""
    rows = split_cells(cells, config.cells.split)["train"]
    columns = {*config.cells.columns.values(), *(t.pair.column for t in config.cells.tasks if t.pair is not None)}
    return {column: sorted(set(cells.texts(column)[rows].tolist()) - {""}) for column in sorted(columns)}
