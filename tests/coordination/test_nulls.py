"""What surrogates keep and break, p-values against a loop, rates of rejection on each test's own null."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxllm.coordination.calibrate import (
    CalibrateConfig,
    calibrate,
    calibrated,
    least_mean,
    power,
    rejections,
    simulate,
)
from jaxllm.coordination.measures import MeasureConfig, measure
from jaxllm.coordination.nulls import (
    Games,
    TestConfig,
    deal_changes,
    fisher,
    micro_macro,
    permutation_test,
    play_policy,
    shift_agents,
    shuffle_rows,
    surrogate,
    wilcoxon,
)


@pytest.fixture
def guesses():
    return jnp.asarray(np.random.default_rng(0).integers(0, 51, (12, 3)), jnp.float32)


def test_rows_keep_every_rounds_guesses(guesses):
    drawn = np.asarray(shuffle_rows(jax.random.key(0), guesses))
    np.testing.assert_array_equal(np.sort(drawn, 1), np.sort(guesses, 1))
    assert (drawn != np.asarray(guesses)).any()


def test_shifts_turn_each_agents_played_rounds(guesses):
    drawn = np.asarray(shift_agents(jax.random.key(1), guesses, jnp.asarray(9)))
    by = []
    for agent in range(3):
        turns = [k for k in range(9) if np.array_equal(np.roll(np.asarray(guesses)[:9, agent], -k), drawn[:9, agent])]
        assert len(turns) == 1
        by += turns
    assert len(set(by)) > 1


def test_dealing_keeps_each_agents_changes_after_each_feedback(guesses):
    target, length = jnp.asarray(70.0), jnp.asarray(10)
    drawn = np.asarray(deal_changes(jax.random.key(2), guesses, target, length))
    x = np.asarray(guesses)
    signs = np.sign(x.sum(1) - 70)[:9]
    np.testing.assert_array_equal(drawn[0], x[0])
    for sign in (-1, 0, 1):
        for agent in range(3):
            got, want = (np.sort(np.diff(y[:10, agent])[signs == sign]) for y in (drawn, x))
            np.testing.assert_allclose(got, want, atol=1e-4)
    assert (drawn[:10] != x[:10]).any()


def test_a_policys_group_answers_to_its_own_total():
    """Agents that go 2 down after high and 3 up after low: every surrogate is their game."""
    x = np.zeros((15, 2), np.float32)
    x[0] = 30, 10
    for t in range(1, 15):
        x[t] = x[t - 1] + (-2 if x[t - 1].sum() > 33 else 3)
    drawn = play_policy(jax.random.key(3), jnp.asarray(x), jnp.asarray(33.0), jnp.asarray(15))
    np.testing.assert_allclose(drawn, x)


@pytest.mark.parametrize("null", ["rows", "shift", "feedback", "policy"])
def test_p_is_the_share_of_surrogates_that_are_as_large(null):
    games = simulate("follow", 2, 3, 12, seed=0)
    config = TestConfig(null, ("practical", "mmi"), permutations=30, chunk=8)
    found = permutation_test(games, config, seed=5)
    key = jax.random.split(jax.random.key(5), 2)[1]
    x, target, length = (part[1] for part in games)

    @jax.jit
    def value(y):
        return measure(*micro_macro(y, target), length, config.measures, MeasureConfig())
    drawn = []
    for chunk in range(4):
        drawn += [value(surrogate(null, k, x, target, length))
                  for k in jax.random.split(jax.random.fold_in(key, chunk), 8)]
    drawn = np.array(drawn[:30])
    observed = np.asarray(value(x))
    np.testing.assert_allclose(found.observed[1], observed, atol=1e-5)
    np.testing.assert_allclose(found.null_mean[1], drawn.mean(0), atol=1e-4)
    np.testing.assert_allclose(found.null_sd[1], drawn.std(0), atol=1e-4)
    np.testing.assert_allclose(found.p[1], (1 + (drawn >= observed - 1e-5).sum(0)) / 31, atol=1 / 31 + 1e-6)
    np.testing.assert_allclose(found.corrected[1], observed - drawn.mean(0), atol=1e-4)


def test_two_independent_oscillators_have_no_synergy_after_correction():
    """Varley's case: I_min and MMI see one bit of synergy, BROJA none; less the null it is none in all three."""
    phases = jnp.arange(20)[:, None] % 2 ^ jnp.array([[0, 0], [0, 1]])[:, None, :]
    games = Games(20.0 + 10.0 * phases, jnp.full((2,), 55.0), jnp.full((2,), 20, jnp.int32))
    config = TestConfig("shift", ("imin", "mmi", "broja"), 200, measure=MeasureConfig(alpha=0.0))
    raw = np.asarray(
        jax.vmap(lambda x: measure(x, x.sum(1), 20, ("imin", "mmi", "broja"), config.measure))(games.guesses)
    )
    found = permutation_test(games, config)
    np.testing.assert_allclose(found.observed, raw, atol=1e-4)
    assert np.abs(found.corrected).max() < 0.02
    assert (found.p > 0.05).all()
    # Four states in which both are free, so that they are independent: the textbook value.
    p = np.zeros((2, 2, 4))
    for a in (0, 1):
        for b in (0, 1):
            p[a, b, (1 - a) * 2 + 1 - b] = 0.25
    from jaxllm.coordination.decomposition import decompose

    np.testing.assert_allclose(
        [float(decompose(jnp.asarray(p), kind).synergistic) for kind in ("imin", "mmi", "broja")], [1, 1, 0], atol=1e-5
    )


