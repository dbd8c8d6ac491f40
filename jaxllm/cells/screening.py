"""A dual-context virtual screen with a trained model: candidates x contexts x cells, decoded in batches, resumable.

Base cells are control cells of two contexts. For each candidate the model writes every base cell as it would be after
treatment; what a gene program gains over the same cells written for the control is that candidate's effect. The
statistics are those of `jaxllm.cells.screen`. What comes out are a model's predictions, to be tested at the bench.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxllm.cells.decoding import WRITTEN, AnswerConfig, CellModel
from jaxllm.cells.examples import TaskExamples, bounds
from jaxllm.cells.expression import sample
from jaxllm.cells.generate import perturbations, perturbed_task, write_perturbed
from jaxllm.cells.plots import plot_volcano
from jaxllm.cells.programs import MHC_I, fit_program, rank_score
from jaxllm.cells.screen import ScreenConfig, ScreenTable, by_group, screen
from jaxllm.cells.shards import Cells
from jaxllm.config import ConfigError, check, nearest, to_dict
from jaxllm.files import read_json, read_jsonl, write_json, write_jsonl

SCORES, SETTINGS, TABLE, VOLCANO = "scores.jsonl", "screen.json", "table.jsonl", "volcano.png"


@dataclasses.dataclass(frozen=True)
class VirtualScreenConfig:
    """What is screened.

    Attributes:
      context_column: obs column of the two contexts, whose values `statistics.positive` and `neutral` name.
      candidates: perturbations to try, or new combinations of them; none for all that the model was trained on.
      cells: base cells of each context, drawn by the seed; 0 for all.
      control: what effects are counted from: the base cells as the model writes them for the control (`predicted`; it
        must have been trained with `pair.controls`), or as they were measured (`base`), which puts the model's own
        inaccuracy into every effect.
      repeats: cells written for each base cell; their mean score counts. More of the control's take its noise, which
        all candidates share, out of their p-values.
      program: genes whose score counts.
      score: `expression`, by the fitted line against matched background genes, or `rank`, by the place of the
        program's genes in the sentence.
      answers: how cells are written; their length follows from the task.
      statistics: intervals, p-values and corrections.
      group_column: obs column of donors, plates or other groups whose cells are not independent: statistics are then
        taken over the groups' means, not over cells. Each context needs three groups.
      seed: of base cells and draws.
    """

    context_column: str = "context"
    candidates: tuple[str, ...] = ()
    cells: int = 50
    control: Literal["predicted", "base"] = "predicted"
    repeats: int = 1
    program: tuple[str, ...] = MHC_I
    score: Literal["expression", "rank"] = "expression"
    answers: AnswerConfig = WRITTEN
    statistics: ScreenConfig = ScreenConfig()
    group_column: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.cells >= 0, "cells", self.cells, "must not be negative; 0 for all")
        check(self.repeats >= 1, "repeats", self.repeats, "must be at least 1")
        check(len(set(self.candidates)) == len(self.candidates), "candidates", self.candidates, "name each once")


def virtual_screen(model: CellModel, cells: Cells, config: VirtualScreenConfig, out: str | Path,
                   log: Callable[[str], None] = print) -> ScreenTable:
    """Run or go on with a screen; scores, table and volcano plot go to the directory `out`.

    Every candidate's scores are written as soon as they are there, and a screen that was stopped goes on behind them.
    A written cell hangs on its base cell, candidate and seed alone.

    Raises:
      ConfigError: the model knows no perturbations or not these, a context has no control cells, or `out` holds
        another screen.
    """
    out = Path(out)
    task, number = perturbed_task(model, cells)
    pair = model.data.tasks[number].pair
    assert pair is not None
    conditions = cells.texts(pair.column)
    check(config.control == "base" or pair.controls, "control", "predicted", "the model never saw control cells "
          f"written for {pair.control!r}; train with pair.controls, or use base")
    candidates = perturbations(model, task, config.candidates, "candidates")
    contexts = cells.texts(config.context_column)
    bases = {context: _bases(conditions, contexts, pair.control, context, config)
             for context in (config.statistics.positive, config.statistics.neutral)}
    groups = None if config.group_column is None else _groups(cells, bases, config.group_column)
    _agree(out, config, model, candidates, bases, number, cells)
    score = _scorer(model, cells, bases, task, config)
    there = {name.upper() for name in cells.genes}
    missing = [gene for gene in config.program if gene.upper() not in there]
    if missing:
        log(f"program: {len(missing)} of {len(config.program)} genes are not in the cells and do not count: "
            f"{', '.join(missing)}")
    needed = len(candidates) / config.statistics.fdr
    if needed > config.statistics.permutations + 1:
        log(f"statistics.permutations={config.statistics.permutations}: one hit among {len(candidates)} candidates "
            f"cannot reach q={config.statistics.fdr}; {math.ceil(needed)} could")
    if groups is not None:
        sizes = [len(set(found.tolist())) for found in groups.values()]
        ways = math.comb(sum(sizes), sizes[0])
        # Groups of equal number that change places give the same difference, turned round.
        alike = 2 if config.statistics.alternative == "two-sided" and sizes[0] == sizes[1] else 1
        if needed > ways / alike:
            log(f"group_column={config.group_column}: {sizes[0]} and {sizes[1]} groups can be arranged in {ways} ways, "
                f"so that one hit among {len(candidates)} candidates cannot reach q={config.statistics.fdr}")
    records = read_jsonl(out / SCORES) if (out / SCORES).exists() else []
    write_jsonl(out / SCORES, records)  # a kill may have left half a line
    done = {(r["candidate"], r["context"]): r["scores"] for r in records}
    if done:
        log(f"goes on behind {len(done) // 2} of {len(candidates)} candidates")
    wanted = [*([pair.control] if config.control == "predicted" else []), *candidates]
    with (out / SCORES).open("a", encoding="utf-8") as file:
        for count, name in enumerate(wanted, 1):
            left = [context for context in bases if (name, context) not in done]
            for context, found in _written(model, task, bases, left, name, cells, config, score):
                done[name, context] = found
                file.write(json.dumps({"candidate": name, "context": context, "scores": found}) + "\n")
                file.flush()
            if left:
                log(f"{name}: {count} of {len(wanted)}")
    treated = {context: np.array([done[name, context] for name in candidates]) for context in bases}
    control = {context: np.array(done[pair.control, context]) if config.control == "predicted" else
               score([cells.ranked(int(r)) for r in rows]) for context, rows in bases.items()}
    if groups is not None:
        treated, control = ({context: by_group(values, groups[context]) for context, values in scores.items()}
                            for scores in (treated, control))
    table = screen(treated, control, candidates, config.statistics)
    table.write(out / TABLE)
    plot_volcano(out / VOLCANO, table)
    return table


def _bases(conditions: np.ndarray, contexts: np.ndarray, control: str, context: str,
           config: VirtualScreenConfig) -> np.ndarray:
    """Control cells of a context."""
    rows = np.flatnonzero((conditions == control) & (contexts == context))
    values = sorted(set(contexts.tolist()))
    check(context in values, "statistics.positive or neutral", context, f"no cell has it in "
          f"{config.context_column!r}; {nearest(context, values)}")
    check(len(rows) >= 3, "context_column", context, f"has {len(rows)} control cells; a screen needs 3")
    return rows[sample(len(rows), config.cells or None, config.seed)]


def _groups(cells: Cells, bases: dict[str, np.ndarray], column: str) -> dict[str, np.ndarray]:
    """The group of each base cell, by context."""
    found = {context: cells.texts(column)[rows] for context, rows in bases.items()}
    for context, values in found.items():
        check("" not in values, "group_column", column, f"is empty for a base cell of {context!r}")
        count = len(set(values.tolist()))
        check(count >= 3, "group_column", column, f"has {count} groups among the base cells of {context!r}; "
              "statistics over groups need 3")
    return found


def _agree(out: Path, config: VirtualScreenConfig, model: CellModel, candidates: Sequence[str],
           bases: dict[str, np.ndarray], task: int, cells: Cells) -> None:
    """`ConfigError` if `out` holds a screen with other settings, other cells or another model's wordings."""
    stated = to_dict(config)
    for name in ("statistics", "group_column"):  # computed anew from the same scores
        stated.pop(name)
    stated["answers"].pop("slots")
    about = json.loads(json.dumps({
        "settings": stated, "candidates": list(candidates), "task": task, "genes": len(model.tokens.genes),
        "bases": {context: cells.names[rows].tolist() for context, rows in bases.items()},
        "weights": _sum(model.params)}, default=str))
    if (out / SETTINGS).exists() and (old := read_json(out / SETTINGS)) != about:
        other = next(name for name in about if old.get(name) != about[name])
        raise ConfigError(f"{out}: holds a screen with other {other}; use another directory")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, about)


