"""Predicted labels against true ones: exact match after light cleaning, accuracy and macro-F1 with intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.config import ConfigError, check, nearest
from jaxllm.studies.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Classification:
    """What predictions are worth.

    Attributes:
      accuracy: share that is right.
      macro_f1: mean F1 of the labels that occur among the true ones.
      labels: the L known labels, in order.
      confusion: [L, L + 1] counts; row true, column predicted, the last for texts that are no label.
    """

    accuracy: Interval
    macro_f1: Interval
    labels: tuple[str, ...]
    confusion: np.ndarray

    @property
    def f1(self) -> dict[str, float]:
        """F1 by label; NaN for a label that no true cell has."""
        return dict(zip(self.labels, _f1(self.confusion[None])[0].tolist(), strict=True))

    @property
    def invalid(self) -> int:
        """Predictions that are no label; they count as wrong."""
        return int(self.confusion[:, -1].sum())


def clean_label(text: str, ignore_case: bool = False) -> str:
    """`text` without white space around it and without a full stop at its end; case-folded with `ignore_case`."""
    out = text.strip().removesuffix(".").strip()
    return out.casefold() if ignore_case else out


def classification(true: Sequence[Any] | np.ndarray, predicted: Sequence[Any] | np.ndarray,
                   labels: Sequence[str] | None = None, *, ignore_case: bool = False, level: float = 0.95,
                   samples: int = 1000, seed: int = 0) -> Classification:
    """Compare texts exactly, after `clean_label`, with percentile intervals from cells drawn again.

    Args:
      true: [N] labels.
      predicted: [N] texts, such as a model's answers; one that is no label is wrong.
      labels: those that were to be learned; None for the true ones.
      ignore_case: take B cell and b cell for the same.
      level: of the intervals.
      samples: bootstrap samples of cells.
      seed: of the draws.

    Raises:
      ConfigError: no cells, unequal numbers, or a true label that is not among `labels`.
    """
    check(len(true) == len(predicted), "predicted", f"{len(predicted)} labels", f"there are {len(true)} true ones")
    check(len(true) > 0, "true", "no labels", "give at least one cell")
    check(samples >= 20, "samples", samples, "use at least 20; 1000 for intervals to report")
    check(0 < level < 1, "level", level, "use one in (0, 1), such as 0.95")
    rows = [clean_label(str(t), ignore_case) for t in true]
    names = tuple(dict.fromkeys(str(n) for n in labels)) if labels is not None else tuple(
        sorted({clean_label(str(t)) for t in true}))
    index: dict[str, int] = {}
    for i, name in enumerate(names):
        first = index.setdefault(clean_label(name, ignore_case), i)
        # With case ignored two true spellings are one label; two labels asked for must stay apart.
        check(first == i or labels is None, "labels", name, f"reads the same as {names[first]!r}; rename one")
    names = tuple(names[i] for i in index.values())
    index = {name: i for i, name in enumerate(index)}
    for t, row in zip(true, rows, strict=True):
        if row not in index:
            raise ConfigError(f"label={str(t)!r}: was not among the {len(names)} labels learned, so no answer can be "
                              f"right; drop its cells or train with it ({nearest(str(t), names)})")
    confusion = np.zeros((len(names), len(names) + 1), np.int64)
    columns = [index.get(clean_label(str(p), ignore_case), len(names)) for p in predicted]
    np.add.at(confusion, ([index[row] for row in rows], columns), 1)
    return Classification(*_intervals(confusion, level, samples, seed), names, confusion)


def _intervals(confusion: np.ndarray, level: float, samples: int, seed: int) -> tuple[Interval, Interval]:
    n = int(confusion.sum())
    # Cells drawn with replacement fall into the table's places as a multinomial does.
    drawn = np.random.default_rng(seed).multinomial(n, confusion.ravel() / n, samples).reshape(-1, *confusion.shape)
    tails = ((1 - level) / 2, (1 + level) / 2)
    out = []
    for measure in (_accuracy, _macro_f1):
        low, high = np.quantile(measure(drawn), tails)
        out.append(Interval(float(measure(confusion[None])[0]), float(low), float(high), n))
    return out[0], out[1]


def _accuracy(tables: np.ndarray) -> np.ndarray:
    return np.trace(tables[:, :, :-1], axis1=1, axis2=2) / tables.sum((1, 2))


def _f1(tables: np.ndarray) -> np.ndarray:
    """[S, L] of [S, L, L + 1]."""
    right, true = np.diagonal(tables[:, :, :-1], axis1=1, axis2=2), tables.sum(2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(true > 0, 2 * right / (true + tables[:, :, :-1].sum(1)), np.nan)


def _macro_f1(tables: np.ndarray) -> np.ndarray:
    return np.nanmean(_f1(tables), axis=1)
