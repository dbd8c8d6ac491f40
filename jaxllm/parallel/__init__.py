"""Meshes and shardings: one mesh builder, one table from logical axis names to mesh axes.

Entry points: `make_mesh`, `RULES`, `shardings`, `batch_sharding`, `token_sharding`, `replicated`, `on_mesh`,
`batch_rows`, `shard_batch`. `active_mesh` and `active_spec` tell a model the mesh it runs on.
"""

from jaxllm.parallel.batches import batch_rows, shard_batch
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import RULES, Rules
from jaxllm.parallel.shardings import (
    active_mesh,
    active_spec,
    batch_sharding,
    on_mesh,
    replicated,
    shardings,
    token_sharding,
    ways,
)

__all__ = ["RULES", "Rules", "active_mesh", "active_spec", "batch_rows", "batch_sharding", "make_mesh", "on_mesh",
           "replicated", "shard_batch", "shardings", "token_sharding", "ways"]
