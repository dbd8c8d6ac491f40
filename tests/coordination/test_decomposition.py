"""Information measures and decompositions against closed forms, dit, and a naive solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxllm.coordination.decomposition import decompose, imin, least_informed, union_information
from jaxllm.coordination.information import discretise, entropy, miller_madow, mutual_information, probabilities


def table(outcomes, shape=(2, 2, 2)):
    p = np.zeros(shape)
    for o in outcomes:
        p[o] += 1 / len(outcomes)
    return p


BITS = [(a, b) for a in (0, 1) for b in (0, 1)]
STANDARD = {  # redundant, unique A, unique B, synergistic; two_bit_copy has the joint of both as target
    "xor": (table([(a, b, a ^ b) for a, b in BITS]), {"all": (0, 0, 0, 1)}),
    "and": (table([(a, b, a & b) for a, b in BITS]), {"all": (0.311278, 0, 0, 0.5)}),
    "redundant": (table([(a, a, a) for a in (0, 1)]), {"all": (1, 0, 0, 0)}),
    "unique": (table([(a, b, a) for a, b in BITS]), {"all": (0, 1, 0, 0)}),
    "copy": (table([(a, b, 2 * a + b) for a, b in BITS], (2, 2, 4)),
             {"imin": (1, 0, 0, 1), "mmi": (1, 0, 0, 1), "broja": (0, 1, 1, 0)})}


@pytest.mark.parametrize("kind", ["imin", "mmi", "broja"])
@pytest.mark.parametrize("name", STANDARD)
@pytest.mark.parametrize("double", [False, True])
def test_standard_distributions_have_their_closed_forms(name, kind, double):
    p, known = STANDARD[name]
    with jax.enable_x64(double):
        found = np.array(decompose(jnp.asarray(p, jnp.float64 if double else jnp.float32), kind))
    want = known.get(kind, known.get("all"))
    np.testing.assert_allclose(found, want, atol=(1e-6 if name == "and" else 2e-9) if double else 1e-5)


def random_tables(n, shape=(2, 2, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(int(np.prod(shape)), 0.5), n).reshape(n, *shape)


def by_dit(p, kind):
    import dit
    from dit.pid.measures.imin import PID_WB
    from dit.pid.measures.immi import PID_MMI

    cells = [c for c in np.ndindex(p.shape) if p[c] > 0]
    d = dit.Distribution(["".join(map(str, c)) for c in cells], [p[c] for c in cells])
    pid = {"imin": PID_WB, "mmi": PID_MMI}[kind](d, ((0,), (1,)), (2,))
    return [pid[key] for key in (((0,), (1,)), ((0,),), ((1,),), ((0, 1),))]


@pytest.mark.parametrize("kind", ["imin", "mmi"])
def test_decompositions_are_those_of_dit(kind):
    p = random_tables(4)
    want = np.array([by_dit(x, kind) for x in p])
    with jax.enable_x64(True):
        np.testing.assert_allclose(np.array(decompose(jnp.asarray(p), kind)).T, want, atol=1e-9)
    np.testing.assert_allclose(np.array(decompose(jnp.asarray(p, jnp.float32), kind)).T, want, atol=1e-5)


def gap(p, q):
    """How far I(A, B; T) of q can lie above its least value, bits: a linear program over all tables with the pairs of
    p.

    I is convex, so that it lies above its tangent at q; the least value of the tangent bounds it from below.
    """
    shape, rows, right = p.shape, [], []
    for axis in (0, 1):
        for cell in np.ndindex(*np.delete(shape, axis)):
            mask = np.zeros(shape)
            mask[tuple(np.insert(np.array(cell, object), axis, slice(None)))] = 1
            rows.append(mask.ravel())
            right.append(p.sum(axis)[cell])
    rows, right = np.array(rows), np.array(right)
    np.testing.assert_allclose(rows @ q.ravel(), right, atol=1e-9)
    slope = np.log2(q / q.sum(2, keepdims=True)).ravel()
    found = linprog(slope, A_eq=rows, b_eq=rows @ q.ravel(), bounds=(0, None), method="highs",
                    options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10})
    assert found.success, found.message
    return slope @ q.ravel() - found.fun


@pytest.mark.parametrize("shape", [(2, 2, 4), (2, 2, 2), (3, 3, 9), (2, 3, 2)])
def test_union_information_is_the_least_there_is(shape):
    p = random_tables(6, shape, seed=1)
    with jax.enable_x64(True):
        q = np.asarray(jax.jit(least_informed)(jnp.asarray(p)))
        least = np.asarray(union_information(jnp.asarray(p)))
    assert (q > 0).all()
    for one, found in zip(p, q, strict=True):
        assert gap(one, found) < 1e-9
    np.testing.assert_allclose(np.asarray(union_information(jnp.asarray(p, jnp.float32))), least, atol=1e-5)


def test_broja_is_that_of_dit():
    """The best of four of dit's starts, which it draws: one alone may end a thousandth of a bit above the least."""
    import dit
    from dit.pid.measures.ibroja import PID_BROJA

    for p in random_tables(2, (2, 2, 2), seed=6):
        d = dit.Distribution(["".join(map(str, c)) for c in np.ndindex(p.shape)], p.ravel().tolist())
        tried = []
        for start in range(4):
            np.random.seed(start)  # noqa: NPY002 - the state that dit reads
            pid = PID_BROJA(d, ((0,), (1,)), (2,))
            tried.append([pid[key] for key in (((0,), (1,)), ((0,),), ((1,),), ((0, 1),))])
        want = max(tried, key=lambda parts: parts[3])  # the least I(A, B; T) leaves the most to synergy
        found = np.array(decompose(jnp.asarray(p, jnp.float32), "broja"))
        np.testing.assert_allclose(found, want, atol=1e-3)
        assert found[3] >= want[3] - 1e-5  # ours is nearer to the least I(A, B; T), by the linear program above


