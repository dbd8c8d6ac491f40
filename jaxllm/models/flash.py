"""Attention without weights in memory, where the backend has a kernel: cuDNN on NVIDIA GPUs, splash on TPUs.

Both are JAX's own. The plain form in `layers` is what they are tested against; a decoder's cached rows always take
that form, since they are few.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm.config import check
from jaxllm.models.config import ModelConfig
from jaxllm.parallel import active_mesh, active_spec

TILE = 128  # splash works on tiles of this many queries and keys
Kernel = Literal["plain", "cudnn", "splash"]


def kernel(config: ModelConfig, length: int, platform: str | None = None) -> Kernel:
    """Which form attention over rows of `length` takes: `config.attention`, or for `auto` what `platform` has.

    Capped scores always take the plain form, which alone knows them, and so do sliding windows in place of splash.

    Args:
      config: the model.
      length: tokens of a row.
      platform: `cpu`, `gpu` or `tpu`; JAX's default backend by default.

    Raises:
      ConfigError: `splash` was asked for and the length is no multiple of its tile.
    """
    if config.attention_cap or (config.window and config.attention == "splash"):
        return "plain"
    if config.attention != "auto":
        check(config.attention != "splash" or length % TILE == 0, "model.attention", config.attention,
              f"takes rows whose length is a multiple of {TILE}, not {length}; use plain")
        return config.attention
    platform = jax.default_backend() if platform is None else platform
    if platform == "gpu" and _has_cudnn_kernel() and config.activation_dtype != "float32" and length % 2 == 0 \
            and config.head_dim % 8 == 0 and config.head_dim <= 128:
        return "cudnn"
    return "splash" if platform == "tpu" and length % TILE == 0 and not config.window else "plain"


def _has_cudnn_kernel() -> bool:
    """Whether the GPU is NVIDIA's, Ampere or later; others name their capability otherwise, or have a lower one."""
    try:
        return float(getattr(jax.devices()[0], "compute_capability", "0")) >= 8.0
    except ValueError:  # such as gfx90a
        return False


def cudnn(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None,
          implementation: Literal["cudnn", "xla"] = "cudnn") -> jax.Array:
    """`layers.attend` by cuDNN; a query that sees no key gets some value in place of zeros."""
    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=implementation)


def splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, causal: bool,
           interpret: bool = False) -> jax.Array:
    """Attention within segments by the TPU's splash kernel, each device on its rows and heads.

    Args:
      q: `[B, H, T, K]`.
      k, v: `[B, G, T, K]`.
      segments: int `[B, T]`; tokens see those of equal number. Padding sees padding.
      causal: keys after the query are not seen.
      interpret: run the kernel's program on any backend, slowly, for tests.

    Returns:
      `[B, T, H, K]`.
    """
    one = functools.partial(_splash, causal=causal, interpret=interpret)
    if active_mesh() is None:
        return one(q, k, v, segments)
    # The compiler cannot split a kernel by itself.
    rows = active_spec(("batch", "heads", None, None), q.shape)
    keys = active_spec(("batch", "kv_heads", None, None), k.shape)
    if rows[1] != keys[1]:
        rows, keys = (PartitionSpec(rows[0], None, None, None),) * 2
    return jax.shard_map(one, in_specs=(rows, keys, keys, PartitionSpec(rows[0], None)),
                         out_specs=PartitionSpec(rows[0], None, rows[1], None), check_vma=False)(q, k, v, segments)


def _splash(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array, causal: bool, interpret: bool) -> jax.Array:
    # Imported here: it brings Pallas, which nothing else needs.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash_kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    (_, h, t, d), g = q.shape, k.shape[1]
    mask: Any = masks.CausalMask((t, t)) if causal else masks.FullMask((t, t))
    block = next(size for size in (512, 256, TILE) if t % size == 0)
    names = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute",
             "block_q_dq", "block_kv_dq")
    sizes = splash_kernel.BlockSizes(**dict.fromkeys(names, block))
    attend = splash_kernel.make_splash_mqa_single_device(masks.MultiHeadMask([mask] * (h // g)), block_sizes=sizes,
                                                         interpret=interpret)
    grouped = (q * d**-0.5).reshape(-1, g, h // g, t, d)

    def row(q: jax.Array, k: jax.Array, v: jax.Array, segments: jax.Array) -> Any:
        ids = splash_kernel.SegmentIds(segments, segments)
        return jax.vmap(lambda q, k, v: attend(q, k, v, segment_ids=ids))(q, k, v)

    out: jax.Array = jax.vmap(row)(grouped, k, v, segments.astype(jnp.int32))
    return out.reshape(-1, h, t, d).swapaxes(1, 2).astype(q.dtype)
