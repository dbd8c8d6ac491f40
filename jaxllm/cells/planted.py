"""A dual-context screen whose answer is known: planted amplifiers at a stated effect size, among decoys.

The program is antigen presentation by MHC class I. In the positive context a little interferon raises it and its own
genes; the neutral one has none. Conditional amplifiers raise the program in the positive context only.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import sparse

from jaxllm.cells.programs import MHC_I, ProgramScore, fit_program
from jaxllm.cells.simulate import SimulatedCells, draw_counts, made_cells
from jaxllm.config import check

INTERFERON = ("IFNG", "STAT1", "IRF1", "CXCL10", "GBP1", "IFIT1", "IFIT3", "ISG15")
CONTEXTS = ("positive", "neutral")
KINDS = {"amplifier": (1.0, 0.0), "both": (1.0, 1.0), "neutral only": (0.0, 1.0), "lowers": (-1.0, -1.0),
         "lowers neutral": (0.0, -1.0), "inert": (0.0, 0.0)}
"""What a kind of candidate does in the positive and the neutral context, in units of the effect size."""


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
    """A planted screen.

    Attributes:
      candidates: C.
      amplifiers: conditional ones, the true hits.
      both: raise the program in both contexts.
      neutral_only: raise it in the neutral context.
      lowers: lower it in both.
      lowers_neutral: lower it in the neutral context, which makes a split without amplification.
      cells: base cells of each context.
      effect: mean change of the program's score in standard deviations of the context's control scores.
      genes: G, the program's and interferon's among them.
      interferon: natural log fold change of the positive context's interferon genes; a third of it of the program.
      side_genes: other genes that each candidate moves, and
      side_effect: the standard deviation of their natural log fold changes.
      activity: standard deviation of a base cell's own program activity, natural log; shared with its treated cells.
      dispersion: of the negative binomial.
      library: median counts of a cell.
      seed: of everything.
    """

    candidates: int = 60
    amplifiers: int = 5
    both: int = 5
    neutral_only: int = 2
    lowers: int = 3
    lowers_neutral: int = 2
    cells: int = 60
    effect: float = 1.0
    genes: int = 300
    interferon: float = 1.0
    side_genes: int = 10
    side_effect: float = 0.5
    activity: float = 0.3
    dispersion: float = 0.1
    library: float = 3000.0
    seed: int = 0

    def __post_init__(self) -> None:
        planted = self.amplifiers + self.both + self.neutral_only + self.lowers + self.lowers_neutral
        check(self.candidates >= max(planted, 1), "planted.candidates", self.candidates,
              f"must be at least the {planted} planted ones")
        for name in ("amplifiers", "both", "neutral_only", "lowers", "lowers_neutral", "side_genes"):
            check(getattr(self, name) >= 0, f"planted.{name}", getattr(self, name), "must not be negative")
        check(self.cells >= 3, "planted.cells", self.cells, "must be at least 3")
        least = 2 * len(MHC_I) + len(INTERFERON) + self.side_genes
        check(self.genes >= least, "planted.genes", self.genes, f"must be at least {least}")
        check(0 <= self.effect <= 4, "planted.effect", self.effect, "must lie in [0, 4] standard deviations")


@dataclasses.dataclass(frozen=True)
class PlantedScreen:
    """The screen's cells and its answer.

    Attributes:
      cells: with obs `condition` (control or a candidate), `context`, `base` (the base cell's name, shared by all its
        treated cells) and `kind`; for each context, control first and then the candidates, base cells in order.
      candidates: [C] names.
      kinds: [C] of `KINDS`.
      effects: [C, 2] planted effects in standard deviations, positive and neutral.
      program: the score fitted on the control cells of both contexts.
    """

    cells: SimulatedCells
    candidates: tuple[str, ...]
    kinds: tuple[str, ...]
    effects: np.ndarray
    program: ProgramScore

    @property
    def amplifiers(self) -> tuple[str, ...]:
        """Names of the true hits."""
        return tuple(name for name, kind in zip(self.candidates, self.kinds, strict=True) if kind == "amplifier")

    def scores(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Scores of the true treated cells [C, N] and of control [N] by context: what a perfect model would predict."""
        found = self.program(self.cells.expression()).reshape(len(CONTEXTS), len(self.candidates) + 1, -1)
        return ({context: found[i, 1:] for i, context in enumerate(CONTEXTS)},
                {context: found[i, 0] for i, context in enumerate(CONTEXTS)})


