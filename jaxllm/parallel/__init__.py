"""Meshes and shardings: one mesh builder, one table from logical axis names to mesh axes.

Entry points: `make_mesh`, `RULES`, `shardings`, `batch_sharding`, `shard_batch`, `replicated`, `on_mesh`.
Expert and sequence axes come with the training-at-scale work.
"""

from jaxllm.parallel.mesh import make_mesh
from jaxllm.parallel.rules import RULES, Rules
from jaxllm.parallel.shardings import batch_sharding, on_mesh, replicated, shard_batch, shardings

__all__ = ["RULES", "Rules", "batch_sharding", "make_mesh", "on_mesh", "replicated", "shard_batch", "shardings"]
