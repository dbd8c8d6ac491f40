"""What a model of cells has to beat, fitted on the same training cells: labels, generated cells, combined effects."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from jaxllm.cells.classification import Classification, classification
from jaxllm.cells.matrices import dense, finite, labels_of, padded, rank_features
from jaxllm.config import ConfigError, check, nearest

NEIGHBOURS = 5
LABEL_BASELINES = ("majority", "knn ranks", "knn expression", "logistic ranks", "logistic expression",
                   "logistic shuffled")


@dataclasses.dataclass(frozen=True)
class LabelledCells:
    """Cells to learn labels from, or to predict them for.

    Attributes:
      expression: [N, G] log expression, dense or sparse.
      labels: [N].
      ranked: [N, K] gene ids by rank, -1 behind each cell's last, such as `Ranked.ids()` gives; None to rank the
        expression, with tied genes at their mean rank.
    """

    expression: Any
    labels: np.ndarray
    ranked: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", labels_of(self.labels, self.expression.shape[0]))
        if self.ranked is not None:
            object.__setattr__(self, "ranked", padded(self.ranked))
            check(len(self.ranked) == len(self.labels), "ranked", f"{len(self.ranked)} cells",  # type: ignore[arg-type]
                  f"expression has {len(self.labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, chosen: np.ndarray) -> LabelledCells:
        """The cells that an index or mask chooses."""
        return LabelledCells(self.expression[chosen], self.labels[chosen],
                             None if self.ranked is None else self.ranked[chosen])

    def features(self, top: int | None = None) -> dict[str, sparse.csr_matrix]:
        """[N, G] each, sparse: `ranks` (see `rank_features`, of the first `top` genes) and `expression`."""
        genes = self.expression.shape[1]
        ranked = sparse.csr_matrix(self.expression) if self.ranked is None else self.ranked
        return {"ranks": rank_features(ranked, genes, top), "expression": finite(self.expression)}


def label_baselines(train: LabelledCells, test: LabelledCells, *, top: int | None = None, k: int = NEIGHBOURS,
                    penalty: float = 1.0, seed: int = 0, names: Sequence[str] = LABEL_BASELINES
                    ) -> dict[str, np.ndarray]:
    """Labels [M] of text that simple classifiers give the test cells, by name.

    `majority` takes the commonest training label; `knn` votes by k nearest cells; `logistic` is multinomial
    regression; `logistic shuffled` is fitted on ranks with the training labels permuted, so it shows what the shares
    of the labels alone give. All features are as `LabelledCells.features` gives them, unscaled.

    Args:
      train: cells to fit on.
      test: cells to predict; their labels are not looked at.
      top: genes of a sentence that count, such as the model sees; None for all.
      k: neighbours.
      penalty: inverse strength of the L2 penalty (scikit-learn's C).
      seed: of the permuted labels.
      names: which of `LABEL_BASELINES`.

    Raises:
      ConfigError: an unknown name, no training cells, or other genes in the test cells.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    for name in names:
        check(name in LABEL_BASELINES, "names", name, nearest(name, LABEL_BASELINES))
    check(len(train) > 0, "train", "no cells", "give cells to fit on")
    check(train.expression.shape[1] == test.expression.shape[1], "test", f"{test.expression.shape[1]} genes",
          f"train has {train.expression.shape[1]}; bring both into the same gene order")
    values, counts = np.unique(train.labels, return_counts=True)
    common = np.full(len(test), values[counts.argmax()])
    if len(values) == 1 or len(test) == 0:  # nothing to tell apart
        return {name: common for name in names}
    x, y = train.features(top), test.features(top)
    shuffled = np.random.default_rng(seed).permutation(train.labels)
    out = {}
    for name in names:
        method, _, kind = name.partition(" ")
        if method == "majority":
            out[name] = common
            continue
        model: Any = (KNeighborsClassifier(min(k, len(train))) if method == "knn" else
                      LogisticRegression(C=penalty, max_iter=2000))
        over, targets = ("ranks", shuffled) if kind == "shuffled" else (kind, train.labels)
        with threadpool_limits(1):  # threads wait for each other on products this small: ten times slower with them
            out[name] = model.fit(x[over], targets).predict(y[over])
    return out


def cross_validated(cells: LabelledCells, folds: np.ndarray, **settings: Any) -> dict[str, np.ndarray]:
    """Predictions [N] of `label_baselines` for each cell from the cells of all other folds.

    Args:
      cells: labelled cells.
      folds: [N] number of each cell's fold, such as `fold_numbers` gives; negative for cells that are only trained on.
      settings: of `label_baselines`.

    Returns:
      by name; an empty text for cells of no fold.
    """
    folds = np.asarray(folds)
    check(folds.shape == (len(cells),), "folds", f"shape {folds.shape}", f"give one for each of the {len(cells)} cells")
    check(len(np.unique(folds)) > 1, "folds", folds[:1].tolist(), "give two folds at least")
    width = cells.labels.dtype
    out: dict[str, np.ndarray] = {}
    for fold in np.unique(folds[folds >= 0]):
        test = folds == fold
        for name, found in label_baselines(cells.rows(~test), cells.rows(test), **settings).items():
            out.setdefault(name, np.full(len(cells), "", width))[test] = found
    return out


def fold_numbers(labels: Sequence[str] | np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """[N] int: a fold of 0..folds-1 for each cell, shares of labels alike in all (scikit-learn, seeded)."""
    from sklearn.model_selection import StratifiedKFold

    check(2 <= folds <= len(labels), "folds", folds, f"use 2 to {len(labels)}, the number of cells")
    out = np.empty(len(labels), np.int64)
    with warnings.catch_warnings():
        # A label of fewer cells than folds is missing from some, which is all that can be done.
        warnings.filterwarnings("ignore", message="The least populated class")
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(np.zeros(len(labels)), labels)
        for fold, (_, test) in enumerate(splits):
            out[test] = fold
    return out


def score_baselines(true: Sequence[str] | np.ndarray, predictions: Mapping[str, Any],
                    labels: Sequence[str] | None = None, **settings: Any) -> dict[str, Classification]:
    """`classification` of each baseline's predictions, by name."""
    return {name: classification(true, found, labels, **settings) for name, found in predictions.items()}


def marginal_cells(expression: Any, labels: Sequence[str] | np.ndarray | None, wanted: Sequence[str] | np.ndarray | int,
                   seed: int = 0) -> np.ndarray:
    """Cells whose every gene is drawn on its own from the training cells of the type: right means, no dependence.

    Args:
      expression: [N, G] training cells.
      labels: [N] their types; None to draw from all.
      wanted: [M] a type for each cell to draw; a number of cells without `labels`.
      seed: of the draws.

    Returns:
      [M, G] float64.

    Raises:
      ConfigError: a type is wanted that no training cell has.
    """
    x, rng = dense(expression), np.random.default_rng(seed)
    out = np.empty((wanted if isinstance(wanted, (int, np.integer)) else len(wanted), x.shape[1]))
    for rows, pool in _pools(len(x), labels, wanted):
        chosen = pool[rng.integers(0, len(pool), (len(rows), x.shape[1]))]
        out[rows] = np.take_along_axis(x, chosen, axis=0)
    return out


def copied_cells(expression: Any, labels: Sequence[str] | np.ndarray | None, wanted: Sequence[str] | np.ndarray | int,
                 seed: int = 0) -> np.ndarray:
    """Training cells of the type drawn with replacement: what a generator that learned them by heart would give.

    Arguments and errors as for `marginal_cells`.
    """
    x, rng = dense(expression), np.random.default_rng(seed)
    out = np.empty((wanted if isinstance(wanted, (int, np.integer)) else len(wanted), x.shape[1]))
    for rows, pool in _pools(len(x), labels, wanted):
        out[rows] = x[rng.choice(pool, len(rows))]
    return out


def _pools(n: int, labels: Any, wanted: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows to fill and the training rows to fill them from, by type."""
    check(n > 0, "expression", "no rows", "give at least one training cell")
    if labels is None:
        m = wanted if isinstance(wanted, (int, np.integer)) else len(wanted)
        check(int(m) >= 0, "wanted", m, "must not be negative")
        return [(np.arange(m), np.arange(n))]
    check(not isinstance(wanted, (int, np.integer)), "wanted", wanted, "with labels, name a type for each cell")
    known, asked = labels_of(labels, n), np.asarray(wanted).astype(str)
    if unknown := sorted(set(asked.tolist()) - set(known.tolist())):
        raise ConfigError(f"wanted={unknown[0]!r}: no training cell has this label; "
                          f"{nearest(unknown[0], set(known.tolist()))}")
    return [(np.flatnonzero(asked == name), np.flatnonzero(known == name)) for name in sorted(set(asked))]


def perturbation_baselines(expression: Any, conditions: Sequence[str] | np.ndarray, wanted: Sequence[str],
                           control: str = "control", separator: str = "+") -> dict[str, dict[str, np.ndarray]]:
    """Mean profiles [G] that need no model, of conditions that may never have been measured, by baseline and condition.

    `no effect` is the mean of control; `mean of perturbed` that over all measured conditions but control, each
    counted once; `additive` is control plus the sum of the parts' effects, in the units given, which should be
    logarithmic. A combination's parts are set apart by `separator`; for a single condition `additive` is its mean.

    Args:
      expression: [N, G] log expression of training cells, of one cell type or context.
      conditions: [N], such as A, B and control.
      wanted: conditions to predict, such as A+B.
      control: name of the control.
      separator: between parts.

    Raises:
      ConfigError: no control cells, nothing but control, or a part that was not measured on its own.
    """
    x = dense(expression)
    names = labels_of(conditions, len(x), "conditions")
    means = {str(name): x[names == name].mean(0) for name in np.unique(names)}
    check(control in means, "control", control, f"no cell has this condition; {nearest(control, means)}")
    others = [mean for name, mean in means.items() if name != control]
    check(len(others) > 0, "conditions", control, "is the only one; give perturbed cells as well")
    out: dict[str, dict[str, np.ndarray]] = {"no effect": {}, "mean of perturbed": {}, "additive": {}}
    for condition in wanted:
        parts = [part for part in condition.split(separator) if part != control]
        for part in parts:
            check(part in means, "wanted", condition, f"{part!r} was not measured on its own; {nearest(part, means)}")
        out["no effect"][condition] = means[control]
        out["mean of perturbed"][condition] = np.mean(others, axis=0)
        out["additive"][condition] = means[control] + sum((means[part] - means[control] for part in parts),
                                                          np.zeros(x.shape[1]))
    return out
