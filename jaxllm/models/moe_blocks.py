"""Experts on blocks of rows sorted by expert: dropless, static shapes, and a backward pass of the same kind.

Autodiff of a loop over blocks would keep a copy of the weights per block and add whole weight gradients
once a block. So the gradient is written out: one loop over the experts that got rows, in it one over the blocks
of that expert, with its three weight gradients accumulated in between. Rows are taken and put back by gathers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Rows of a block. An expert's rows are covered by as many of the largest as fit, then of the next; the last size may
# reach over the end, so it bounds what is computed in vain. Loops of dynamic length keep the program small.
BLOCK_ROWS = (256, 64, 16)


class Order(NamedTuple):
    """Assignments sorted by expert; n = N * k, those of no expert last.

    Attributes:
      assignments: int32 `[n]`, which entry of `ids.reshape(-1)` each sorted place holds.
      tokens: int32 `[n]`, its token.
      places: int32 `[N, k]`, the sorted place of each entry.
      kept: bool `[N, k]`, entries that name an expert.
      starts: int32 `[E]`, first sorted place of each expert.
      counts: int32 `[E]`, its rows.
    """

    assignments: jax.Array
    tokens: jax.Array
    places: jax.Array
    kept: jax.Array
    starts: jax.Array
    counts: jax.Array


def sort_by_expert(ids: jax.Array, num_experts: int) -> Order:
    """The stable order of int ids `[N, k]` by expert; ids outside 0..E-1 come last."""
    n, k = ids.size, ids.shape[1]
    kept = (ids >= 0) & (ids < num_experts)
    flat = jnp.where(kept, ids, num_experts).reshape(-1)
    place = jnp.arange(n, dtype=jnp.int32)
    if (num_experts + 1) * n < 2**31:  # one packed key sorts several times faster than key and index
        assignments = jnp.sort(flat * n + place) % n
    else:
        assignments = jnp.argsort(flat, stable=True).astype(jnp.int32)
    places = jnp.zeros(n, jnp.int32).at[assignments].set(place, unique_indices=True)
    counts = jnp.sum(flat[:, None] == jnp.arange(num_experts), axis=0, dtype=jnp.int32)
    return Order(assignments=assignments, tokens=assignments // k, places=places.reshape(-1, k), kept=kept,
                 starts=jnp.cumsum(counts) - counts, counts=counts)


def combine(out: jax.Array, order: Order, weights: jax.Array | None, dtype: Any) -> jax.Array:
    """Sum over each token's k sorted rows of `[n or more, D]`, weighted by `[N, k]` if given, in float32: `[N, D]`."""
    total: Any = 0.0
    for j in range(order.places.shape[1]):  # one by one: [N, k, D] in float32 would outgrow everything else
        rows = out.at[order.places[:, j]].get(mode="promise_in_bounds").astype(jnp.float32)
        rows = jnp.where(order.kept[:, j, None], rows, 0)
        total = total + (rows if weights is None else rows * weights[:, j, None])
    return total.astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def blocks(x: jax.Array, ids: jax.Array, weights: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array,
           scale_input: bool) -> jax.Array:
    """Weighted sum of each token's experts; arguments as for `moe.experts`."""
    return _forward(x, ids, weights, gate, up, down, scale_input)[0]


def _forward(x: jax.Array, ids: jax.Array, weights: jax.Array, gate: jax.Array, up: jax.Array, down: jax.Array,
             scale_input: bool) -> tuple[jax.Array, Any]:
    order = sort_by_expert(ids, gate.shape[0])
    sizes = _sizes(ids.size)
    tokens, scale = _padded(order.tokens, sizes[0]), _padded(weights.reshape(-1)[order.assignments], sizes[0])

    def expert(e: jax.Array, carry: Any) -> Any:
        wg, wu, wd = _at(gate, e), _at(up, e), _at(down, e)

        def block(size: int, at: jax.Array, inside: jax.Array, carry: Any) -> Any:
            del inside  # rows past the expert's end are written again by the next one
            hidden_gate, hidden_up, out = carry
            rows = _rows(x, tokens, at, size)
            if scale_input:
                rows = rows * _slice(scale, at, size)[:, None].astype(x.dtype)
            g, u = rows @ wg, rows @ wu
            return (_put(hidden_gate, g, at), _put(hidden_up, u, at), _put(out, (jax.nn.silu(g) * u) @ wd, at))

        return _for_blocks(order, e, sizes, block, carry)

    rows = len(tokens)
    hidden = jnp.zeros((rows, gate.shape[2]), x.dtype)
    carry = (hidden, hidden, jnp.zeros((rows, x.shape[1]), x.dtype))
    hidden_gate, hidden_up, out = _for_experts(order, expert, carry)
    y = combine(out, order, None if scale_input else weights, x.dtype)
    return y, (x, weights, gate, up, down, order, hidden_gate, hidden_up)


