"""Mixture of experts as pure functions: routing, and the experts' SwiGLU dispatched in three ways.

Dims: N tokens (any leading axes), k experts a token, E experts, D model width, F width of one expert.

Routers: softmax top-k (Switch Transformer, arXiv 2101.03961; Mixtral, 2401.04088), sigmoid top-1 on the
expert's input (Llama 4). The balance loss is Switch's, the z loss ST-MoE's (2202.08906), replay of given
experts R3's (2510.11370). No tokens are dropped and no capacity is set, so a row's output does not depend on
its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import PartitionSpec

from jaxllm.models.config import Dispatch, Router
from jaxllm.models.moe_blocks import blocks, combine, sort_by_expert
from jaxllm.parallel import active_mesh, active_spec, axes_of, gather_weights


@struct.dataclass
class RouterStats:
    """What routing did, over the valid tokens of the whole batch. One layer's, or all layers' on a leading L.

    Attributes:
      load: float32 `[E]`, each expert's share of the assignments; sums to 1.
      balance: float32 scalar, Switch's E * sum(load * mean probability): 1 when even. Its gradient runs through the
        probabilities alone.
      z: float32 scalar, mean squared logsumexp of the logits.
      ids: int32 `[N, k]`, the experts taken, -1 for padding. Given back as `forced` they replay this routing.
    """

    load: jax.Array
    balance: jax.Array
    z: jax.Array
    ids: jax.Array


def route(
    logits: jax.Array, k: int, mode: Router, forced: jax.Array | None = None, valid: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, RouterStats]:
    """Choose k experts a token and their weights; all in float32.

    Args:
      logits: `[..., E]`, the router's.
      k: experts a token.
      mode: `softmax` weighs by probabilities over all E, `softmax_renormalized` by those over the k chosen,
        `sigmoid` by each logit's own sigmoid.
      forced: int `[..., k]`, experts to take in place of the chosen ones; a token with a -1 among its k is routed
        afresh. Their weights come from the logits given here, so gradients reach the router.
      valid: bool `[...]`; padding counts for nothing and goes to no expert.

    Returns:
      ids int32 `[..., k]` (-1 for padding), weights float32 `[..., k]` (0 for padding), statistics with ids
      flattened to `[N, k]`.
    """
    logits = logits.astype(jnp.float32)
    e = logits.shape[-1]
    ids = _top_k(logits, k)
    if forced is not None:
        replayed = jnp.all(forced >= 0, axis=-1, keepdims=True)
        ids = jnp.where(replayed, forced.astype(jnp.int32), ids)
    scores = jax.nn.sigmoid(logits) if mode == "sigmoid" else jax.nn.softmax(logits, axis=-1)
    # Taken from the full logits, never from scores zeroed outside the top k: forced experts need not be in it.
    if mode == "softmax_renormalized":
        weights = jax.nn.softmax(jnp.take_along_axis(logits, ids, axis=-1), axis=-1)
    else:
        weights = jnp.take_along_axis(scores, ids, axis=-1)
    shares = scores / jnp.sum(scores, axis=-1, keepdims=True) if mode == "sigmoid" else scores
    square = jnp.square(jax.nn.logsumexp(logits, axis=-1))

    keep = jnp.ones(logits.shape[:-1], bool) if valid is None else valid
    ids = jnp.where(keep[..., None], ids, -1)
    weights = jnp.where(keep[..., None], weights, 0.0)
    tokens = tuple(range(logits.ndim - 1))
    count = jnp.maximum(jnp.sum(keep, dtype=jnp.float32), 1.0)
    hits = (ids[..., None] == jnp.arange(e)).astype(jnp.float32)
    load = jnp.sum(hits, axis=(*tokens, logits.ndim - 1)) / (count * k)
    mean = jnp.sum(jnp.where(keep[..., None], shares, 0.0), axis=tokens) / count
    stats = RouterStats(load=load, balance=e * jnp.sum(load * mean), z=jnp.sum(jnp.where(keep, square, 0.0)) / count,
                        ids=ids.reshape(-1, k))
    return ids, weights, stats


def _top_k(logits: jax.Array, k: int) -> jax.Array:
    """Places of the k largest of `[..., E]`, int32; on a mesh each device those of its own `[B, T, E]` tokens.

    XLA would gather all logits on every device first.
    """
    def one(logits: jax.Array) -> jax.Array:
        return lax.top_k(logits, k)[1].astype(jnp.int32)

    if active_mesh() is None or logits.ndim != 3:
        return one(logits)
    rows = active_spec(("batch", "length", None), logits.shape)
    return jax.shard_map(one, in_specs=rows, out_specs=rows)(lax.stop_gradient(logits))


def default_dispatch() -> Dispatch:
    """`ragged` on TPUs, which have an instruction for it; `blocks` where XLA would expand it densely."""
    return "ragged" if jax.default_backend() == "tpu" else "blocks"


def experts(
    x: jax.Array, ids: jax.Array, weights: jax.Array, params: Mapping[str, jax.Array], impl: Dispatch = "auto",
    *, scale_input: bool = False,
) -> jax.Array:
    """Weighted sum of each token's experts, `[N, D]` in x's dtype.

    Args:
      x: `[N, D]`.
      ids: int `[N, k]`; an id outside 0..E-1 contributes nothing.
      weights: float32 `[N, k]`.
      params: SwiGLU weights `gate` and `up` `[E, D, F]`, `down` `[E, F, D]`; used in x's dtype.
      impl: `dense` computes every expert on every token and is the oracle; `blocks` runs blocks of rows sorted by
        expert and is differentiable once, in reverse; `ragged` is `lax.ragged_dot`; `auto` goes by the platform.
      scale_input: a weight multiplies its expert's input instead of the output. An expert may then appear once
        among a token's ids.
    """
    impl = default_dispatch() if impl == "auto" else impl
    run: Any = {"dense": _dense, "blocks": blocks, "ragged": _ragged}[impl]
    gate, up, down = (params[name].astype(x.dtype) for name in ("gate", "up", "down"))
    return run(x, ids, weights.astype(jnp.float32), gate, up, down, scale_input)


def mesh_experts(
    x: jax.Array, ids: jax.Array, weights: jax.Array, params: Mapping[str, jax.Array], impl: Dispatch = "auto",
    *, scale_input: bool = False,
) -> jax.Array:
    """`experts` for `[B, T, D]`, with ids and weights `[B, T, k]`, over the mesh of `on_mesh` where there is one.

    A device holds E/n of the experts and computes these for the tokens of all n devices of its expert group: it gathers
    their tokens and, where the batch is split over the expert axis as well, gives each its share of the sums back.
    Exact and dropless with static shapes; an all-to-all would send a token to the devices of its k experts only, which
    for k of 8 and 8 devices are two in three. The width of an expert may be split too (`mlp`); these parts are summed.
    Kernels split over `embed` are gathered in x's dtype and their gradients summed in float32.
    """
    def flat(x: jax.Array, ids: jax.Array, weights: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
        k = ids.shape[-1]
        return experts(x.reshape(-1, x.shape[-1]), ids.reshape(-1, k), weights.reshape(-1, k), params, impl,
                       scale_input=scale_input).reshape(x.shape)

    mesh = active_mesh()
    if mesh is None:
        return flat(x, ids, weights, params)
    rows = active_spec(("batch", "length", None), x.shape)
    inner = active_spec(("expert", "embed", "mlp"), params["gate"].shape)
    kernels = {"gate": inner, "up": inner, "down": PartitionSpec(inner[0], inner[2], inner[1])}
    owners = axes_of(inner[0])
    group = tuple(axis for axis in owners if axis in axes_of(rows[0]))
    split = tuple(axis for axis in (*owners, *axes_of(inner[2])) if axis not in group)  # over these, results are parts
    per = params["gate"].shape[0]
    for axis in owners:
        per //= mesh.shape[axis]

    def local(x: jax.Array, ids: jax.Array, weights: jax.Array, params: Mapping[str, jax.Array]) -> jax.Array:
        if group:
            x, ids, weights = (lax.all_gather(a, group, axis=0, tiled=True) for a in (x, ids, weights))
        if (cut := axes_of(inner[1])):
            params = {name: gather_weights(kernel, cut, 2 if name == "down" else 1, x.dtype)
                      for name, kernel in params.items()}
        first = lax.axis_index(owners) * per if owners else 0
        y = flat(x, jnp.where(ids >= 0, ids - first, -1), weights, params).astype(jnp.float32)
        if group:
            y = lax.psum_scatter(y, group, scatter_dimension=0, tiled=True)
        return y[None]

    # The parts come out side by side and are summed outside, which makes an all-reduce; the transpose of a psum
    # inside would be a second one, of gradients that are whole already.
    parts = jax.shard_map(local, in_specs=(rows, rows, rows, kernels), out_specs=PartitionSpec(split or None, *rows),
                          check_vma=False)(x, ids, weights, dict(params))
    return jnp.sum(parts, axis=0).astype(x.dtype)


def _dense(x: jax.Array, ids: jax.Array, weights: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array,
           scale_input: bool) -> jax.Array:
    hit = ids[:, :, None] == jnp.arange(gate.shape[0])
    scale = jnp.sum(jnp.where(hit, weights[:, :, None], 0.0), axis=1)[:, :, None].astype(x.dtype)  # [N, E, 1]
    g, u = jnp.einsum("nd,edf->nef", x, gate), jnp.einsum("nd,edf->nef", x, up)
    h = jax.nn.silu(g * scale) * (u * scale) if scale_input else jax.nn.silu(g) * u * scale
    return jnp.einsum("nef,efd->nd", h, down)


def _ragged(x: jax.Array, ids: jax.Array, weights: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array,
            scale_input: bool) -> jax.Array:
    order = sort_by_expert(ids, gate.shape[0])
    # What `ragged_dot` leaves in rows of no group is not defined, in its transpose neither.
    inside = (jnp.arange(ids.size) < jnp.sum(order.counts))[:, None]
    rows = jnp.where(inside, x[order.tokens], 0)
    if scale_input:
        rows = rows * weights.reshape(-1)[order.assignments][:, None].astype(x.dtype)
    h = jax.nn.silu(lax.ragged_dot(rows, gate, order.counts)) * lax.ragged_dot(rows, up, order.counts)
    out = lax.ragged_dot(jnp.where(inside, h, 0), down, order.counts)
    return combine(jnp.where(inside, out, 0), order, None if scale_input else weights, x.dtype)
