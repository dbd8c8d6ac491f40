"""Global batches from the rows that each process makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import ConfigError


def batch_rows(size: int, sharding: NamedSharding) -> list[int]:
    """Rows of a global batch of `size` rows that devices of this process hold, ascending.

    Raises:
      ConfigError: `size` does not divide over the mesh axes of the batch.
    """
    try:
        leading = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[:1]))
        parts = leading.addressable_devices_indices_map((size,))
    except ValueError:
        raise ConfigError(f"batch of {size} rows: does not divide over {sharding.spec} of mesh "
                          f"{dict(sharding.mesh.shape)}") from None
    held: set[int] = set()
    for index in parts.values():
        held.update(range(size)[index[0]] if index is not None else range(size))
    return sorted(held)


def shard_batch(batch: Any, rows: Sequence[int], size: int, sharding: NamedSharding) -> Any:
    """Global arrays `[size, ...]` on `sharding` from this process's part of the batch.

    Args:
      batch: tree of numpy arrays `[len(rows), ...]`.
      rows: which rows of the global batch they are, as `batch_rows` gives them.
      size: rows of the global batch, over all processes.
      sharding: of every array of the batch; the leading axis is the batch's.
    """
    place = {row: i for i, row in enumerate(rows)}

    def put(part: np.ndarray) -> jax.Array:
        def cut(index: Any) -> np.ndarray:
            wanted = range(size)[index[0]]
            start = place[wanted[0]]
            # Rows are ascending and a device's are contiguous, so they are contiguous here too.
            return part[(slice(start, start + len(wanted)), *index[1:])]

        return jax.make_array_from_callback((size, *part.shape[1:]), sharding, cut)

    return jax.tree.map(put, batch)