def test_imin_by_its_definition():
    for p in random_tables(5, (3, 2, 4), seed=2):
        t, total = p.sum((0, 1)), 0.0
        for k in range(4):
            specific = []
            for joint in (p.sum(1), p.sum(0)):
                given = joint[:, k] / t[k]
                specific.append(sum(given[a] * np.log2(joint[a, k] / joint[a].sum() / t[k]) for a in range(len(joint))))
            total += t[k] * min(specific)
        with jax.enable_x64(True):
            np.testing.assert_allclose(imin(jnp.asarray(p)), total, atol=1e-12)


def test_entropies_and_informations_by_loops():
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 5, (3, 4)).astype(float)
    counts[0, 0] = 0
    n = counts.sum()
    p = (counts + 0.5) / (n + 6)
    naive = sum(p[i, j] * np.log2(p[i, j] / p[i].sum() / p[:, j].sum()) for i in range(3) for j in range(4))
    with jax.enable_x64(True):
        q = probabilities(jnp.asarray(counts), 2)
        np.testing.assert_allclose(mutual_information(q, (-2,), (-1,)), naive, atol=1e-12)
        f = probabilities(jnp.asarray(counts), 2, 0.0)
        plain = -sum(x * np.log2(x) for x in (counts / n).ravel() if x > 0)
        np.testing.assert_allclose(entropy(f, 2), plain, atol=1e-12)
        corrected = plain + (np.count_nonzero(counts) - 1) / (2 * n) / np.log(2)
        np.testing.assert_allclose(miller_madow(f, n, 2), corrected, atol=1e-12)


def test_miller_and_madow_take_the_first_order_bias_away():
    """50 draws of 8 equal cells: (8 - 1) / 100 nats too low to first order, (64 - 1) / 30,000 to second."""
    rng = np.random.default_rng(4)
    counts = rng.multinomial(50, np.full(8, 1 / 8), 4000).astype(np.float32)
    f = probabilities(jnp.asarray(counts), 1, 0.0)
    second = 63 / 30_000 / np.log(2)
    assert abs(float(entropy(f).mean()) - (3 - 7 / 100 / np.log(2) - second)) < 0.003
    assert abs(float(miller_madow(f, 50.0).mean()) - (3 - second)) < 0.003


@pytest.mark.parametrize("bins", [2, 3, 4])
def test_bins_are_numpys_quantiles(bins):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 9, (6, 17, 3)).astype(np.float32)  # ties
    lengths = np.array([17, 16, 9, 5, 4, 2])
    found = np.asarray(discretise(jnp.asarray(x), bins, jnp.asarray(lengths)))
    for g, length in enumerate(lengths):
        played = x[g, :length]
        edges = np.quantile(played, np.arange(1, bins) / bins, axis=0)
        np.testing.assert_array_equal(found[g, :length], (played[None] > edges[:, None]).sum(0))
        assert not found[g, length:].any()


def test_a_constant_series_is_one_bin():
    assert not np.asarray(discretise(jnp.full((7, 2), 3.0), 3)).any()
