"""The routers as the engine asks them: once for each prompt, layer by layer, while it reads it."""

from __future__ import annotations

from typing import Any

import jax
from flax import struct

from jaxllm.routing.router import decide, router_logits, windowed_mean


@struct.dataclass
class PromptRouter:
    """A `generation.Decider` of routers.

    The engine reads a prompt up to its last token, which it reads together with the answer; so do the routers.

    Attributes:
      routers: of `init_routers`.
      lean: as in `decide`.
      windows: W.
    """

    routers: Any
    lean: jax.Array | float = -0.5
    windows: int = struct.field(pytree_node=False, default=8)

    def __call__(self, layer: int, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Counts int8 `[R]` of one layer from `[R, P, D]`."""
        pooled, held = windowed_mean(x, lengths, self.windows)
        router = jax.tree.map(lambda leaf: leaf[layer], self.routers)
        return decide(router_logits(router, pooled, held), self.lean)
