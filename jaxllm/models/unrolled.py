"""Parameters and caches of whole layers, for decoders that run layer by layer inside a loop.

A scan over layers inside a decode loop would copy each layer's weights and keys out of the stack on every step.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxllm.models.config import ModelConfig


class LayerCache(NamedTuple):
    """One layer's keys and values `[B, G, N, K]` of all slots."""

    k: jax.Array
    v: jax.Array


def unstack(params: Any, model: ModelConfig, *, donate: bool = False) -> Any:
    """Parameters with `layers` as a tuple of L trees; does nothing to a tree that is so already.

    With `donate` each stacked leaf is freed once it is split, so that no second copy of the layers
    exists; `params` is of no use afterwards.
    """
    if isinstance(params["layers"], tuple):
        return params
    leaves, tree = jax.tree.flatten(params["layers"])
    split = []
    for leaf in leaves:
        split.append([leaf[i] for i in range(model.num_layers)])
        if donate:
            jax.block_until_ready(split[-1])
            leaf.delete()
    return {**params, "layers": tuple(jax.tree.unflatten(tree, part) for part in zip(*split, strict=True))}
