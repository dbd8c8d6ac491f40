"""From converted cells to training examples: draws of cells, groups and pairs, filled into templates.

Example j of a task is a pure function of (cells, settings, seed, j): a resumed run and any number of processes see the
same ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxllm.cells.shards import Cells
from jaxllm.cells.templates import SENTENCES, Part, Template, check_fields
from jaxllm.cells.vocabulary import GeneTokens
from jaxllm.config import ConfigError, check, nearest
from jaxllm.files import read_jsonl

# One whole number, or (least, most) of which one is drawn for each example.
Count = int | tuple[int, int]
CONTROL, PERTURBED = "control", "perturbed"


@dataclasses.dataclass(frozen=True)
class PairConfig:
    """Which cells are controls, and which one a perturbed cell is shown with.

    Attributes:
      column: obs column that names the perturbation.
      control: its value in untreated cells.
      match: obs columns in which a control must equal the perturbed cell, such as batch and cell type.
      separator: between the parts of a combination's name.
      controls: also learn controls, shown beside another control, as what becomes of a cell that is left alone.
    """

    column: str
    control: str
    match: tuple[str, ...] = ()
    separator: str = "+"
    controls: bool = False

    def spoken(self, condition: str) -> str:
        """A condition as prompts name it: the parts of a combination are words of their own."""
        return f" {self.separator} ".join(part.strip() for part in condition.split(self.separator))


@dataclasses.dataclass(frozen=True)
class CellTaskConfig:
    """One task of the mixture.

    Attributes:
      template: its name among the templates.
      weight: share of the examples.
      genes: most expressed genes kept of each cell.
      cells: cells of a group.
      group: obs column whose equal values make a group; None takes cells at random.
      texts: what to say of each group: JSONL with `key` (a value of `group`) and `text`, or `column:NAME` for the obs
        column that holds it; None takes no texts.
      pair: controls, for templates that draw pairs.
      response_length: EOS-filled length of its responses, where it is not that of the run (masked diffusion).
      loss_weight: what each learned token counts in training: labels are a few tokens beside hundreds of genes.
      redraw_ties: genes of equal expression in another order each time, in training: what their order in the shards
        says is chance, and few cells are soon learned by heart with it. Needs shards with expression.
      dropout: share of a cell's genes left out at random, which keeps the order of the others; 0 for none.
    """

    template: str
    weight: float = 1.0
    genes: Count = 200
    cells: Count = 1
    group: str | None = None
    texts: str | None = None
    pair: PairConfig | None = None
    response_length: int | None = None
    loss_weight: float = 1.0
    redraw_ties: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("genes", "cells"):
            value = getattr(self, name)
            low, high = bounds(value)
            check(1 <= low <= high, f"tasks.{name}", value, "must be at least 1; a range is (least, most)")
        check(self.weight > 0, "tasks.weight", self.weight, "must be positive; leave the task out instead")
        check(self.loss_weight > 0, "tasks.loss_weight", self.loss_weight, "must be positive")
        check(0 <= self.dropout < 1, "tasks.dropout", self.dropout, "must lie in [0, 1)")
        check(self.texts is None or self.group is not None, "tasks.texts", self.texts,
              "texts are given by the value of tasks.group; set it")


def column_of(setting: str) -> str | None:
    """The obs column that a setting names as `column:NAME`; None where it says something else."""
    return setting.removeprefix("column:") if setting.startswith("column:") else None


def bounds(count: Count) -> tuple[int, int]:
    """(least, most) of a count."""
    return count if isinstance(count, tuple) else (count, count)


class Example(NamedTuple):
    """Token ids of a prompt and its response, without an end."""

    prompt: list[int]
    response: list[int]


class Drawn(NamedTuple):
    """What fills a template: words, and genes of each cell of a sentence field."""

    words: Mapping[str, str]
    genes: Mapping[str, Sequence[np.ndarray]]
    cells: tuple[int, ...]


class TaskExamples:
    """Endless examples of one task over some of the cells."""

    def __init__(self, cells: Cells, tokens: GeneTokens, template: Template, config: CellTaskConfig,
                 rows: np.ndarray, *, columns: Mapping[str, str], organism: str, seed: int, source: str) -> None:
        """Look up columns, groups and pairs; cells that lack a value they are shown by are left out.

        Args:
          cells: converted cells.
          tokens: writes words and genes.
          template: wordings.
          config: the task.
          rows: int `[n]`, cells to draw from.
          columns: placeholder to obs column.
          organism: what the prompts call it, or `column:NAME` for an obs column.
          seed: of all draws.
          source: names the config in errors.

        Raises:
          ConfigError: other genes than the tokens', a column, a value or a text is missing, or no cell fits.
        """
        check(cells.genes == tokens.genes, "cells", str(cells.directory), f"its {len(cells.genes)} genes are not the "
              f"model's {len(tokens.genes)} in their order, and would be read as others; convert with genes.vocabulary="
              "DIR genes.unknown=drop, DIR being the cells that it was trained on")
        self.config, self.template, self.rows = config, template, np.asarray(rows)
        self.unmatched = 0  # perturbed cells without a control that matches
        self._cells, self._tokens, self._seed = cells, tokens, seed
        extra = {"perturbation"} if config.pair is not None else set()
        check_fields(template, {*columns, *extra}, source)
        self._columns = {name: cells.texts(column) for name, column in columns.items()
                         if name in template.fields}
        column = column_of(organism)
        self._organism = organism if column is None else cells.texts(column)
        self.rows, self.missing = self._complete(self.rows)
        check(len(self.rows) > 0, source, 0, "no cells are left to draw from; look at cells.split and at missing "
              "labels")
        getattr(self, f"_open_{template.draws}")(source)
        self._texts = None
        if config.texts is not None:
            column = column_of(config.texts)
            self._texts = _read_texts(config.texts, self._groups) if column is None else \
                self._column_texts(column, source)
        check(self._texts is not None or "text" not in template.fields, f"{source}.texts", None,
              f"template {template.name!r} names {{text}}; give a JSONL of key and text")

    def _complete(self, rows: np.ndarray) -> tuple[np.ndarray, int]:
        """Rows that have a value in every column they are shown by, and how many have not."""
        columns = list(self._columns.values())
        columns += [] if isinstance(self._organism, str) else [self._organism]
        task = self.config
        columns += [self._cells.texts(task.group)] if task.group is not None and self.template.draws == "group" else []
        columns += [self._cells.texts(task.pair.column)] if task.pair is not None else []
        whole = np.ones(len(rows), bool)
        for values in columns:
            whole &= values[rows] != ""
        return rows[whole], int((~whole).sum())

    def _open_cell(self, source: str) -> None:
        self._groups: dict[str, np.ndarray] = {}

    def _open_group(self, source: str) -> None:
        config = self.config
        if config.group is None:
            self._groups = {"": self.rows}
            return
        values = self._cells.texts(config.group)[self.rows]
        self._groups = {value: self.rows[values == value] for value in sorted(set(values.tolist()))}
        self._of = dict(zip(self.rows.tolist(), values.tolist(), strict=True))

    def _column_texts(self, column: str, source: str) -> dict[str, str]:
        """The one text of each group in an obs column."""
        values, found = self._cells.texts(column), {}
        for key, rows in self._groups.items():
            texts = set(values[rows].tolist()) - {""}
            check(len(texts) == 1, f"{source}.texts", f"column:{column}",
                  f"group {key!r} has {len(texts)} texts there; it needs one")
            found[key] = texts.pop()
        return found

    def _open_pair(self, source: str) -> None:
        pair = self.config.pair
        if pair is None:
            raise ConfigError(f"{source}.pair=None: template {self.template.name!r} draws pairs; give column and "
                              "control")
        self._groups = {}
        self._condition = self._cells.texts(pair.column)
        treated = self._condition != pair.control
        if treated.all():
            raise ConfigError(f"{source}.pair.control={pair.control!r}: no cell has it in {pair.column!r}; "
                              f"{nearest(pair.control, sorted(set(self._condition)))}")
        strata = list(zip(*(self._cells.texts(c) for c in pair.match), strict=True)) or \
            [()] * len(self._cells)
        controls: dict[Any, list[int]] = {}
        for row in self.rows[~treated[self.rows]]:
            controls.setdefault(strata[row], []).append(int(row))
        self._controls = {key: np.array(rows) for key, rows in controls.items()}
        self._stratum = strata
        mine = self.rows if pair.controls else self.rows[treated[self.rows]]
        kept = np.array([r for r in mine if strata[r] in self._controls], int)
        self.unmatched = len(mine) - len(kept)
        check(len(kept) > 0, f"{source}.pair.match", pair.match, "no perturbed cell of this part of cells.split has a "
              "control there that equals it; give every part a share of all cells")
        self.rows = kept

    def draw(self, index: int) -> tuple[np.random.Generator, int]:
        """The generator of example `index`, and the cell that it starts from."""
        n = len(self.rows)
        epoch, place = divmod(int(index), n)
        row = int(self.rows[_order(self._seed, epoch, n)[place]])
        return np.random.default_rng([self._seed, 1, int(index)]), row

    def example(self, index: int, limit: int, response_limit: int | None = None) -> Example:
        """Example `index` in at most `limit` tokens; where it is longer, cells lose their last genes.

        With `response_limit` the response has at most so many, and the prompt what `limit` leaves beside them.

        Raises:
          ConfigError: the words alone are longer.
        """
        rng, row = self.draw(index)
        wording = self.template.prompts[int(rng.integers(len(self.template.prompts)))]
        return self.write(self.of_cell(row, rng), wording, limit, response_limit)

    def of_cell(self, row: int, rng: np.random.Generator) -> Drawn:
        """What an example that starts from cell `row` shows."""
        config = self.config
        kept = int(rng.integers(bounds(config.genes)[0], bounds(config.genes)[1] + 1))
        words = self._words(row)
        if self.template.draws == "cell":
            return Drawn(words, {"sentence": [self._genes(row, kept, rng)]}, (row,))
        if self.template.draws == "pair":
            assert self.config.pair is not None
            controls = self._controls[self._stratum[row]]
            control = int(controls[rng.integers(len(controls))])
            if control == row and len(controls) > 1:
                control = int(rng.choice(controls[controls != row]))
            words["perturbation"] = self.config.pair.spoken(str(self._condition[row]))
            return Drawn(words, {CONTROL: [self._genes(control, kept, rng)],
                                 PERTURBED: [self._genes(row, kept, rng)]}, (control, row))
        key = "" if config.group is None else self._of[row]
        others = self._groups[key]
        wanted = int(rng.integers(bounds(config.cells)[0], bounds(config.cells)[1] + 1))
        count = min(wanted, len(others))
        drawn = [row, *(int(r) for r in rng.permutation(others[others != row])[:count - 1])]
        rng.shuffle(drawn)
        if self._texts is not None:
            words["text"] = self._texts[key]
        words["num_cells"] = str(count)
        return Drawn(words, {"sentences": [self._genes(r, kept, rng) for r in drawn]}, tuple(drawn))

    def of_base(self, row: int, perturbation: str, genes: int) -> Drawn:
        """What is shown of a control cell `row` whose answer is asked for under any perturbation."""
        rng = np.random.default_rng(0)
        assert self.config.pair is not None
        words = {**self._words(row), "perturbation": self.config.pair.spoken(perturbation)}
        return Drawn(words, {CONTROL: [self._genes(row, genes, rng)]}, (row,))

    def _words(self, row: int) -> dict[str, str]:
        words = {name: str(values[row]) for name, values in self._columns.items()}
        words["organism"] = self._organism if isinstance(self._organism, str) else str(self._organism[row])
        return words

    def _genes(self, row: int, count: int, rng: np.random.Generator) -> np.ndarray:
        ranked = self._cells.ranked(row)
        if self.config.redraw_ties:
            ranked = ranked[np.lexsort((rng.random(len(ranked)), -self._cells.expression(row)))]
        if self.config.dropout:
            ranked = ranked[rng.random(len(ranked)) >= self.config.dropout]
        return ranked[:count]

    def write(self, drawn: Drawn, wording: Sequence[Part], limit: int, response_limit: int | None = None) -> Example:
        """Ids of a prompt of this `wording` and its response; limits as in `example`.

        Raises:
          ConfigError: the words alone are longer.
        """
        genes = drawn.genes
        shown = [f for parts in (wording, self.template.response) for p in parts if (f := p.field) in SENTENCES]
        sizes = {field: [self._tokens.lengths(g) for g in genes[field]] for field in set(shown)}
        most = max((len(g) for field in set(shown) for g in genes[field]), default=0)
        # Numbers of genes are words too, so that their own length may change with what is cut.
        while True:
            cut = {field: [g[:most] for g in genes[field]] for field in set(shown)}
            words = {**drawn.words, "num_genes": str(most)}
            prompt = self._fill(wording, words, cut)
            response = self._fill(self.template.response, words, cut, spaced=not _ends_in_newline(wording, words))
            over = len(prompt) + len(response) - limit
            if response_limit is not None:
                over = max(len(prompt) + response_limit - limit, len(response) - response_limit)
            if over <= 0:
                return Example(prompt, response)
            if most == 0:
                raise ConfigError(f"task {self.template.name!r}: its words alone take {len(prompt)} tokens in the "
                                  f"prompt and {len(response)} in the response, {over} too many; raise cells.length"
                                  + ("" if response_limit is None else " or cells.response_length"))
            last = sum(int(s[max(most - 1, 0):most].sum()) for f in shown for s in sizes[f])
            # Each step drops at least one gene a cell, and as many as are surely too many.
            heaviest = max(sum(int(s[:most].max(initial=1)) for f in shown for s in sizes[f]), last, 1)
            most = max(0, most - max(1, over // heaviest))

    def _fill(self, parts: Sequence[Part], words: Mapping[str, str], genes: Mapping[str, Sequence[np.ndarray]],
              spaced: bool = True) -> list[int]:
        """Ids of a template's parts; words that stand together are encoded together."""
        out: list[int] = []
        text = " " if spaced and parts is self.template.response else ""
        for part in parts:
            if part.field not in SENTENCES:
                text += part.text if part.field is None else words[part.field]
                continue
            space = text.endswith(" ")
            out += self._tokens.words(text.removesuffix(" ")) if text.strip(" ") else []
            text = ""
            out += self._sentences(genes[part.field], space, many=part.field == "sentences")
        return out + (self._tokens.words(text) if text else [])

    def _sentences(self, cells: Sequence[np.ndarray], spaced: bool, many: bool) -> list[int]:
        if not many:
            return self._tokens.sentence(cells[0], spaced)
        out: list[int] = []
        for number, ranked in enumerate(cells, 1):
            out += self._tokens.words(f"{'' if number == 1 else chr(10)}Cell {number}:")
            out += self._tokens.sentence(ranked)
        return out


def _ends_in_newline(wording: Sequence[Part], words: Mapping[str, str]) -> bool:
    last = wording[-1]
    return (last.text if last.field is None else words.get(last.field, "")).endswith("\n")


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, 0, epoch]).permutation(n)


def _read_texts(path: str, groups: Mapping[str, Any]) -> dict[str, str]:
    if not Path(path).is_file():
        raise ConfigError(f"tasks.texts={path!r}: no such file; expected JSONL with key and text")
    texts = {}
    for number, line in enumerate(read_jsonl(Path(path)), 1):
        if not isinstance(line.get("key"), str) or not isinstance(line.get("text"), str):
            raise ConfigError(f"{path}:{number}: {json.dumps(line)[:80]}: expected key and text, both texts")
        texts[line["key"]] = line["text"]
    missing = sorted(set(groups) - set(texts))
    if missing:
        raise ConfigError(f"{path}: no text for group {missing[0]!r}" +
                          (f" and {len(missing) - 1} more" if len(missing) > 1 else ""))
    return texts
