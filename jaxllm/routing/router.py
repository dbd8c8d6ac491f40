"""The routers: of each layer a small head that reads the prompt's hidden states and says how often the layer runs.

Dr.LLM (arXiv 2510.12773): the states entering a layer are averaged over W windows of the prompt; each mean goes through
`Linear(D, 128) -> GELU(tanh) -> Linear(128, 3)`, and the W logit vectors are averaged. All layers' heads are one tree
of stacked arrays.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxllm.config import check
from jaxllm.routing.counts import CLASSES


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """Shape of the routers.

    Attributes:
      width: of the bottleneck.
      windows: W, means that a prompt is read through; a shorter prompt has as many as tokens.
    """

    width: int = 128
    windows: int = 8

    def __post_init__(self) -> None:
        check(self.width >= 1, "width", self.width, "must be at least 1")
        check(self.windows >= 1, "windows", self.windows, "must be at least 1")


def init_routers(config: RouterConfig, layers: int, d_model: int, key: jax.Array) -> dict[str, Any]:
    """Xavier-uniform weights and zero biases, float32, stacked over `layers`."""
    xavier = jax.nn.initializers.glorot_uniform(in_axis=-2, out_axis=-1, batch_axis=0)
    into, out = jax.random.split(key)
    return {"in": {"kernel": xavier(into, (layers, d_model, config.width), jnp.float32),
                   "bias": jnp.zeros((layers, config.width))},
            "out": {"kernel": xavier(out, (layers, config.width, len(CLASSES)), jnp.float32),
                    "bias": jnp.zeros((layers, len(CLASSES)))}}


def windowed_mean(x: jax.Array, lengths: jax.Array, windows: int) -> tuple[jax.Array, jax.Array]:
    """Means of a prompt's hidden states over consecutive windows of equal length.

    A prompt of n tokens has w = min(W, n) windows of n // w tokens; what is left at its end is not read, as in the
    published code.

    Args:
      x: `[B, T, D]`.
      lengths: int32 `[B]`, tokens of each prompt; what lies behind is padding.
      windows: W.

    Returns:
      float32 `[B, W, D]`, zeros where a prompt has no such window, and bool `[B, W]`, whether it has.
    """
    count = jnp.clip(lengths, 1, windows)
    size = jnp.maximum(lengths // count, 1)
    window = jnp.arange(x.shape[1]) // size[:, None]
    held = jnp.arange(windows) < count[:, None]
    inside = (window[:, None, :] == jnp.arange(windows)[None, :, None]) & held[:, :, None]
    total = jnp.einsum("bwt,btd->bwd", inside.astype(jnp.float32), x.astype(jnp.float32),
                       precision=lax.Precision.HIGHEST)
    return total / size[:, None, None], held


def router_logits(router: Any, pooled: jax.Array, held: jax.Array) -> jax.Array:
    """Float32 logits `[..., 3]` of skip, once and repeat, of one layer's router.

    Args:
      router: its arrays, without a layer axis.
      pooled: `[..., W, D]` of `windowed_mean`.
      held: bool `[..., W]`.
    """
    def linear(x: jax.Array, part: Any) -> jax.Array:
        return jnp.einsum("...d,df->...f", x, part["kernel"], precision=lax.Precision.HIGHEST) + part["bias"]

    each = linear(jax.nn.gelu(linear(pooled.astype(jnp.float32), router["in"]), approximate=True), router["out"])
    weight = held.astype(jnp.float32)[..., None]
    return jnp.sum(each * weight, axis=-2) / jnp.maximum(jnp.sum(weight, axis=-2), 1)


def decide(logits: jax.Array, lean: jax.Array | float = -0.5) -> jax.Array:
    """Counts int8 `[...]` of logits `[..., 3]`.

    Args:
      logits: of a router.
      lean: the paper's knob p in [-1, 1]. At -0.5 the likeliest class; towards -1 probabilities are mixed with
        "skip", towards 0.5 with "once", and from there to 1 those of "once" with "repeat".
    """
    chances, p = jax.nn.softmax(logits.astype(jnp.float32), axis=-1), jnp.asarray(lean, jnp.float32)
    skip, once, repeat = jnp.eye(3)
    low, middle, high = jnp.clip(-2 * p - 1, 0, 1), jnp.clip(p + 0.5, 0, 1), jnp.clip(2 * p - 1, 0, 1)
    mixed = jnp.where(p < -0.5, (1 - low) * chances + low * skip, (1 - middle) * chances + middle * once)
    mixed = jnp.where(p > 0.5, (1 - high) * once + high * repeat, mixed)
    return jnp.argmax(mixed, axis=-1).astype(jnp.int8)
