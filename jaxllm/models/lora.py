"""Low-rank adapters (LoRA, arXiv 2106.09685) of a model's projections: `y = x W + alpha / rank * x A B`.

They are declared beside their kernel (`layers.Projection`), so that init, shardings, decoders and training see one
parameter tree. Here is what splits that tree and what folds adapters into their kernels.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxllm.config import check, nearest

TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
LEAVES = ("lora_a", "lora_b")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which projections of the blocks get adapters.

    Attributes:
      rank: columns of A, rows of B.
      alpha: the product is scaled by alpha / rank.
      targets: of q, k, v, o, gate, up, down.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "k", "v", "o")

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", self.rank, "must be at least 1")
        check(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        check(len(self.targets) >= 1, "lora.targets", self.targets, f"name at least one of {', '.join(TARGETS)}")
        for name in self.targets:
            check(name in TARGETS, "lora.targets", name, nearest(name, TARGETS))

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank


def split_adapters(params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tree's adapters, and all else; the first is empty where there are none."""
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
    adapters = {path: leaf for path, leaf in flat.items() if path[-1] in LEAVES}
    rest = {path: leaf for path, leaf in flat.items() if path not in adapters}
    return traverse_util.unflatten_dict(adapters), traverse_util.unflatten_dict(rest)


def join_adapters(adapters: dict[str, Any], rest: dict[str, Any]) -> dict[str, Any]:
    """The one tree that `split_adapters` split."""
    flat: dict[Any, Any] = {**traverse_util.flatten_dict(rest), **traverse_util.flatten_dict(adapters)}
    return traverse_util.unflatten_dict(flat)


def merge_adapters(params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The model without adapters that computes the same: each kernel with its product added, in float32."""
    flat: dict[Any, Any] = dict(traverse_util.flatten_dict(params))
    out = {path: leaf for path, leaf in flat.items() if path[-1] not in LEAVES}
    for path, a in flat.items():
        if path[-1] != LEAVES[0]:
            continue
        b, at = flat[*path[:-1], LEAVES[1]], (*path[:-1], "kernel")
        kernel = out[at]
        product = jnp.einsum("lir,lro->lio", a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1),
                             precision=jax.lax.Precision.HIGHEST)
        moved = kernel.astype(jnp.float32) + config.scale * product.reshape(kernel.shape)
        out[at] = moved.astype(kernel.dtype)
    return traverse_util.unflatten_dict(out)
