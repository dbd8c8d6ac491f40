"""Building blocks of the transformer: projections, rotary positions, attention, MLPs, one block.

Dims: B batch, T query rows, S key rows, D model, H query heads, G key/value heads, K head width,
F MLP width, E experts, L layers, V vocabulary. Keys and values are held head-major, `[B, G, S, K]`, so that the
batched matmuls of attention need no transpose and a cache is updated in place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from jaxllm.models import flash
from jaxllm.models.config import Mlp, ModelConfig
from jaxllm.models.lora import LoraConfig
from jaxllm.models.moe import RouterStats, mesh_experts, route
from jaxllm.models.norms import RMSNorm as RMSNorm
from jaxllm.models.norms import make_norm
from jaxllm.models.rope import inverse_frequencies
from jaxllm.parallel import active_mesh, active_spec

# Queries are processed in chunks of this many rows once T is larger, so the weights of a whole
# [T, S] square never exist at once. Where later keys are never seen, chunks are smaller and skip them.
QUERY_CHUNK, CAUSAL_CHUNK = 1024, 128
MAX_CAUSAL_CHUNKS = 8  # bounds the size of the program


def dtype_of(name: str) -> jnp.dtype:
    """The jnp dtype of a config's dtype name."""
    return jnp.dtype({"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}[name])


class Projection(nn.Module):
    """Linear map; one declaration gives the kernel's shape, logical axes and init.

    `contract` leading kernel dims are summed over: the input's trailing dims must match them.
    """

    shape: Sequence[int]
    axes: Sequence[str]
    contract: int = 1
    bias: bool = False
    init_scale: float = 1.0
    weight_dtype: jnp.dtype = jnp.dtype(jnp.float32)
    precision: lax.Precision | None = None
    lora: LoraConfig | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., *shape[:contract]]` to `[..., *shape[contract:]]` in x's dtype."""
        n = self.contract
        init = nn.initializers.variance_scaling(
            self.init_scale, "fan_in", "truncated_normal", in_axis=tuple(range(n)),
            out_axis=tuple(range(n, len(self.shape))))
        kernel: Any = self.param("kernel", nn.with_logical_partitioning(init, tuple(self.axes)),
                            tuple(self.shape), self.weight_dtype)
        y: Any = _product(x, kernel, n, self.precision)
        if self.bias:
            bias: Any = self.param("bias", nn.with_logical_partitioning(nn.initializers.zeros, tuple(self.axes[n:])),
                              tuple(self.shape[n:]), self.weight_dtype)
            y = y + bias.astype(y.dtype)
        if self.lora is not None:
            rank = self.lora.rank
            # Uniform of variance 1 / (3 fan-in), as published code has it; B is zero, so the first step's model is W's.
            fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=tuple(range(n)), out_axis=n)
            a: Any = self.param("lora_a", nn.with_logical_partitioning(fan_in, (*self.axes[:n], "lora_rank")),
                                (*self.shape[:n], rank), jnp.float32)
            b: Any = self.param("lora_b", nn.with_logical_partitioning(nn.initializers.zeros,
                                                                       ("lora_rank", *self.axes[n:])),
                                (rank, *self.shape[n:]), jnp.float32)
            low = lax.dot_general(x, a.astype(x.dtype),
                                  ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())))
            y = y + self.lora.scale * lax.dot_general(low, b.astype(x.dtype), (((low.ndim - 1,), (0,)), ((), ())))
        return y


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(x: jax.Array, kernel: jax.Array, n: int, precision: lax.Precision | None) -> jax.Array:
    """Sum over the last n dims of x and the first n of the kernel, in x's dtype.

    Its own gradient, for two reasons. A kernel of another dtype than x has its gradient summed in float32, over
    devices too. And a CPU's matmul wants its left operand transposed in memory: the smaller one is put there, where
    JAX's rule always takes dy, fused with whatever made it (a fifth of a training step).
    """
    return lax.dot_general(x, kernel.astype(x.dtype),
                           ((tuple(range(x.ndim - n, x.ndim)), tuple(range(n))), ((), ())), precision=precision)


def _product_forward(x: jax.Array, kernel: jax.Array, n: int,
                     precision: lax.Precision | None) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel, n, precision), (x, kernel)


def _product_backward(n: int, precision: lax.Precision | None, saved: tuple[jax.Array, jax.Array],
                      dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    outputs, rows = kernel.ndim - n, tuple(range(x.ndim - n))
    dx = lax.dot_general(dy, kernel.astype(dy.dtype), ((tuple(range(dy.ndim - outputs, dy.ndim)),
                                                        tuple(range(n, kernel.ndim))), ((), ())), precision=precision)
    swap = dy.size < x.size and x.dtype == jnp.float32  # bfloat16 this way round has no kernel on CPUs
    left, right = (dy, x) if swap else (x, dy)
    d_kernel = lax.dot_general(left, right, ((rows, rows), ((), ())), precision=precision,
                               preferred_element_type=jnp.float32)
    if swap:
        d_kernel = d_kernel.transpose(*range(outputs, kernel.ndim), *range(outputs))
    return dx, d_kernel.astype(kernel.dtype)


_product.defvjp(_product_forward, _product_backward)


def unembed(config: ModelConfig, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Float32 logits `[..., V]` of normalised hidden states `[..., D]` by a head `[D, V]`, in `config.head_dtype`."""
    dtype = dtype_of(config.head_dtype)
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    logits = jnp.einsum("...d,dv->...v", hidden.astype(dtype), kernel.astype(dtype), precision=exact,
                        preferred_element_type=jnp.float32)
    return logits if config.score_head else capped(logits, config.logit_cap)


def capped(x: jax.Array, cap: float) -> jax.Array:
    """`x` softly kept within -cap..cap; x itself for a cap of 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def rotary_tables(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Float32 (sin, cos) of the rotary angles, each `[B, T, R/2]` of rotated width R, for int positions `[B, T]`."""
    angle = positions.astype(jnp.float32)[..., None] * inverse_frequencies(config)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(x: jax.Array, tables: tuple[jax.Array, jax.Array], scale: float = 1.0) -> jax.Array:
    """Rotate-half RoPE (NeoX) in float32 on `[B, T, H, K]`, cast back to x's dtype.

    Of tables narrower than K/2 only the first part of a head turns. The whole is multiplied by `scale`.
    """
    sin, cos = (t[:, :, None, :] for t in tables)
    wide, width = x.astype(jnp.float32), 2 * sin.shape[-1]
    a, b = jnp.split(wide[..., :width], 2, axis=-1)
    still = [wide[..., width:]] if width < x.shape[-1] else []
    out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *still], axis=-1)
    return (out if scale == 1.0 else out * scale).astype(x.dtype)


def attention_weights(q: jax.Array, k: jax.Array, mask: jax.Array | None, cap: float = 0.0) -> jax.Array:
    """Float32 softmax weights `[B, H, T, S]` of queries `[B, H, T, K]` over keys `[B, G, S, K]`.

    `mask` is boolean, broadcastable to `[B, 1, T, S]`, True where a key may be seen. A query that
    sees no key gets all-zero weights. Scores are `capped` before the mask.
    """
    b, h, t, d = q.shape
    g = k.shape[1]
    # Grouped heads fold into the row axis: one [R*T, K] x [K, S] matmul per key head.
    scores = jnp.einsum("bgrk,bgsk->bgrs", (q * d**-0.5).reshape(b, g, (h // g) * t, d), k,
                        preferred_element_type=jnp.float32)
    scores = capped(scores.reshape(b, h, t, k.shape[2]), cap)
    if mask is None:
        return jax.nn.softmax(scores, axis=-1)
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.where(mask, weights, 0.0)


def weighted_values(weights: jax.Array, v: jax.Array) -> jax.Array:
    """Sum of values `[B, G, S, K]` under weights `[B, H, T, S]`, rows first: `[B, T, H, K]`."""
    b, h, t, s = weights.shape
    g, d = v.shape[1], v.shape[3]
    out = jnp.einsum("bgrs,bgsk->bgrk", weights.astype(v.dtype).reshape(b, g, (h // g) * t, s), v)
    return out.reshape(b, h, t, d).swapaxes(1, 2)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, ordered: bool = False,
           cap: float = 0.0) -> jax.Array:
    """Softmax attention: q `[B, H, T, K]`, k and v `[B, G, S, K]`, mask and cap as in `attention_weights`.

    Returns `[B, T, H, K]`. Long query runs go chunk by chunk; with `ordered`, which says that T = S and that the mask
    shows no key after its query, a chunk's products leave out the keys after it.
    """
    t, one = q.shape[2], functools.partial(_attend, cap=cap)
    chunk = min(QUERY_CHUNK, max(CAUSAL_CHUNK, -(-t // MAX_CAUSAL_CHUNKS))) if ordered else QUERY_CHUNK
    if t <= chunk:
        return one(q, k, v, mask)
    chunks = []
    for start in range(0, t, chunk):
        rows = slice(start, min(start + chunk, t))
        keys = slice(0, rows.stop) if ordered else slice(None)
        part = mask if mask is None else mask[..., keys] if mask.shape[-2] == 1 else mask[..., rows, keys]
        # Recomputed in the backward pass, which would keep every chunk's weights otherwise.
        chunks.append(jax.checkpoint(one)(q[:, :, rows], k[:, :, keys], v[:, :, keys], part))
    return jnp.concatenate(chunks, axis=1)


def attend_over_mesh(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, config: ModelConfig,
                     segments: jax.Array | None = None) -> jax.Array:
    """`attend` over whole rows, T = S, by the kernel of `config` and with tokens split over a mesh axis where they are.

    Where the mesh splits the tokens of a row (context parallelism), each device keeps its query rows and gathers the
    keys and values of the others; the weights stay split, so a device holds `[B, H, T / n, S]` of them.

    `segments`, int `[B, T]`, says that the mask is no more than "same segment", "not later" in a causal model and
    "near enough" in a layer with a sliding window.
    """
    kind = flash.kernel(config, q.shape[2])
    ordered = config.causal and segments is not None
    plain = functools.partial(attend, cap=config.attention_cap)
    one = flash.cudnn if kind == "cudnn" else plain
    mesh = active_mesh()
    length = None if mesh is None else active_spec(("length",), q.shape[2:3])[0]
    if length is None:
        if kind == "splash" and segments is not None:
            return flash.splash(q, k, v, segments, config.causal)
        return one(q, k, v, mask) if kind == "cudnn" else plain(q, k, v, mask, ordered)
    rows = active_spec(("batch", "heads", "length", "head_dim"), q.shape)
    keys = active_spec(("batch", "kv_heads", "length", "head_dim"), k.shape)
    if rows[1] != keys[1]:  # key heads that do not divide: every device has all, and so all query heads
        rows = PartitionSpec(rows[0], None, rows[2], None)
    out = PartitionSpec(rows[0], rows[2], rows[1], None)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
        k, v = (lax.all_gather(x, length, axis=2, tiled=True) for x in (k, v))
        return one(q, k, v, mask)

    if mask is None:
        return jax.shard_map(lambda q, k, v: local(q, k, v, None), in_specs=(rows, keys, keys), out_specs=out)(q, k, v)
    seen = PartitionSpec(rows[0] if mask.shape[0] > 1 else None, None, length if mask.shape[2] > 1 else None, None)
    return jax.shard_map(local, in_specs=(rows, keys, keys, seen), out_specs=out)(q, k, v, mask)


def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None, cap: float) -> jax.Array:
    return weighted_values(attention_weights(q, k, mask, cap), v)


def activation(kind: Mlp, x: jax.Array) -> jax.Array:
    """What an MLP of this kind does between its matrices, or to its gate."""
    return nn.silu(x) if kind == "swiglu" else nn.gelu(x, approximate=kind != "gelu")


class SwiGLU(nn.Module):
    """The dense MLP: `down(silu(gate(x)) * up(x))`."""

    d_model: int
    d_mlp: int
    init_scale: float
    weight_dtype: jnp.dtype

    def setup(self) -> None:
        """Declare the three matrices."""
        d, f, w = self.d_model, self.d_mlp, self.weight_dtype
        self.gate = Projection((d, f), ("embed", "mlp"), weight_dtype=w)
        self.up = Projection((d, f), ("embed", "mlp"), weight_dtype=w)
        self.down = Projection((f, d), ("mlp", "embed"), init_scale=self.init_scale, weight_dtype=w)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map `[..., D]` to `[..., D]`."""
        return self.down(nn.silu(self.gate(x)) * self.up(x))


class ExpertKernel(nn.Module):
    """One matrix per expert, `[E, in, out]`."""

    shape: tuple[int, int, int]
    axes: tuple[str, str, str]
    init_scale: float
    weight_dtype: jnp.dtype

    @nn.compact
    def __call__(self) -> jax.Array:
        """The stacked matrices."""
        init = nn.initializers.variance_scaling(self.init_scale, "fan_in", "truncated_normal", in_axis=1, out_axis=2,
                                                batch_axis=0)
        kernel: Any = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape,
                                 self.weight_dtype)
        return kernel


class MixtureOfExperts(nn.Module):
    """Router, experts and, if asked for, an expert that every token goes through."""

    config: ModelConfig
    init_scale: float

    def setup(self) -> None:
        """Declare router and experts."""
        c, w = self.config, dtype_of(self.config.weight_dtype)
        e, d, f = c.num_experts, c.d_model, c.d_expert
        self.router = Projection((d, e), ("embed", "router"), weight_dtype=w, precision=lax.Precision.HIGHEST)
        self.gate = ExpertKernel((e, d, f), ("expert", "embed", "mlp"), 1.0, w)
        self.up = ExpertKernel((e, d, f), ("expert", "embed", "mlp"), 1.0, w)
        self.down = ExpertKernel((e, f, d), ("expert", "mlp", "embed"), self.init_scale, w)
        if c.d_shared_expert:
            self.shared = SwiGLU(d, c.d_shared_expert, self.init_scale, w)

    def __call__(self, x: jax.Array, valid: jax.Array | None,
                 forced: jax.Array | None) -> tuple[jax.Array, RouterStats]:
        """Map `[B, T, D]` to `[B, T, D]`; valid bool `[B, T]` and forced int `[B, T, k]` as for `moe.route`."""
        c = self.config
        logits = self.router(x.astype(jnp.float32))
        ids, weights, stats = route(logits, c.experts_per_token, c.router, forced, valid)
        kernels = {"gate": self.gate(), "up": self.up(), "down": self.down()}
        y = mesh_experts(x, ids, weights, kernels, c.dispatch, scale_input=c.router == "sigmoid")
        return (y + self.shared(x) if c.d_shared_expert else y), stats


class Block(nn.Module):
    """One block, in two halves around attention so that decoders can cache in between."""

    config: ModelConfig

    def setup(self) -> None:
        """Declare the block's parameters."""
        c = self.config
        w = dtype_of(c.weight_dtype)
        d, h, g, k, f = c.d_model, c.num_heads, c.num_kv_heads, c.head_dim, c.d_mlp
        residual = 1.0 / (2 * c.num_layers)  # keeps the residual stream's variance at init
        kv_axes = ("embed", "kv_heads", "head_dim")
        adapters = dict.fromkeys(() if c.lora is None else c.lora.targets, c.lora)
        self.attn_norm = make_norm(c, d, "norm", w)
        self.q = Projection((d, h, k), ("embed", "heads", "head_dim"), bias=c.qkv_bias, weight_dtype=w,
                            lora=adapters.get("q"))
        self.k = Projection((d, g, k), kv_axes, bias=c.qkv_bias, weight_dtype=w,
                            lora=adapters.get("k"))
        self.v = Projection((d, g, k), kv_axes, bias=c.qkv_bias, weight_dtype=w,
                            lora=adapters.get("v"))
        self.o = Projection((h, k, d), ("heads", "head_dim", "embed"), contract=2, bias=c.o_bias, init_scale=residual,
                            weight_dtype=w, lora=adapters.get("o"))
        if c.qk_norm:
            self.q_norm = make_norm(c, k, "head_dim", w)
            self.k_norm = make_norm(c, k, "head_dim", w)
        self.mlp_norm = make_norm(c, d, "norm", w)
        if c.post_norms:
            self.attn_post_norm = make_norm(c, d, "norm", w)
            self.mlp_post_norm = make_norm(c, d, "norm", w)
        if c.num_experts:
            self.moe = MixtureOfExperts(c, residual)
            return
        if c.gated_mlp:
            self.gate = Projection((d, f), ("embed", "mlp"), bias=c.mlp_bias, weight_dtype=w, lora=adapters.get("gate"))
        self.up = Projection((d, f), ("embed", "mlp"), bias=c.mlp_bias, weight_dtype=w, lora=adapters.get("up"))
        self.down = Projection((f, d), ("mlp", "embed"), bias=c.mlp_bias, init_scale=residual, weight_dtype=w,
                               lora=adapters.get("down"))

    def project(self, x: jax.Array, tables: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries `[B, H, T, K]`, keys and values `[B, G, T, K]` of rows `[B, T, D]`, rotated.

        Attention divides scores by the square root of K; queries make up for a model that divides by another.
        """
        c, n = self.config, self.attn_norm(x)
        q, k, v = self.q(n), self.k(n), self.v(n)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scale = (c.head_dim / (c.query_pre_attn_scalar or c.head_dim)) ** 0.5
        q, k = rotate(q, tables, scale), rotate(k, tables)
        return q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)

    def finish(self, x: jax.Array, attended: jax.Array, valid: jax.Array | None = None,
               forced: jax.Array | None = None) -> tuple[jax.Array, RouterStats | None]:
        """Residual stream `[B, T, D]` after attention's output `[B, T, H, K]` and the MLP, and what routing did.

        valid and forced are for a mixture of experts, as in `moe.route`; a dense block has no statistics.
        """
        c, stats, out = self.config, None, self.o(attended)
        out = x + (self.attn_post_norm(out) if c.post_norms else out)
        n = self.mlp_norm(x if c.parallel_residual else out)
        if c.num_experts:
            y, stats = self.moe(n, valid, forced)
        elif c.gated_mlp:
            y = self.down(activation(c.mlp, self.gate(n)) * self.up(n))
        else:
            y = self.down(activation(c.mlp, self.up(n)))
        return out + (self.mlp_post_norm(y) if c.post_norms else y), stats
