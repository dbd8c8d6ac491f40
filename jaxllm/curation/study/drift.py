"""How far a model's hidden states have moved from another's on the same text: CKA, and transfer of a linear probe."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of states `[N, D1]` and `[N, D2]`: 1 for states equal up to rotation and scale.

    Source: Kornblith et al. (arXiv 1905.00414).
    """
    a, b = (np.asarray(v, np.float64) - np.mean(v, axis=0, dtype=np.float64) for v in (x, y))
    own = np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
    return float(np.linalg.norm(b.T @ a) ** 2 / own) if own > 0 else float("nan")


class LinearProbe(NamedTuple):
    """A linear reader of states: weights `[D, C]`, bias `[C]`; the class with the highest score."""

    weights: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(cls, states: np.ndarray, labels: np.ndarray, classes: int, ridge: float = 1e-3) -> LinearProbe:
        """Least squares onto one-hot labels, in closed form.

        Args:
          states: `[N, D]`.
          labels: int `[N]`, below `classes`.
          classes: C.
          ridge: penalty on the weights, as a share of the states' mean variance; the bias has none.
        """
        x, y = np.asarray(states, np.float64), np.eye(classes)[labels]
        mean, centre = x.mean(0), y.mean(0)
        gram = (x - mean).T @ (x - mean) / len(x)
        weights = np.linalg.solve(gram + ridge * np.trace(gram) / len(gram) * np.eye(len(gram)),
                                  (x - mean).T @ (y - centre) / len(x))
        return cls(weights, centre - mean @ weights)

    def accuracy(self, states: np.ndarray, labels: np.ndarray) -> float:
        """Share of labels that are read right."""
        said = np.argmax(np.asarray(states, np.float64) @ self.weights + self.bias, axis=1)
        return float(np.mean(said == labels))


def tokens_before(tokens: np.ndarray, segment_ids: np.ndarray, classes: int, back: int = 1) -> tuple[Any, Any]:
    """Something that states hold of their context: which of the `classes` commonest tokens stood `back` places before.

    Args:
      tokens, segment_ids: int `[B, T]`.
      classes: C.
      back: places.

    Returns:
      Bool `[B, T]`, where it was one of them in the same document; int `[n]`, which, for those in row-major order.
    """
    before, same = np.zeros_like(tokens), np.zeros(tokens.shape, bool)
    before[:, back:], same[:, back:] = tokens[:, :-back], segment_ids[:, back:] == segment_ids[:, :-back]
    ids, counts = np.unique(tokens, return_counts=True)
    common = ids[np.lexsort((ids, -counts))[:classes]]
    rank = np.full(tokens.max() + 1, -1)
    rank[common] = np.arange(len(common))
    where = same & (segment_ids > 0) & (rank[before] >= 0)
    return where, rank[before[where]]