def simulate_screen(config: PlantedConfig = PlantedConfig()) -> PlantedScreen:
    """Control and treated cells of every candidate in both contexts, at count level.

    The log fold change that gives the stated effect is found by simulation, for each context.
    """
    rng = np.random.default_rng(config.seed)
    planted = ["amplifier"] * config.amplifiers + ["both"] * config.both + ["neutral only"] * config.neutral_only + [
        "lowers"] * config.lowers + ["lowers neutral"] * config.lowers_neutral
    kinds = np.array(planted + ["inert"] * (config.candidates - len(planted)))
    kinds = kinds[rng.permutation(config.candidates)]
    candidates = tuple(f"drug{i + 1:04d}" for i in range(config.candidates))
    effects = config.effect * np.array([KINDS[kind] for kind in kinds.tolist()])
    genes = (*MHC_I, *INTERFERON, *(f"GENE{i + 1}" for i in range(config.genes - len(MHC_I) - len(INTERFERON))))
    base = rng.normal(0, 1.0, config.genes)
    base[: len(MHC_I)] = rng.normal(0.8, 0.4, len(MHC_I))
    own, inside = len(MHC_I), len(MHC_I) + len(INTERFERON)
    side = np.zeros((config.candidates + 1, config.genes))
    for row in side[1:]:
        row[rng.choice(np.arange(inside, config.genes), config.side_genes, replace=False)] = rng.normal(
            0, config.side_effect, config.side_genes)
    levels = np.stack([base, base])
    levels[0, :own] += config.interferon / 3
    levels[0, own:inside] += config.interferon
    program, folds = _calibrated(levels, config, genes)
    blocks, obs = [], {"condition": [], "context": [], "base": [], "kind": []}
    for i, context in enumerate(CONTEXTS):
        latent = np.random.default_rng([config.seed, 2, i]).standard_normal(config.cells)
        wanted = [0.0, *effects[:, i]]
        for j, (name, kind) in enumerate(zip(("control", *candidates), ("control", *kinds.tolist()), strict=True)):
            fold = np.interp(wanted[j], folds[i][1], folds[i][0]) if wanted[j] else 0.0
            blocks.append(_draw(np.random.default_rng([config.seed, 3, i, j]), levels[i] + side[j], fold, latent,
                                config))
            for column, values in (("condition", [name]), ("context", [context]), ("kind", [kind])):
                obs[column] += values * config.cells
            obs["base"] += [f"{context} {n + 1}" for n in range(config.cells)]
    cells = made_cells(blocks, genes, {k: np.array(v) for k, v in obs.items()})
    return PlantedScreen(cells, candidates, tuple(kinds.tolist()), effects, program)


def simulate_scores(config: PlantedConfig = PlantedConfig(), pairing: float = 0.5, fresh: bool = False
                    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """The same design on the level of scores, normal with standard deviation 1: quick, for the screen's power.

    Args:
      config: numbers of candidates and cells, effect and seed.
      pairing: correlation of a treated cell's score with its base cell's.
      fresh: whether each candidate has control cells of its own.

    Returns:
      scores [C, N] of treated cells by context, [N] of control by context ([C, N] if fresh), and kinds [C].
    """
    check(0 <= pairing < 1, "pairing", pairing, "must lie in [0, 1)")
    rng = np.random.default_rng(config.seed)
    counts = (config.amplifiers, config.both, config.neutral_only, config.lowers, config.lowers_neutral)
    kinds = np.repeat(list(KINDS), [*counts, config.candidates - sum(counts)])[rng.permutation(config.candidates)]
    treated, control = {}, {}
    for i, context in enumerate(CONTEXTS):
        effects = config.effect * np.array([KINDS[kind][i] for kind in kinds.tolist()])
        control[context] = rng.standard_normal((config.candidates, config.cells) if fresh else config.cells)
        noise = rng.standard_normal((config.candidates, config.cells))
        treated[context] = effects[:, None] + pairing * control[context] + np.sqrt(1 - pairing ** 2) * noise
    return treated, control, kinds


def _draw(rng: np.random.Generator, level: np.ndarray, fold: float, latent: np.ndarray, config: PlantedConfig) -> Any:
    """Counts of base cells [N] with their program raised by `fold` and by their own activity."""
    logits = np.broadcast_to(level, (len(latent), len(level))).copy()
    logits[:, : len(MHC_I)] += fold + config.activity * latent[:, None]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return draw_counts(rng, shares / shares.sum(1, keepdims=True), config.library, 0.3, config.dispersion)


def _calibrated(levels: np.ndarray, config: PlantedConfig, genes: tuple[str, ...]
                ) -> tuple[ProgramScore, list[tuple[np.ndarray, np.ndarray]]]:
    """The program's score, and for each context log fold changes with the shifts of the score that they make."""
    grid, n = np.linspace(-3, 3, 13), 1000
    latent = np.random.default_rng([config.seed, 4]).standard_normal(n)

    def expression(i: int, fold: float) -> Any:
        counts = _draw(np.random.default_rng([config.seed, 5, i]), levels[i], fold, latent, config)
        return made_cells([counts], genes, {}).expression()

    controls = [expression(i, 0.0) for i in range(len(levels))]
    program = fit_program(sparse.vstack(controls), genes)
    out = []
    for i, control in enumerate(controls):
        start = program(control)
        shifts = np.array([(program(expression(i, fold)) - start).mean() for fold in grid]) / start.std(ddof=1)
        least, most = shifts[0], shifts[-1]
        check(least < -config.effect and config.effect < most, "planted.effect", config.effect,
              f"the program can move by {least:.2g} to {most:.2g} standard deviations; use less")
        out.append((grid, np.maximum.accumulate(shifts)))
    return program, out
