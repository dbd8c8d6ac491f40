"""Partial information decomposition of two sources and a target: I_min, MMI and BROJA, batched.

I(A, B; T) = redundant + unique A + unique B + synergistic, with I(A; T) = redundant + unique A and the same for B, so
that one of the four gives the others. I_min (Williams and Beer, arXiv 1004.2515) and MMI (the lesser of two
informations) give the redundant part in closed form; BROJA (Bertschinger et al., arXiv 1311.4928) gives the
synergistic one, as the least that any distribution with the same pairs (A, T) and (B, T) would have. On a joint
future as target, I_min and MMI take two sources that each copy themselves for redundant and synergistic by a bit
each; BROJA takes them for unique, which is why conclusions rest on it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import xlogy

from jaxllm.coordination.information import LOG2, mutual_information

Kind = Literal["imin", "mmi", "broja"]
KINDS: tuple[Kind, ...] = ("imin", "mmi", "broja")


class Decomposition(NamedTuple):
    """Four parts in bits, each of the batch's shape; `unique_a` is what A has and B has not."""

    redundant: jax.Array
    unique_a: jax.Array
    unique_b: jax.Array
    synergistic: jax.Array


def decompose(p: jax.Array, kind: Kind = "broja") -> Decomposition:
    """The decomposition of p.

    Args:
      p: [..., A, B, T] probabilities.
      kind: by which measure.
    """
    a, b, both = informations(p)
    if kind == "broja":
        redundant = a + b - union_information(p)
    else:
        redundant = imin(p) if kind == "imin" else jnp.minimum(a, b)
    return Decomposition(redundant, a - redundant, b - redundant, both - a - b + redundant)


def informations(p: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """I(A; T), I(B; T) and I(A, B; T) in bits of p [..., A, B, T]."""
    a, b = (mutual_information(p.sum(axis), (-2,), (-1,)) for axis in (-2, -3))
    return a, b, mutual_information(p, (-3, -2), (-1,))


def imin(p: jax.Array) -> jax.Array:
    """Redundant information of Williams and Beer, in bits, of p [..., A, B, T].

    Their equation 3: the mean over T of the lesser specific information, I(T = t; A) = sum_a p(a|t) log2(p(t|a) /
      p(t)).
    """
    t = p.sum((-3, -2))

    def specific(joint: jax.Array) -> jax.Array:
        # p(t) times the specific information: sum_a p(a, t) log2(p(a, t) / (p(a) p(t)))
        own = joint.sum(-1, keepdims=True)
        return (xlogy(joint, joint) - xlogy(joint, own)).sum(-2) - xlogy(t, t)
    return jnp.minimum(specific(p.sum(-2)), specific(p.sum(-3))).sum(-1) / LOG2


def union_information(p: jax.Array) -> jax.Array:
    """BROJA's union information in bits: the least I(A, B; T) of all q with the pairs (A, T) and (B, T) of p."""
    return mutual_information(least_informed(p), (-3, -2), (-1,))


def least_informed(p: jax.Array, steps: int = 0) -> jax.Array:
    """The q [..., A, B, T] with the pairs (A, T) and (B, T) of p that has the least I(A, B; T) (arXiv 1311.4928,
    equation 13).

    A convex problem with (A - 1)(B - 1) unknowns for each t: a barrier method, its Newton steps exact, a fixed number
    of them. It ends within 1e-9 bits of the minimum in float64, 1e-5 in float32.

    Args:
      p: [..., A, B, T] probabilities.
      steps: Newton steps; 0 takes what the type's precision can use.
    """
    double = p.dtype == jnp.float64
    least = 1e-13 if double else 1e-8
    last = 1e-11 if double else 2e-7  # the barrier's weight at the end; the gap is at most cells times this, in nats
    first, count = 1e-2, steps or (50 if double else 26)
    *_, n_a, n_b, n_t = p.shape
    t = p.sum((-3, -2), keepdims=True)
    # Cells that cannot hold anything would leave no interior: give each t a hair of the uniform distribution.
    p = (1 - least) * p + least * t / (n_a * n_b)
    with_a, with_b = p.sum(-2, keepdims=True), p.sum(-3, keepdims=True)
    safe = jnp.where(t > 0, t, 1.0)
    q = with_a * with_b / safe
    moves = _moves(n_a, n_b, p.dtype)
    m = moves.shape[0]
    alive = t > 0

    def along(cells: jax.Array) -> jax.Array:  # [..., A, B, T] -> [..., m, T]
        return jnp.einsum("mab,...abt->...mt", moves, cells)

    def gram(weights: jax.Array) -> jax.Array:  # [..., A, B, T] -> [..., T, m, m]
        return jnp.einsum("mab,nab,...abt->...tmn", moves, moves, weights)

    def step(i: jax.Array, q: jax.Array) -> jax.Array:
        mu = first * (last / first) ** jnp.minimum(i / (0.75 * count), 1.0).astype(p.dtype)
        inner = jnp.where(alive, q, 1.0)
        ab = q.sum(-1, keepdims=True)
        slope = along(jnp.where(alive, jnp.log(inner) - jnp.log(ab) - mu / inner, 0.0))
        # Second derivatives: a block for each t, less one block that all t share.
        own = gram(jnp.where(alive, 1 / inner + mu / inner ** 2, 1.0))
        shared = gram(1 / ab)[..., 0, :, :]
        live = alive[..., 0, :, :]  # [..., 1, T]
        direct = _solve(own, jnp.moveaxis(slope, -1, -2)[..., None])[..., 0] * jnp.moveaxis(live, -1, -2)
        spread = _solve(own, jnp.broadcast_to(shared[..., None, :, :], own.shape))
        spread = spread * jnp.moveaxis(live, -1, -2)[..., None]
        rest = jnp.eye(m, dtype=p.dtype) - spread.sum(-3)
        total = _solve(rest, direct.sum(-2)[..., None])
        move = direct + (spread @ total[..., None, :, :])[..., 0]  # [..., T, m]
        change = -jnp.einsum("mab,...tm->...abt", moves, move)
        falls = change < 0
        room = jnp.where(falls, inner / jnp.where(falls, -change, 1.0), jnp.inf).min((-3, -2, -1), keepdims=True)
        change = jnp.where(jnp.isfinite(change), change, 0.0)
        return q + jnp.minimum(1.0, 0.95 * jnp.where(jnp.isnan(room), 0.0, room)) * change
    return lax.fori_loop(0, count, step, q)


def _moves(n_a: int, n_b: int, dtype: jnp.dtype) -> jax.Array:
    """[m, A, B]: changes that leave both margins as they are."""
    out = [jnp.zeros((n_a, n_b), dtype).at[0, 0].set(1).at[a, 0].set(-1).at[0, b].set(-1).at[a, b].set(1)
           for a in range(1, n_a) for b in range(1, n_b)]
    return jnp.stack(out) if out else jnp.zeros((0, n_a, n_b), dtype)


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """`linalg.solve` of small blocks; those of two bins are one number, where LAPACK's call takes most of the time."""
    return right / matrix if matrix.shape[-1] == 1 else jnp.linalg.solve(matrix, right)