def _backward(scale_input: bool, kept: Any, dy: jax.Array) -> tuple[Any, ...]:
    x, weights, gate, up, down, order, hidden_gate, hidden_up = kept
    sizes = _sizes(weights.size)
    tokens, scale = _padded(order.tokens, sizes[0]), _padded(weights.reshape(-1)[order.assignments], sizes[0])

    def expert(e: jax.Array, carry: Any) -> Any:
        wg, wu, wd = _at(gate, e), _at(up, e), _at(down, e)

        def block(size: int, at: jax.Array, inside: jax.Array, carry: Any) -> Any:
            dwg, dwu, dwd, dx, dscale = carry
            w = _slice(scale, at, size)[:, None]
            raw = _rows(x, tokens, at, size)
            rows = raw * w.astype(x.dtype) if scale_input else raw
            g, u = (_slice(h, at, size).astype(jnp.float32) for h in (hidden_gate, hidden_up))
            s = jax.nn.sigmoid(g)
            h = g * s * u
            dout = _rows(dy, tokens, at, size)
            dh = _dot(dout, wd, 1, 1)  # before the weight, whose gradient is this times h
            back = jnp.where(inside[:, None], dh if scale_input else dh * w, 0)
            dg, du = (back * u * s * (1 + g * (1 - s))).astype(x.dtype), (back * g * s).astype(x.dtype)
            out = jnp.where(inside[:, None], h if scale_input else h * w, 0).astype(x.dtype)
            drows = _dot(dg, wg, 1, 1) + _dot(du, wu, 1, 1)
            dw = jnp.sum(drows * raw.astype(jnp.float32) if scale_input else dh * h, axis=1)
            drows = drows * w if scale_input else drows
            return (dwg + _dot(rows, dg, 0, 0), dwu + _dot(rows, du, 0, 0), dwd + _dot(out, dout, 0, 0),
                    _put(dx, drows.astype(x.dtype), at), _put(dscale, dw, at))

        dgate, dup, ddown, dx, dscale = carry
        zeros = (jnp.zeros(wg.shape, jnp.float32), jnp.zeros(wu.shape, jnp.float32), jnp.zeros(wd.shape, jnp.float32))
        *own, dx, dscale = _for_blocks(order, e, sizes, block, (*zeros, dx, dscale))
        done = (lax.dynamic_update_index_in_dim(whole, part.astype(whole.dtype), e, 0)
                for whole, part in zip((dgate, dup, ddown), own, strict=True))
        return (*done, dx, dscale)

    carry = (jnp.zeros_like(gate), jnp.zeros_like(up), jnp.zeros_like(down),
             jnp.zeros((len(tokens), x.shape[1]), x.dtype), jnp.zeros(len(tokens), jnp.float32))
    dgate, dup, ddown, dx, dscale = _for_experts(order, expert, carry)
    dweights = jnp.where(order.kept, dscale[order.places], 0).astype(weights.dtype)
    return combine(dx, order, None, x.dtype), None, dweights, dgate, dup, ddown


blocks.defvjp(_forward, _backward)


def _sizes(rows: int) -> tuple[int, ...]:
    """The block sizes worth having for so many rows."""
    return tuple(size for size in BLOCK_ROWS if size <= rows) or BLOCK_ROWS[-1:]


def _for_experts(order: Order, body: Callable[[jax.Array, Any], Any], carry: Any) -> Any:
    """Run `body(e, carry)` for the experts that have rows, in order: each overwrites what the one before ran over."""
    active = jnp.argsort(order.counts == 0, stable=True)
    return lax.fori_loop(0, jnp.sum(order.counts > 0), lambda i, carry: body(active[i], carry), carry)


def _for_blocks(order: Order, e: jax.Array, sizes: tuple[int, ...],
                body: Callable[[int, jax.Array, jax.Array, Any], Any], carry: Any) -> Any:
    """Run `body(size, at, inside, carry)` for blocks of rows at..at+size that cover expert e's, largest first."""
    first, left = order.starts[e], order.counts[e]
    end = first + left
    for size in sizes:
        count = -(-left // size) if size == sizes[-1] else left // size

        def run(i: jax.Array, carry: Any, size: int = size, first: jax.Array = first) -> Any:
            at = first + i * size
            return body(size, at, at + jnp.arange(size) < end, carry)

        carry = lax.fori_loop(0, count, run, carry)
        first, left = first + count * size, left - count * size
    return carry


def _padded(x: jax.Array, rows: int) -> jax.Array:
    """`[n]` with room for a block that starts at its last row."""
    return jnp.pad(x, (0, rows))


def _at(x: jax.Array, e: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, e, 0, keepdims=False)


def _slice(x: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x, at, size, 0)


def _rows(x: jax.Array, tokens: jax.Array, at: jax.Array, size: int) -> jax.Array:
    """Rows of `[N, D]` that a block of sorted places holds."""
    return x.at[_slice(tokens, at, size)].get(mode="promise_in_bounds")


def _put(x: jax.Array, rows: jax.Array, at: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(x, rows, at, 0)


def _dot(a: jax.Array, b: jax.Array, da: int, db: int) -> jax.Array:
    """Float32 product of two matrices over dimension `da` of one and `db` of the other."""
    return lax.dot_general(a, b, (((da,), (db,)), ((), ())), preferred_element_type=jnp.float32)
