"""HERO against formulas written out in loops, its order, its weights, and the normalisation that undoes them."""

import json
import math

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.rl.rewards import HeroConfig, Spread, check_normalisation, hero_rewards, stratify


def naive_stratify(rule, model, alpha, beta):
    """Eq. 3 in loops, without eps: the test's strata have either a spread or none at all."""
    out = np.zeros(len(rule))
    for i in range(len(rule)):
        stratum = [model[j] for j in range(len(rule)) if rule[j] == rule[i]]
        low, high = min(stratum), max(stratum)
        share = 0.5 if high == low else (model[i] - low) / (high - low)
        out[i] = (1 - beta + 2 * beta * share) if rule[i] else (-alpha + 2 * alpha * share)
    return out


def batch(seed=0, groups=7, n=6):
    rng = np.random.default_rng(seed)
    model = rng.normal(0, 3, (groups, n)) * rng.uniform(0.1, 2, (groups, 1))
    rule = rng.integers(0, 2, (groups, n))
    rule[0], rule[1] = 0, 1  # nothing right, nothing wrong
    rule[2] = [1, 0, 0, 0, 0, 0]  # a stratum of one
    model[3] = 0.7  # nothing to tell them by
    return rule, model


def test_stratify_equals_loops():
    rule, model = batch()
    config = HeroConfig(alpha=0.1, beta=0.2)
    want = [naive_stratify(r, m, 0.1, 0.2) for r, m in zip(rule, model, strict=True)]
    np.testing.assert_allclose(stratify(rule, model, config), want, rtol=1e-12)


def test_stratify_by_hand():
    out = stratify([[0, 0, 0, 1, 1]], [[-2.0, 0.0, 2.0, 5.0, -9.0]], HeroConfig(alpha=0.05, beta=0.1))
    np.testing.assert_allclose(out, [[-0.05, 0.0, 0.05, 1.1, 0.9]])


