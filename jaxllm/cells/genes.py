"""Gene names of many inputs as one vocabulary: Ensembl ids to symbols, mouse to human, upper-casing, collisions.

Columns that come to bear one name are summed by a sparse product, never made dense. Tables are the files that the
celltypist wheel carries (GENCODE v44, Ensembl 105); they are read, its code is not run.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from jaxllm.cells.datasets import package_file
from jaxllm.cells.matrices import wide
from jaxllm.config import ConfigError, check
from jaxllm.files import read_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

ENSEMBL = re.compile(r"ENS[A-Z]{0,6}G\d{11}(\.\d+)?(_PAR_Y)?")
HUMAN_IDS = "data/samples/GENCODEv44_Gene_id2name.csv"
HUMAN_TO_MOUSE = "data/samples/Ensembl105_Human2Mouse_Genes.csv"


@dataclasses.dataclass(frozen=True)
class GeneConfig:
    """How columns get their names.

    Attributes:
      symbols: var column that holds them; the var index where None.
      gene_table: CSV or TSV of Ensembl id and symbol, for ids; where None, celltypist's of human genes.
      orthologs: whether names are mouse symbols to be replaced by those of their human orthologs.
      ortholog_table: CSV or TSV of human and mouse symbol; where None, celltypist's.
      upper: whether names are upper-cased, as in the published vocabularies.
      collisions: columns of one input with one name are summed (`sum`) or an error (`refuse`).
      unknown: genes that are in no table, or outside `vocabulary`: kept under their own name (`keep`), left out
        (`drop`) or an error (`refuse`). They still count in a cell's total.
      vocabulary: text file of one gene per line, or a converted directory, whose gene indices are to be used; new
        genes come after them.
    """

    symbols: str | None = None
    gene_table: str | None = None
    orthologs: bool = False
    ortholog_table: str | None = None
    upper: bool = True
    collisions: Literal["sum", "refuse"] = "sum"
    unknown: Literal["keep", "drop", "refuse"] = "keep"
    vocabulary: str | None = None

    def __post_init__(self):
        check(self.collisions in ("sum", "refuse"), "collisions", self.collisions, "must be sum or refuse")
        check(self.unknown in ("keep", "drop", "refuse"), "unknown", self.unknown, "must be keep, drop or refuse")
        check(self.orthologs or self.ortholog_table is None, "ortholog_table", self.ortholog_table,
              "set orthologs=true to use it")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Genes of all inputs.

    Attributes:
      genes: names, in order of first occurrence.
      columns: for each input, the gene index of each of its columns, int32; -1 where the column is left out.
      collisions: names that several columns of one input share, with the columns' own names.
      unknown: columns' own names that no table or given vocabulary knows.
    """

    genes: tuple[str, ...]
    columns: tuple[np.ndarray, ...]
    collisions: dict[str, list[str]]
    unknown: tuple[str, ...]


def make_vocabulary(inputs: Sequence[tuple[str, Sequence[str]]], config: GeneConfig,
                    delimiter: str = " ") -> Vocabulary:
    """One vocabulary for several inputs.

    Args:
      inputs: what errors call an input, and its column names.
      config: how names are made.
      delimiter: must not occur in a name.

    Raises:
      ConfigError: Ensembl ids without a table, collisions or unknown genes where they are refused, a name that is
        empty or holds the delimiter.
    """
    given = read_vocabulary(config.vocabulary) if config.vocabulary else ()
    index = {gene: i for i, gene in enumerate(given)}
    collisions: dict[str, list[str]] = {}
    unknown: dict[str, None] = {}
    columns = []
    for source, originals in inputs:
        names, known = _name(originals, config, source)
        if given:
            known = [ok and name in index for name, ok in zip(names, known, strict=True)]
        strange = [o for o, ok in zip(originals, known, strict=True) if not ok]
        if strange and config.unknown == "refuse":
            raise ConfigError(f"{source}: {len(strange):,} unknown genes ({', '.join(strange[:5])}); set "
                              "genes.unknown=keep or drop, or give a table that has them")
        unknown.update(dict.fromkeys(strange))
        kept = [ok or config.unknown == "keep" for ok in known]
        _check_names([n for n, ok in zip(names, kept, strict=True) if ok], source, delimiter)
        for name, n in Counter(n for n, ok in zip(names, kept, strict=True) if ok).items():
            if n > 1:
                same = [o for o, m, ok in zip(originals, names, kept, strict=True) if ok and m == name]
                collisions[name] = list(dict.fromkeys([*collisions.get(name, ()), *same]))
                if config.collisions == "refuse":
                    raise ConfigError(f"{source}: the columns {', '.join(same)} all become {name}; set "
                                      "genes.collisions=sum, genes.upper=false, or rename them")
        columns.append(np.array([index.setdefault(name, len(index)) if ok else -1
                                 for name, ok in zip(names, kept, strict=True)], np.int32))
    return Vocabulary(tuple(index), tuple(columns), collisions, tuple(unknown))


