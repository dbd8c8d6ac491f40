"""Work on some rows of a batch: those that need it, gathered in chunks; or on all of them, if any does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

T = TypeVar("T")


def run_rows(run: Callable[[T, jax.Array], T], needed: jax.Array, rows: T, chunk: int) -> T:
    """`rows` with `run` applied where `needed`, at the cost of the rows that need it, rounded up to chunks.

    A `vmap` over a choice would compute every row. Chunks go one after the other, so that shapes are static.

    Args:
      run: from R rows (a tree of `[R, ...]`) and their indices int32 `[R]` to the same rows changed. Of a chunk that is
        not full, the last rows are some that do not need it, and are dropped.
      needed: bool `[B]`.
      rows: tree of `[B, ...]`.
      chunk: R.
    """
    b = needed.shape[0]
    chunk = min(chunk, b)
    order = jnp.argsort(~needed, stable=True).astype(jnp.int32)
    order = jnp.pad(order, (0, -b % chunk), constant_values=b - 1)
    count = jnp.sum(needed, dtype=jnp.int32)

    def one(i: jax.Array, rows: T) -> T:
        index = lax.dynamic_slice(order, (i * chunk,), (chunk,))
        where = jnp.where(i * chunk + jnp.arange(chunk) < count, index, b)  # past the end, where `drop` applies
        changed = run(jax.tree.map(lambda leaf: leaf[index], rows), index)
        return jax.tree.map(lambda leaf, new: leaf.at[where].set(new.astype(leaf.dtype), mode="drop"), rows, changed)

    return lax.fori_loop(0, (count + chunk - 1) // chunk, one, rows)


def run_if(wanted: jax.Array, run: Callable[[T], T], carry: T) -> T:
    """`run(carry)` if the bool scalar `wanted` says so.

    A loop of at most one turn and not a `cond`, whose untaken branch would copy every buffer.
    """
    return lax.while_loop(lambda c: c[0], lambda c: (jnp.zeros((), bool), run(c[1])), (wanted, carry))[1]


def settle_counts(taken: jax.Array, before: jax.Array, last: jax.Array | bool) -> jax.Array:
    """Executions `[B]` of a layer, such that no row ends without any: one that skipped all else runs the last layer.

    Args:
      taken: int8 `[B]`, as chosen.
      before: int32 `[B]`, executions of earlier layers.
      last: whether this is the last layer.
    """
    return jnp.where(last & (before == 0), jnp.maximum(taken, 1), taken)
