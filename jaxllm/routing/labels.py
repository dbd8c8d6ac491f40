"""Which of a problem's right routes its routers learn.

A search keeps the shortest right route of a problem (Dr.LLM). Where many routes of that length are right, which one it
is differs from problem to problem by chance, and a layer's labels are a coin flip that nothing in the prompt tells.
`shared` labels come from a few routes that together serve all problems: the fewer they are, the more there is to read
from a prompt, and the less each saves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxllm.routing.tree_search import Evaluate, Found


def candidates(found: Sequence[Found], layers: int, limit: int) -> np.ndarray:
    """Routes int8 `[C, L]`, `limit` at most, that searches found right, but every layer once.

    Those of the most executions saved in all problems for which a search found them right come first; putting a
    problem right counts as L executions.
    """
    gain: Counter[tuple[int, ...]] = Counter()
    for f in found:
        for counts in f.routes:
            gain[counts] += layers - sum(counts) + (0 if f.default else layers)
    gain.pop((1,) * layers, None)
    best = sorted((c for c in gain if gain[c] > 0), key=lambda c: (-gain[c], c))[:limit]
    return np.array(best, np.int8).reshape(-1, layers)


def choose(routes: np.ndarray, right: np.ndarray, default: np.ndarray, limit: int) -> list[int]:
    """Up to `limit` of the routes that together save most, chosen one after the other by what each adds.

    Args:
      routes: counts `[C, L]`.
      right: bool `[C, N]`, whether a route's answer to a problem is right.
      default: bool `[N]`, whether every layer once is.
      limit: how many at most.

    Returns:
      places in `routes`, the first choice first. A problem's gain is what its shortest chosen right route saves, and L
      more if every layer once is wrong; the choice ends where no route adds to the sum.
    """
    layers = routes.shape[1]
    gain = np.where(right, (layers - routes.sum(1))[:, None] + np.where(default, 0, layers), 0)
    reached, chosen = np.zeros(right.shape[1], int), []
    while len(chosen) < limit and len(routes):
        added = np.maximum(gain - reached, 0).sum(1)
        best = int(added.argmax())
        if added[best] <= 0:
            break
        chosen.append(best)
        reached = np.maximum(reached, gain[best])
    return chosen


def shared_labels(found: Sequence[Found], layers: int, evaluate: Evaluate,
                  limit: int) -> tuple[list[tuple[int, ...] | None], list[tuple[int, ...]]]:
    """A route for each problem from `limit` routes at most, and these routes.

    The 4 `limit` likeliest routes are tried on every problem, most of which the search has not tried them on. A problem
    gets the shortest of the chosen routes that is right for it, else every layer once if that is right, else what its
    search found; None where nothing is right.

    Args:
      found: of the problems, in order.
      layers: L.
      evaluate: verdicts of problems' routes.
      limit: routes to choose.
    """
    tried = candidates(found, layers, 4 * limit)
    asked = [(i, counts) for counts in tried for i in range(len(found))]
    right = np.array([v.right for v in evaluate(asked)] if asked else [], bool).reshape(len(tried), len(found))
    default = np.array([f.default for f in found], bool)
    chosen = choose(tried, right, default, limit)
    labels: list[tuple[int, ...] | None] = []
    for i, f in enumerate(found):
        options = [c for c in chosen if right[c, i] and not (f.default and tried[c].sum() >= layers)]
        best = min(options, key=lambda c: int(tried[c].sum()), default=None)  # the first chosen of equally short ones
        labels.append(tuple(tried[best].tolist()) if best is not None else (1,) * layers if f.default else f.counts)
    return labels, [tuple(tried[c].tolist()) for c in chosen]