def test_planted_synergy_is_found():
    """Two agents, 60 rounds. Of twenty rounds, which is what the paper has, no more than two games in five show it.

    Shuffled rows exchange a pair's two agents, which leaves much of an exclusive or as it is: less power.
    """
    found = power(2, 60, 40, TestConfig("shift", ("broja",), 100), seed=1)
    assert found["broja"].value >= 0.9


def test_fisher_and_wilcoxon_are_scipys():
    p = [0.2, 0.03, 0.5]
    np.testing.assert_allclose(fisher(p), stats.chi2.sf(-2 * np.log(p).sum(), 6))
    assert wilcoxon([0.0, 0.0]) == 1.0
    assert wilcoxon([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == 1 / 64


def test_calibration_gives_each_bias_with_its_interval():
    config = CalibrateConfig(("noise", "follow"), ("shift",), ("mmi",), 12, 3, 10, 20)
    noise, follow = calibrate(config)
    for number, line in enumerate((noise, follow)):
        games = simulate(line["agents"], 12, 3, 10, number)
        x = permutation_test(games, TestConfig("shift", ("mmi",), 20), 1000).corrected[:, 0]
        half = stats.t.ppf(0.975, 11) * x.std(ddof=1) / np.sqrt(12)
        np.testing.assert_allclose([line["bias"], line["bias_low"], line["bias_high"]],
                                   [x.mean(), x.mean() - half, x.mean() + half], atol=1e-6)
    assert least_mean([noise, follow]) == {("shift", "mmi"): max(0, noise["bias_high"], follow["bias_high"])}


def test_a_test_that_rejects_for_followers_is_no_evidence():
    lines = [
        {"agents": a, "null": "shift", "measure": m, "low": low}
        for a, m, low in (
            ("noise", "imin", 0.03),
            ("follow", "imin", 0.5),
            ("noise", "broja", 0.04),
            ("follow", "broja", 0.02),
        )
    ]
    assert calibrated(lines) == {("shift", "broja")}


@pytest.mark.slow
@pytest.mark.parametrize("null,kind", [("rows", "noise"), ("shift", "noise")])
def test_rates_of_rejection_on_its_own_null(null, kind):
    """1,000 games of each; 0.03 to 0.07 at 0.05. Less the null's mean, measures are 0 on the average."""
    names = ("practical", "imin", "mmi", "i3", "g3")
    found = permutation_test(simulate(kind, 1000, 10, 20, seed=3), TestConfig(null, names, 200), seed=4)
    for name, p, corrected in zip(names, found.p.T, found.corrected.T, strict=True):
        assert 0.03 <= (p <= 0.05).mean() <= 0.07, (null, name, (p <= 0.05).mean())
        assert abs(corrected.mean()) < 4 * corrected.std(ddof=1) / np.sqrt(1000), (null, name, corrected.mean())


@pytest.mark.slow
@pytest.mark.parametrize("null,kind", [("rows", "noise"), ("shift", "noise")])
def test_brojas_rate_of_rejection_on_its_own_null(null, kind):
    """200 games of 200 surrogates each; the interval holds 0.05."""
    found = rejections(simulate(kind, 200, 10, 20, seed=5), TestConfig(null, ("broja",), 200), 0.05, seed=6)["broja"]
    assert found.low <= 0.05 <= found.high, (null, kind, found)
