"""Discrete information measures in bits, as pure functions over trailing axes; leading axes are batches.

Probabilities come from counts by `probabilities` (Jeffreys' prior adds 1/2 to each cell). Entropies can be corrected
after Miller and Madow. Results have the type of what is given: float32, or float64 under `jax.enable_x64`.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy

JEFFREYS = 0.5
LOG2 = 0.6931471805599453


def discretise(x: jax.Array, bins: int = 2, lengths: jax.Array | None = None) -> jax.Array:
    """Quantile bins of each series, by its own quantiles.

    Args:
      x: [..., R, N], values by round and agent.
      bins: K; two bins part a series above its median from the rest.
      lengths: [...], rounds that were played; those after are left out of quantiles. None: all.

    Returns:
      [..., R, N] int32 in 0..K-1; a series of one value is all 0.
    """
    rounds = x.shape[-2]
    played = jnp.full(x.shape[:-2], rounds) if lengths is None else lengths
    here = (jnp.arange(rounds) < played[..., None])[..., None]
    # A value lies above the quantile k / K iff more than floor((n - 1) k / K) values are less than it: no sorting.
    less = ((x[..., None, :, :] < x[..., :, None, :]) & here[..., None, :, :]).sum(-2)
    edges = (jnp.arange(1, bins) * (played[..., None] - 1)) // bins  # [..., K - 1]
    out = (less[..., None] > edges[..., None, None, :]).sum(-1)
    return jnp.where(here, out, 0).astype(jnp.int32)


def probabilities(counts: jax.Array, axes: int, alpha: float = JEFFREYS) -> jax.Array:
    """Posterior mean of the cells' probabilities under a symmetric Dirichlet prior.

    Args:
      counts: the last `axes` axes are cells.
      axes: how many.
      alpha: pseudo-count of a cell; 0 gives frequencies.
    """
    cells = tuple(range(-axes, 0))
    smooth = counts + alpha
    return smooth / smooth.sum(cells, keepdims=True)


def entropy(p: jax.Array, axes: int = 1) -> jax.Array:
    """Entropy in bits of the last `axes` axes together; a cell of probability 0 adds nothing."""
    return -xlogy(p, p).sum(tuple(range(-axes, 0))) / LOG2


def miller_madow(p: jax.Array, samples: jax.Array | float, axes: int = 1) -> jax.Array:
    """`entropy` with Miller and Madow's correction: (cells that occur - 1) / (2 samples) nats more.

    Args:
      p: frequencies, without a prior.
      samples: what they were counted from; of the shape of the result, or a number.
      axes: as in `entropy`.
    """
    occur = (p > 0).sum(tuple(range(-axes, 0)))
    return entropy(p, axes) + (occur - 1) / (2 * samples) / LOG2


def mutual_information(p: jax.Array, first: Sequence[int], second: Sequence[int],
                       samples: jax.Array | float | None = None) -> jax.Array:
    """I(first; second) in bits.

    Args:
      p: the last `len(first) + len(second)` axes are cells.
      first: negative axes of one side.
      second: of the other.
      samples: entropies are corrected after Miller and Madow for so many; None: not corrected.
    """
    n = len(first) + len(second)

    def h(q: jax.Array, axes: int) -> jax.Array:
        return entropy(q, axes) if samples is None else miller_madow(q, samples, axes)
    return h(p.sum(tuple(second)), len(first)) + h(p.sum(tuple(first)), len(second)) - h(p, n)
