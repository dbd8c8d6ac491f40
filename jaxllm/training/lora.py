"""Low-rank adapters (LoRA, arXiv 2106.09685) as an option of the one training step.

A run with adapters trains `{"base": params, "lora": adapters}`: the loss sees the base with the adapters' products
added, `W + alpha / rank * A B`, the optimiser moves the adapters only. B starts at zero, so the first step's model
is the base.

Dims: L layers; a kernel `[L, *in, *out]` has A `[L, *in, r]` and B `[L, r, *out]`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm import models
from jaxllm.config import check, nearest
from jaxllm.models import ModelConfig

# Kernel of a block -> how many leading dims (after L) it sums over.
INPUT_DIMS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
RANK_AXIS = "lora_rank"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which kernels get adapters.

    Attributes:
      rank: columns of A, rows of B.
      alpha: the product is scaled by alpha / rank.
      targets: kernels of the blocks: q, k, v, o, gate, up, down.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q", "k", "v", "o")

    def __post_init__(self) -> None:
        check(self.rank >= 1, "lora.rank", self.rank, "must be at least 1")
        check(self.alpha > 0, "lora.alpha", self.alpha, "must be positive")
        check(len(self.targets) >= 1, "lora.targets", self.targets, f"name at least one of {', '.join(INPUT_DIMS)}")
        for name in self.targets:
            check(name in INPUT_DIMS, "lora.targets", name, nearest(name, INPUT_DIMS))

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.rank


def init_lora(config: LoraConfig, model: ModelConfig, key: jax.Array) -> dict[str, Any]:
    """Float32 adapters of every target: A uniform with variance 1 / (3 fan-in), B zero."""
    shapes = models.abstract(model)["layers"]
    out = {}
    for name, one in zip(config.targets, jax.random.split(key, len(config.targets)), strict=True):
        check(name in shapes, "lora.targets", name, f"this model's blocks have {', '.join(sorted(shapes))}")
        kernel = shapes[name]["kernel"].shape
        layers, inputs, outputs = _parts(name, kernel)
        bound = math.prod(inputs) ** -0.5
        a = jax.random.uniform(one, (layers, *inputs, config.rank), jnp.float32, -bound, bound)
        out[name] = {"a": a, "b": jnp.zeros((layers, config.rank, *outputs), jnp.float32)}
    return out


def lora_axes(config: LoraConfig, model: ModelConfig) -> dict[str, Any]:
    """Logical axes of the adapters, those of their kernels with the rank between."""
    axes = models.logical_axes(model)["layers"]
    out = {}
    for name in config.targets:
        layers, inputs, outputs = _parts(name, axes[name]["kernel"])
        out[name] = {"a": (layers, *inputs, RANK_AXIS), "b": (layers, RANK_AXIS, *outputs)}
    return out


def merge(params: dict[str, Any], config: LoraConfig) -> dict[str, Any]:
    """The model's parameters with the adapters in them, from `{"base", "lora"}`; gradients reach the adapters only."""
    base = jax.lax.stop_gradient(params["base"])
    layers = dict(base["layers"])
    for name, adapter in params["lora"].items():
        kernel = layers[name]["kernel"]
        a, b = adapter["a"], adapter["b"]
        product = jnp.einsum("lir,lro->lio", a.reshape(a.shape[0], -1, a.shape[-1]), b.reshape(*b.shape[:2], -1))
        moved = kernel.astype(jnp.float32) + config.scale * product.reshape(kernel.shape)
        layers[name] = {**layers[name], "kernel": moved.astype(kernel.dtype)}
    return {**base, "layers": layers}


def with_lora(fn: Callable[..., Any], config: LoraConfig) -> Callable[..., Any]:
    """A loss or validation `(params, batch, key)` of a model as one of `{"base", "lora"}`."""
    return lambda params, batch, key: fn(merge(params, config), batch, key)


def adapters_only(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` for the adapters; the base stays where it is and has no moments."""
    return optax.partition({"lora": optimizer, "base": optax.set_to_zero()},
                           lambda params: {name: name for name in params})


def _parts(name: str, dims: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...], tuple[Any, ...]]:
    """Layer, input and output dims (sizes or names) of a kernel."""
    n = 1 + INPUT_DIMS[name]
    return dims[0], tuple(dims[1:n]), tuple(dims[n:])