def _sum(params: Any) -> float:
    """A number that tells models apart."""
    import jax

    return float(sum(np.abs(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(params)))


def _scorer(model: CellModel, cells: Cells, bases: dict[str, np.ndarray], task: TaskExamples,
            config: VirtualScreenConfig) -> Callable[[Sequence[np.ndarray]], np.ndarray]:
    """Scores of ranked cells, `[N]`; fitted on the base cells of both contexts as sentences of as many genes."""
    count = bounds(task.config.genes)[1]
    if config.score == "rank":
        return lambda ranked: rank_score([r[:count] for r in ranked], model.tokens.genes, config.program, count)
    rows = np.concatenate(list(bases.values()))
    fitted = fit_program(model.read_back([cells.ranked(int(r)) for r in rows], count), model.tokens.genes,
                         config.program)
    return lambda ranked: fitted(model.read_back(ranked, count))


def _written(model: CellModel, task: TaskExamples, bases: dict[str, np.ndarray], contexts: Sequence[str], name: str,
             cells: Cells, config: VirtualScreenConfig, score: Callable[[Sequence[np.ndarray]], np.ndarray]
             ) -> Iterator[tuple[str, list[float]]]:
    """Scores of every base cell as written for a candidate, by context."""
    rows, seeds, sizes = [], [], []
    for context in contexts:
        for row in bases[context].tolist():
            rows += [row] * config.repeats
            entropy = [config.seed, _number(name), _number(str(cells.names[row]))]
            drawn = np.random.SeedSequence(entropy).generate_state(config.repeats)
            seeds += [int(s) for s in drawn]
        sizes.append(len(bases[context]))
    if not rows:
        return
    made = write_perturbed(model, task, rows, [name] * len(rows), config.answers, seeds)
    found = score(made.ranked).reshape(-1, config.repeats).mean(1)
    start = 0
    for context, size in zip(contexts, sizes, strict=True):
        yield context, found[start:start + size].tolist()
        start += size


def _number(name: str) -> int:
    """A name as a seed."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "little")
