"""Meshes and shardings: one mesh builder, one table from logical axis names to mesh axes.

Entry points: `make_mesh`, `RULES`, `shardings`, `batch_sharding`, `token_sharding`, `replicated`, `on_mesh`,
`batch_rows`, `shard_batch`. `active_mesh`, `active_spec` and `gather_weights` are for models, which run on a mesh that
`on_mesh` names.
"""

from jaxllm.parallel.batches import batch_rows, shard_batch
from jaxllm.parallel.gather import gather_weights
from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import RULES, Rules
from jaxllm.parallel.shardings import (
    active_mesh,
    active_spec,
    axes_of,
    batch_sharding,
    on_mesh,
    replicated,
    shardings,
    token_sharding,
)

__all__ = ["RULES", "Rules", "active_mesh", "active_spec", "axes_of", "batch_rows", "batch_sharding", "gather_weights",
           "make_mesh", "on_mesh", "replicated", "shard_batch", "shardings", "token_sharding"]
