"""Simulated cells of which the truth is known: perturbations with planted interactions, and a corpus to learn from.

Counts are negative binomial with log-normal library sizes. The same config gives the same cells.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from jaxllm.config import check

KINDS = ("synergy", "antagonism", "suppression")
BLOCK = 4096  # cells made at a time, each block from a generator of its own


@dataclasses.dataclass(frozen=True)
class SimulatedCells:
    """Cells as AnnData holds them.

    Attributes:
      counts: [N, G] CSR int32.
      genes: [G] names.
      names: [N] names of the cells.
      obs: columns [N] of text by name.
    """

    counts: sparse.csr_matrix
    genes: tuple[str, ...]
    names: tuple[str, ...]
    obs: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, chosen: np.ndarray) -> SimulatedCells:
        """The cells that an index or mask chooses."""
        index = np.arange(len(self))[chosen]
        counts: Any = self.counts[index]
        return SimulatedCells(counts, self.genes, tuple(self.names[i] for i in index),
                              {k: v[index] for k, v in self.obs.items()})

    def expression(self, target: float = 1e4) -> sparse.csr_matrix:
        """log10(1 + target x / total) [N, G] CSR; 0 for a cell without counts."""
        totals = np.maximum(np.asarray(self.counts.sum(1)).ravel(), 1)
        out = sparse.csr_matrix(self.counts, dtype=np.float64, copy=True)
        out.data = np.log10(1 + out.data * np.repeat(target / totals, np.diff(out.indptr)))
        return out


def to_anndata(cells: SimulatedCells) -> Any:
    """An `anndata.AnnData` of the counts, with obs, cell and gene names."""
    import anndata
    import pandas as pd

    obs = pd.DataFrame({k: pd.Categorical(v) for k, v in cells.obs.items()}, index=pd.Index(cells.names))
    return anndata.AnnData(X=cells.counts, obs=obs, var=pd.DataFrame(index=pd.Index(cells.genes)))


@dataclasses.dataclass(frozen=True)
class PerturbationConfig:
    """A screen of single perturbations and of their pairs.

    Attributes:
      genes: G.
      perturbations: K single ones, named A, B, ... (P27 and so on beyond Z).
      contexts: cell types in which all conditions are measured.
      cells: of each condition and context.
      affected: share of the genes that a perturbation moves.
      effect: standard deviation of their effects, natural log fold change.
      interacting: share of the pairs that do not act additively; the kinds take turns.
      strength: of synergy and antagonism, relative to the sum of the effects.
      context_spread: standard deviation of the log factor by which a context scales a perturbation's effects.
      dispersion: of the negative binomial, variance = mean + dispersion mean².
      library: median counts of a cell.
      library_spread: standard deviation of their logarithm.
      seed: of everything.
    """

    genes: int = 300
    perturbations: int = 6
    contexts: tuple[str, ...] = ("monocyte", "T cell")
    cells: int = 60
    affected: float = 0.15
    effect: float = 1.0
    interacting: float = 0.4
    strength: float = 0.8
    context_spread: float = 0.3
    dispersion: float = 0.2
    library: float = 2000.0
    library_spread: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("genes", 10), ("perturbations", 2), ("cells", 1)):
            check(getattr(self, name) >= least, f"simulation.{name}", getattr(self, name), f"use at least {least}")
        check(len(self.contexts) > 0 and len(set(self.contexts)) == len(self.contexts), "simulation.contexts",
              self.contexts, "name at least one context, each once")
        for name in ("affected", "interacting"):
            check(0 <= getattr(self, name) <= 1, f"simulation.{name}", getattr(self, name), "must lie in [0, 1]")
        for name in ("effect", "strength", "context_spread", "dispersion", "library_spread"):
            check(getattr(self, name) >= 0, f"simulation.{name}", getattr(self, name), "must not be negative")
        check(self.library > 0, "simulation.library", self.library, "must be above 0")


@dataclasses.dataclass(frozen=True)
class Perturbations:
    """Simulated perturbations and what was planted.

    Attributes:
      cells: with obs `condition` (control, A, B, A+B and so on) and `cell_type`, the context.
      effects: [G] natural log fold changes of each (context, condition), interactions included.
      interactions: kind by pair, for the pairs that do not act additively.
      proportions: [G] expected shares of counts of each (context, condition).
    """

    cells: SimulatedCells
    effects: dict[tuple[str, str], np.ndarray]
    interactions: dict[str, str]
    proportions: dict[tuple[str, str], np.ndarray]

    def profile(self, context: str, condition: str, target: float = 1e4) -> np.ndarray:
        """True profile [G]: log10(1 + target share) of the expected shares."""
        return np.log10(1 + target * self.proportions[context, condition])


def simulate_perturbations(config: PerturbationConfig = PerturbationConfig()) -> Perturbations:
    """Cells of control, of every single perturbation and of every pair, in every context.

    On the log scale a pair's effect is the sum of its parts', plus for an interacting pair: `synergy` strength x sum,
    `antagonism` -strength x sum, `suppression` minus the second part's effect, which the first one masks.
    """
    rng = np.random.default_rng(config.seed)
    singles = [chr(65 + i) if i < 26 else f"P{i + 1}" for i in range(config.perturbations)]
    base = rng.normal(0, 1.2, config.genes)
    moves = rng.random((config.perturbations, config.genes)) < config.affected
    single = dict(zip(singles, rng.normal(0, config.effect, moves.shape) * moves, strict=True))
    pairs = [f"{a}+{b}" for a, b in itertools.combinations(singles, 2)]
    chosen = rng.permutation(len(pairs))[: round(config.interacting * len(pairs))]
    interactions = {pairs[i]: KINDS[turn % len(KINDS)] for turn, i in enumerate(chosen)}
    effects: dict[tuple[str, str], np.ndarray] = {}
    proportions: dict[tuple[str, str], np.ndarray] = {}
    for context in config.contexts:
        level = base + rng.normal(0, 0.6, config.genes)
        scale = dict(zip(singles, np.exp(config.context_spread * rng.standard_normal(len(singles))), strict=True))
        for condition in ("control", *singles, *pairs):
            parts = [scale[name] * single[name] for name in condition.split("+") if name != "control"]
            total = sum(parts, np.zeros(config.genes))
            kind = interactions.get(condition)
            if kind == "suppression":
                total = total - parts[1]
            elif kind is not None:
                total = total * (1 + config.strength * (1 if kind == "synergy" else -1))
            effects[context, condition] = total
            proportions[context, condition] = _softmax(level + total)
    keys = list(proportions)
    which = np.repeat(np.arange(len(keys)), config.cells)
    blocks = []
    for number, start in enumerate(range(0, len(which), BLOCK)):
        own = np.random.default_rng([config.seed, 1, number])
        shares = np.stack([proportions[keys[i]] for i in which[start:start + BLOCK]])
        blocks.append(draw_counts(own, shares, config.library, config.library_spread, config.dispersion))
    obs = {"condition": np.array([keys[i][1] for i in which]), "cell_type": np.array([keys[i][0] for i in which])}
    return Perturbations(made_cells(blocks, [f"GENE{i + 1}" for i in range(config.genes)], obs), effects,
                         interactions, proportions)


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """Cells whose genes hang together, so that a larger model has more to learn.

    Attributes:
      cells: N.
      genes: G.
      lineages: branches of the tree of types, each with programs of its own.
      types: T, spread over the lineages.
      tissues: each shifts the shares of types and a program.
      programs: modules of genes; a gene may be in several.
      program_genes: genes of a module.
      depth: levels of the modules: one of a level is on only in cells where its two parents of the level above are
        (an AND), so what a gene says depends on others.
      noise: standard deviation of a program's activity within a type.
      dispersion: of the negative binomial.
      library: median counts of a cell.
      library_spread: standard deviation of their logarithm.
      seed: of everything.
    """

    cells: int = 20_000
    genes: int = 600
    lineages: int = 3
    types: int = 12
    tissues: int = 4
    programs: int = 24
    program_genes: int = 25
    depth: int = 3
    noise: float = 0.8
    dispersion: float = 0.1
    library: float = 2000.0
    library_spread: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("cells", "lineages", "types", "tissues", "programs", "program_genes", "depth"):
            check(getattr(self, name) > 0, f"corpus.{name}", getattr(self, name), "must be at least 1")
        check(self.genes >= self.program_genes, "corpus.genes", self.genes,
              f"must be at least program_genes={self.program_genes}")
        check(self.lineages <= self.types, "corpus.lineages", self.lineages, f"must be at most types={self.types}")
        check(self.depth * 2 <= self.programs, "corpus.depth", self.depth,
              f"leaves a level fewer than two of the {self.programs} programs; use at most {self.programs // 2}")
        for name in ("noise", "dispersion", "library_spread"):
            check(getattr(self, name) >= 0, f"corpus.{name}", getattr(self, name), "must not be negative")
        check(self.library > 0, "corpus.library", self.library, "must be above 0")


def simulate_corpus(config: CorpusConfig = CorpusConfig()) -> SimulatedCells:
    """Labelled cells with obs `cell_type`, `lineage` and `tissue`; a prefix of a larger corpus of the same seed."""
    rng, g, k = np.random.default_rng(config.seed), config.genes, config.programs
    base = rng.normal(0, 1.0, g)
    loadings = np.zeros((k, g))
    for row in loadings:
        row[rng.choice(g, config.program_genes, replace=False)] = rng.gamma(4.0, 0.3, config.program_genes)
    levels = np.sort(np.arange(k) % config.depth)
    parents = [rng.choice(np.flatnonzero(levels == level - 1), 2, replace=False) if level else np.zeros(2, np.int64)
               for level in levels]
    lineage = np.arange(config.types) % config.lineages
    drive = rng.normal(0, 1.0, (config.lineages, k))[lineage] + rng.normal(0, 0.7, (config.types, k))
    marks = rng.normal(0, 0.3, (config.types, g)) * (rng.random((config.types, g)) < 0.1)
    shift = rng.normal(0, 0.5, (config.tissues, k))
    shares = rng.dirichlet(np.full(config.types, 2.0), config.tissues)
    blocks, types, tissues = [], [], []
    for number, start in enumerate(range(0, config.cells, BLOCK)):
        own, n = np.random.default_rng([config.seed, 1, number]), min(BLOCK, config.cells - start)
        # Whole blocks are drawn and cut, so that fewer cells are the first of more.
        tissue = own.integers(0, config.tissues, BLOCK)
        kind = (own.random(BLOCK)[:, None] > shares.cumsum(1)[tissue]).sum(1).clip(max=config.types - 1)
        push = drive[kind] + shift[tissue] + config.noise * own.standard_normal((BLOCK, k))
        active = np.empty((BLOCK, k))
        for program in range(k):
            on = 1 / (1 + np.exp(-3 * push[:, program]))
            if levels[program]:
                on = on * (active[:, parents[program]].min(1) > 0.5)
            active[:, program] = on
        counts = draw_counts(own, _softmax(base + marks[kind] + active @ loadings), config.library,
                             config.library_spread, config.dispersion)
        blocks.append(counts[:n])
        types.append(kind[:n])
        tissues.append(tissue[:n])
    kinds = np.concatenate(types)
    obs = {"cell_type": np.array([f"type {i + 1}" for i in range(config.types)])[kinds],
           "lineage": np.array([f"lineage {i + 1}" for i in range(config.lineages)])[lineage[kinds]],
           "tissue": np.array([f"tissue {i + 1}" for i in range(config.tissues)])[np.concatenate(tissues)]}
    return made_cells(blocks, [f"GENE{i + 1}" for i in range(g)], obs)


def draw_counts(rng: np.random.Generator, shares: np.ndarray, library: float, library_spread: float,
                dispersion: float) -> sparse.csr_matrix:
    """Negative binomial counts [N, G] CSR int32 with expected `shares` [N, G] of log-normal library sizes.

    Args:
      rng: advanced.
      shares: rows that sum to 1.
      library: median counts of a cell.
      library_spread: standard deviation of their logarithm.
      dispersion: variance = mean + dispersion mean²; 0 for Poisson.
    """
    mean = shares * library * np.exp(library_spread * rng.standard_normal((len(shares), 1)))
    rate = rng.gamma(1 / dispersion, dispersion * mean) if dispersion > 0 else mean
    return sparse.csr_matrix(rng.poisson(rate).astype(np.int32))


def made_cells(blocks: Sequence[Any], genes: Sequence[str], obs: Mapping[str, np.ndarray]) -> SimulatedCells:
    """Blocks of counts as one set of cells, named by number."""
    counts: Any = sparse.csr_matrix(sparse.vstack(blocks, format="csr"))
    names = tuple(f"cell{i + 1:07d}" for i in range(counts.shape[0]))
    return SimulatedCells(counts, tuple(genes), names, dict(obs))


def _softmax(x: np.ndarray) -> np.ndarray:
    out = np.exp(x - x.max(-1, keepdims=True))
    return out / out.sum(-1, keepdims=True)
