"""Measures of games against naive numpy."""

from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.coordination.measures import (
    MeasureConfig,
    coalitions,
    emergence_capacity,
    measure,
    pair_counts,
    practical_criterion,
)


def mi(joint):
    """Mutual information of a table of probabilities [A, B], bits."""
    a, b = joint.sum(1), joint.sum(0)
    return sum(joint[i, j] * np.log2(joint[i, j] / a[i] / b[j]) for i in range(len(a)) for j in range(len(b))
               if joint[i, j] > 0)


def count(*series, sizes):
    out = np.zeros(sizes)
    for cell in zip(*series, strict=True):
        out[cell] += 1
    return out


def smooth(counts, alpha=0.5):
    return (counts + alpha) / (counts + alpha).sum()


def binned(x, k):
    return (x[None] > np.quantile(x, np.arange(1, k) / k, axis=0)[:, None]).sum(0)


@pytest.fixture
def game():
    rng = np.random.default_rng(0)
    x = np.cumsum(rng.normal(size=(18, 4)), 0)
    return x.astype(np.float32), x.sum(1).astype(np.float32)


@pytest.mark.parametrize("bins", [2, 3])
@pytest.mark.parametrize("lag", [1, 2])
def test_practical_criterion(game, bins, lag):
    x, v = game
    b, w = binned(x, bins), binned(v[:, None], bins)[:, 0]
    want = mi(smooth(count(w[:-lag], w[lag:], sizes=(bins, bins))))
    want -= sum(mi(smooth(count(b[:-lag, k], w[lag:], sizes=(bins, bins)))) for k in range(4))
    np.testing.assert_allclose(practical_criterion(x, v, 18, MeasureConfig(bins, lag)), want, atol=1e-5)


def test_pairs_are_counted_as_by_a_loop(game):
    x, _ = game
    b = binned(x, 2)
    found = np.asarray(pair_counts(jnp.asarray(b), 15, MeasureConfig()))
    for number, (i, j) in enumerate(combinations(range(4), 2)):
        want = count(b[:14, i], b[:14, j], b[1:15, i] * 2 + b[1:15, j], sizes=(2, 2, 4))
        np.testing.assert_array_equal(found[number], want)


def test_emergence_capacity_by_mmi(game):
    x, _ = game
    b, synergy = binned(x, 2), []
    for i, j in combinations(range(4), 2):
        p = smooth(count(b[:-1, i], b[:-1, j], b[1:, i] * 2 + b[1:, j], sizes=(2, 2, 4)))
        one, other, both = mi(p.sum(1)), mi(p.sum(0)), mi(p.reshape(4, 4))
        synergy.append(both - one - other + min(one, other))
    np.testing.assert_allclose(emergence_capacity(x, 18, kind="mmi"), np.median(synergy), atol=1e-5)
    np.testing.assert_allclose(
        emergence_capacity(x, 18, MeasureConfig(group="mean"), "mmi"), np.mean(synergy), atol=1e-5
    )


def test_coalitions(game):
    x, v = game
    t = np.arange(18)
    flat = [np.stack([s - np.polyval(np.polyfit(t, s, 1), t) for s in y.T], 1) for y in (x, v[:, None])]
    b, w = binned(flat[0], 2), binned(flat[1], 2)[1:, 0]
    i3, g3 = [], []
    for who in combinations(range(4), 3):
        counts = count(*(b[:-1, k] for k in who), w, sizes=(2, 2, 2, 2))
        i3.append(mi(smooth(counts).reshape(8, 2)))
        g3.append(i3[-1] - max(mi(smooth(counts.sum(axis)).reshape(4, 2)) for axis in range(3)))
    found = coalitions(x, v, 18)
    np.testing.assert_allclose(found["i3"], np.median(i3), atol=1e-5)
    np.testing.assert_allclose(found["g3"], np.median(g3), atol=1e-5)
    p = smooth(np.bincount(w, minlength=2))
    np.testing.assert_allclose(found["stability"], np.median(i3) / -(p * np.log2(p)).sum(), atol=1e-5)


def test_rounds_after_the_end_do_not_count(game):
    x, v = game
    names = ("practical", "imin", "mmi", "broja", "i3", "g3", "stability", "redundancy")
    whole = measure(x[:12], v[:12], 12, names)
    padded = measure(np.concatenate([x[:12], 99 + x[12:]]), np.concatenate([v[:12], -99 + v[12:]]), 12, names)
    np.testing.assert_allclose(padded, whole, atol=1e-5)
    together = jax.vmap(lambda a, b: measure(a, b, 12, names))(jnp.stack([x[:12]] * 2), jnp.stack([v[:12]] * 2))
    np.testing.assert_allclose(together[1], whole, atol=1e-5)


def test_miller_madow_instead_of_a_prior(game):
    x, v = game
    b, w = binned(x, 2), binned(v[:, None], 2)[:, 0]

    def corrected(counts):
        n = counts.sum()

        def h(c):
            f = c[c > 0] / n
            return -(f * np.log2(f)).sum() + (len(f) - 1) / (2 * n) / np.log(2)
        return h(counts.sum(1)) + h(counts.sum(0)) - h(counts.ravel())
    want = corrected(count(w[:-1], w[1:], sizes=(2, 2)))
    want -= sum(corrected(count(b[:-1, k], w[1:], sizes=(2, 2))) for k in range(4))
    np.testing.assert_allclose(practical_criterion(x, v, 18, MeasureConfig(correction="miller_madow")), want, atol=1e-5)
