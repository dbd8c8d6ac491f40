"""How often each layer runs: a route as counts `[L]` of 0 (skip), 1 and 2 (repeat), and as a path.

Layers keep their order, so counts say all that a path does, and two edits in either order are one route. Dr.LLM
(arXiv 2510.12773) labels a layer by its count; a block runs twice at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models.paths import check_counts

SKIP, ONCE, REPEAT = 0, 1, 2
CLASSES = ("skip", "once", "repeat")


def identity(layers: int) -> np.ndarray:
    """Every layer once: int8 `[L]`."""
    return np.ones(layers, np.int8)


def to_path(counts: Sequence[int] | np.ndarray) -> tuple[int, ...]:
    """Layer indices in the order in which they run."""
    return tuple(int(i) for i in np.repeat(np.arange(len(counts)), np.asarray(counts, int)))


def from_path(path: Sequence[int], layers: int) -> np.ndarray:
    """Counts int8 `[L]` of a path.

    Raises:
      ConfigError: layers out of order or range, three times, or none.
    """
    if list(path) != sorted(path):
        raise ConfigError(f"path {list(path)}: routes keep the layers' order")
    for place, layer in enumerate(path):
        if not 0 <= layer < layers:
            raise ConfigError(f"path[{place}]={layer}: the model's layers are 0..{layers - 1}")
    return check_counts(np.bincount(np.asarray(path, int), minlength=layers), layers, "path")


def edits(counts: np.ndarray, longest: int) -> Iterable[np.ndarray]:
    """Routes one edit away: a layer skipped, two neighbours skipped, or a layer repeated; each int8 `[L]`.

    Only layers that run once are skipped or repeated, so that an edit never undoes another; none has no layer at all or
    more than `longest` executions.
    """
    once = counts == ONCE
    executions, n = int(counts.sum()), len(counts)
    for width in (1, 2):
        for i in range(n - width + 1):
            if once[i:i + width].all() and executions > width:
                yield _with(counts, slice(i, i + width), SKIP)
    if executions < longest:
        for i in np.flatnonzero(once):
            yield _with(counts, slice(i, i + 1), REPEAT)


def _with(counts: np.ndarray, where: slice, value: int) -> np.ndarray:
    out = counts.copy()
    out[where] = value
    return out