def test_one_member_and_all_equal_go_to_the_middle():
    np.testing.assert_allclose(stratify([[1, 0, 0]], [[9.0, 4.0, 4.0]], HeroConfig()), [[1.0, 0.0, 0.0]])
    nearly = [[9.0, 4.0, 4.0 + 1e-9]]
    np.testing.assert_allclose(stratify([[1, 0, 0]], nearly, HeroConfig()), [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("alpha,beta", [(0.05, 0.05), (0.1, 0.1), (0.49, 0.5), (0.0, 0.9), (0.9, 0.0)])
def test_every_correct_above_every_incorrect(alpha, beta):
    rng = np.random.default_rng(1)
    rule = rng.integers(0, 2, (200, 8))
    model = rng.normal(0, 5, (200, 8)) - 4 * rule  # a reward model that prefers the wrong ones
    out = hero_rewards(rule, model, Spread(), HeroConfig(alpha=alpha, beta=beta)).rewards
    for rules, values in zip(rule, out, strict=True):
        if 0 < rules.sum() < 8:
            assert values[rules == 1].min() > values[rules == 0].max()


def test_weights_equal_the_formula_and_move_with_the_spread():
    rule, model = batch()
    for config, (low, high, k) in ((HeroConfig(), (0.4, 3, 6)), (HeroConfig(preset="main"), (0.5, 2, 5)),
                                   (HeroConfig(preset="main", w_max=4.0), (0.5, 4, 5))):
        result = hero_rewards(rule, model, Spread(), config)
        sigma = [math.sqrt(sum((x - sum(row) / 6)**2 for x in row) / 6) for row in model]
        mean = sum(sigma) / len(sigma)
        want = [low + (high - low) / (1 + math.exp(-k * (s - mean))) for s in sigma]
        np.testing.assert_allclose(result.weights, want, rtol=1e-5)
        np.testing.assert_allclose(result.rewards, result.weights[:, None] * stratify(rule, model, config), rtol=1e-5)
        assert np.all(np.argsort(result.weights) == np.argsort(sigma))
        assert result.rewards.dtype == np.float32


def test_a_huge_spread_does_not_overflow():
    with np.errstate(all="raise"):
        result = hero_rewards([[0, 1], [0, 1]], [[0.0, 1e6], [0.0, 0.0]], Spread(), HeroConfig())
    np.testing.assert_allclose(result.weights, [3.0, 0.4])


def test_running_mean_over_calls_and_through_a_checkpoint():
    rule, model = batch(groups=9)
    spread, resumed = Spread(), Spread()
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        spread = hero_rewards(rule[part], model[part], spread, HeroConfig()).spread
        resumed = Spread.of(json.loads(json.dumps(resumed.to_dict())))
        resumed = hero_rewards(rule[part], model[part], resumed, HeroConfig()).spread
    assert spread == resumed and spread.count == 9
    np.testing.assert_allclose(spread.mean, model.std(axis=1).mean(), rtol=1e-12)


def test_dropped_samples_have_no_part_in_it():
    rule, model = (values[:4].astype(float) for values in batch())
    keep = np.ones((4, 6), bool)
    keep[1, 2] = keep[3] = False
    model[0, 0] = np.nan  # what the guard leaves for a sample that the reward failed on
    result = hero_rewards(rule, model, Spread(), HeroConfig(), keep)
    assert np.isnan(result.rewards).sum() == 8 and result.spread.count == 3
    assert np.isnan(result.sigma[3]) and result.weights[3] == 1
    np.testing.assert_allclose(result.sigma[:3], [model[0, 1:].std(), np.delete(model[1], 2).std(), model[2].std()],
                               rtol=1e-6)
    alone = hero_rewards(np.delete(rule[1:2], 2, 1), np.delete(model[1:2], 2, 1), Spread(), HeroConfig()).rewards[0]
    np.testing.assert_allclose(np.delete(result.rewards[1], 2) / result.weights[1], alone / (0.4 + 2.6 / 2), rtol=1e-5)


def advantages(rewards, by):
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    return centred / (rewards.std(axis=1, keepdims=True) if by == "group" else centred.std())


def test_group_deviation_cancels_the_weight():
    """The trap that `check_normalisation` is there for."""
    rule, model = batch(seed=3, groups=12)
    rule[:, 0], rule[:, 1] = 0, 1  # each group has both
    result = hero_rewards(rule, model, Spread(), HeroConfig())
    assert np.ptp(result.weights) > 0.5
    weighted, plain = result.rewards.astype(float), stratify(rule, model, HeroConfig())
    np.testing.assert_allclose(advantages(weighted, "group"), advantages(plain, "group"), atol=1e-4)
    difference = np.abs(advantages(weighted, "batch") - advantages(plain, "batch")).max(axis=1)
    assert np.median(difference) > 0.1


def test_normalisation_is_checked():
    check_normalisation("batch")
    check_normalisation("none")
    with pytest.raises(ConfigError, match="cancels HERO's weight.*write batch or none"):
        check_normalisation("group")
    with pytest.raises(ConfigError, match="did you mean batch"):
        check_normalisation("bach")


@pytest.mark.parametrize("settings,text", [
    (dict(alpha=0.5, beta=0.5), "hero.alpha=0.5: must lie below 1 - beta=0.5"),
    (dict(alpha=0.96), "below 1 - beta"), (dict(beta=-0.1), "hero.beta"), (dict(preset="mian"), "did you mean main"),
    (dict(w_min=3.5), "hero.w_min=3.5"), (dict(w_min=0.0), "hero.w_min"), (dict(k=-1.0), "hero.k"),
])
def test_settings_are_checked(settings, text):
    with pytest.raises(ConfigError, match=text):
        HeroConfig(**settings)


def test_input_is_checked():
    with pytest.raises(ConfigError, match=r"hero.rule=-1.0: .* 0 or 1"):
        hero_rewards([[1, -1]], [[0.0, 1.0]], Spread(), HeroConfig())
    with pytest.raises(ConfigError, match=r"\[groups, n\]"):
        hero_rewards([1, 0], [0.0, 1.0], Spread(), HeroConfig())