def _check_names(names: Sequence[str], source: str, delimiter: str) -> None:
    if "" in names:
        raise ConfigError(f"{source}: {list(names).count('')} columns have no gene name; name another var column with "
                          "genes.symbols, or set genes.unknown=drop")
    bad = [name for name in names if delimiter in name]
    if bad:
        raise ConfigError(f"{source}: gene names such as {bad[0]!r} hold the delimiter {delimiter!r}; rename them or "
                          "choose another delimiter")


def _name(originals: Sequence[str], config: GeneConfig, source: str) -> tuple[list[str], list[bool]]:
    """Names of columns, and whether each is known."""
    names = ["" if o in ("nan", "None", "<NA>") else o.strip() for o in originals]
    known = [name != "" for name in names]
    ids = [bool(ENSEMBL.fullmatch(name)) for name in names]
    if sum(ids) > len(names) / 2 or (config.gene_table and any(ids)):
        table = _ensembl_table(config.gene_table, source)
        bare = [name.split(".")[0].removesuffix("_PAR_Y") for name in names]
        found = sum(b in table for b, is_id in zip(bare, ids, strict=True) if is_id)
        if found * 2 < sum(ids):
            raise ConfigError(f"{source}: only {found:,} of {sum(ids):,} Ensembl ids such as {names[ids.index(True)]} "
                              "are in the table; give one of this species as genes.gene_table (CSV: id,symbol), or "
                              "name a var column of symbols with genes.symbols")
        for i, is_id in enumerate(ids):
            if is_id:
                known[i] = bare[i] in table
                names[i] = table.get(bare[i], bare[i])
    if config.orthologs:
        table = _ortholog_table(config.ortholog_table, source)
        known = [name in table for name in names]
        names = [table.get(name, name) for name in names]
    return [name.upper() for name in names] if config.upper else names, known


def _ensembl_table(path: str | None, source: str) -> dict[str, str]:
    if path is None:
        try:
            path = str(package_file("celltypist", HUMAN_IDS))
        except ConfigError as err:
            raise ConfigError(f"{source}: its genes are Ensembl ids and there is no table of symbols: {err}; or give "
                              "genes.gene_table (CSV: id,symbol), or a var column of symbols as genes.symbols"
                              ) from None
    return {a.split(".")[0]: b for a, b in read_pairs(path) if b}


def _ortholog_table(path: str | None, source: str) -> dict[str, str]:
    """Human symbol by mouse symbol; of several, the one of the same name, else the first in the table."""
    if path is None:
        try:
            path = str(package_file("celltypist", HUMAN_TO_MOUSE))
        except ConfigError as err:
            raise ConfigError(f"{source}: no table of orthologs: {err}; or give genes.ortholog_table (CSV: "
                              "human,mouse)") from None
    table: dict[str, str] = {}
    for human, mouse in read_pairs(path):
        if human and mouse and (mouse not in table or human == mouse.upper()):
            table[mouse] = human
    return table


def read_pairs(path: str | Path) -> list[tuple[str, str]]:
    """Rows of a CSV or TSV of two columns.

    Raises:
      ConfigError: it cannot be read, or a row has fewer columns.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is no text; give a CSV or TSV of two columns") from None
    rows = []
    delimiter = "\t" if "\t" in text[:1000] else ","
    for number, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1):
        if len(row) < 2:
            raise ConfigError(f"{path}:{number}: {delimiter.join(row)[:80]!r} has no second column; give two")
        rows.append((row[0].strip(), row[1].strip()))
    return rows


def read_vocabulary(path: str | Path) -> tuple[str, ...]:
    """Genes of a converted directory, or of a text file with one per line.

    Raises:
      ConfigError: it cannot be read, is empty, or repeats a gene.
    """
    path = Path(path)
    if path.is_dir():
        genes = tuple(read_json(path / "manifest.json").get("genes", ()))
    else:
        try:
            genes = tuple(path.read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as err:
            raise ConfigError(f"{path}: cannot be read as a vocabulary ({err})") from None
    twice = [gene for gene, n in Counter(genes).items() if n > 1]
    if not genes or twice:
        raise ConfigError(f"{path}: " + (f"names {twice[0]} twice" if twice else "holds no genes"))
    return genes


def merge_columns(matrix: csr_matrix, columns: np.ndarray, num_genes: int) -> csr_matrix:
    """Rename columns, summing those with one name and leaving out those of -1.

    Args:
      matrix: [R, V] CSR.
      columns: new column of each old one [V], -1 to leave it out.
      num_genes: new columns.

    Returns:
      [R, num_genes] CSR; entries keep their order where no two columns have one name, as replaying the
      published package's ties needs.
    """
    from scipy.sparse import csr_matrix

    kept = np.flatnonzero(columns >= 0)
    if len(np.unique(columns[kept])) < len(kept):
        matrix = wide(matrix)
        places = csr_matrix((np.ones(len(kept), matrix.dtype), (kept, columns[kept])), (len(columns), num_genes))
        merged = csr_matrix(matrix @ places)
        merged.sort_indices()
        return merged
    data, indices, ends = np.asarray(matrix.data), columns[matrix.indices], np.asarray(matrix.indptr)
    if len(kept) < len(columns):
        inside = indices >= 0
        ends = np.concatenate([[0], np.cumsum(inside)])[ends]
        data, indices = data[inside], indices[inside]
    return csr_matrix((data, indices, ends), (len(ends) - 1, num_genes))
