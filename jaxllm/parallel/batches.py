"""Global batches from the rows that each process makes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxllm.config import ConfigError


def batch_rows(size: int, sharding: NamedSharding) -> tuple[int, int]:
    """First row of a global batch of `size` rows that devices of this process hold, and the one after the last.

    Raises:
      ConfigError: `size` does not divide over the mesh axes of the batch.
    """
    try:
        others = (sharding.mesh.size,) * (len(sharding.spec) - 1)  # of any length that divides
        parts = sharding.addressable_devices_indices_map((size, *others))
    except ValueError:
        raise ConfigError(f"batch of {size} rows: does not divide over {sharding.spec} of mesh "
                          f"{dict(sharding.mesh.shape)}") from None
    # One stretch: a process's devices are neighbours on the mesh, and rows of others between its own do no harm.
    held = [range(size)[index[0]] if index is not None else range(size) for index in parts.values()]
    return min(rows.start for rows in held), max(rows.stop for rows in held)


def shard_batch(batch: Any, start: int, size: int, sharding: NamedSharding) -> Any:
    """Global arrays `[size, ...]` on `sharding` from this process's part of the batch.

    Args:
      batch: tree of numpy arrays `[N, ...]`, rows `start` to `start + N` of the global batch: those of `batch_rows`.
      start: the first of them.
      size: rows of the global batch, over all processes.
      sharding: of every array of the batch; the leading axis is the batch's.
    """
    def put(part: np.ndarray) -> jax.Array:
        def cut(index: Any) -> np.ndarray:
            rows = range(size)[index[0]]
            return part[(slice(rows.start - start, rows.stop - start), *index[1:])]

        return jax.make_array_from_callback((size, *part.shape[1:]), sharding, cut)

    return jax.tree.map(put, batch)
