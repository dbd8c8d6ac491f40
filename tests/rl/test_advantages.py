"""Advantages and token weights against loops written from the formulas; groups that don't count."""

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.rl import LossConfig, assemble, group_advantages, group_report, token_weights

# Ragged groups in any order: prompt 7 has 3 samples, 2 has 4, 5 and 9 have one reward only, -1 is padding.
GROUP = np.array([7, 2, 5, 7, -1, 2, 2, 5, 7, 2, 9, -1])
REWARDS = np.array([1.0, -1, 0.1, -1, 9, -1, 1, 0.1, 0.5, -1, 1, -9], np.float32)


def naive(rewards, group, normalization, eps, drop):
    out, kept = {}, {}
    for prompt in set(group.tolist()) - {-1}:
        rows = [i for i in range(len(group)) if group[i] == prompt]
        values = [float(rewards[i]) for i in rows]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5 if max(values) > min(values) else 0.0
        for i, v in zip(rows, values, strict=True):
            kept[i] = max(values) > min(values) or not drop
            if kept[i]:
                out[i] = (v - mean) / (spread + eps if normalization == "group" else 1)
    if normalization == "batch":
        values = [out[i] for i in out]
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
        out = {i: v / (spread + eps) for i, v in out.items()}
    return [out.get(i, 0.0) for i in range(len(group))], [kept.get(i, False) for i in range(len(group))]


@pytest.mark.parametrize("drop", [True, False])
@pytest.mark.parametrize("normalization", ["none", "group", "batch"])
def test_advantages_are_the_naive_ones(normalization, drop):
    found, keep = group_advantages(REWARDS, GROUP, normalization, 1e-2, drop)
    expected, kept = naive(REWARDS, GROUP, normalization, 1e-2, drop)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(keep, kept)
    assert found.dtype == np.float32 and keep.dtype == bool


def test_padding_and_groups_of_one_reward_change_nothing_of_the_others():
    real = np.isin(GROUP, (7, 2))
    found, keep = group_advantages(REWARDS, GROUP)
    alone, _ = group_advantages(REWARDS[real], GROUP[real])
    np.testing.assert_array_equal(keep, real)
    np.testing.assert_allclose(found[real], alone, rtol=1e-6)


@pytest.mark.parametrize("normalization", ["none", "group", "batch"])
@pytest.mark.parametrize("group", [[0, 0, 1, 1], [0, 1, 2, 3], [-1, -1, -1, -1]])
def test_nothing_to_learn_gives_zeros(normalization, group):
    found, keep = group_advantages(np.full(4, 0.1), np.array(group), normalization)
    np.testing.assert_array_equal(found, np.zeros(4))
    assert not keep.any()


def test_equal_rewards_have_advantage_zero_exactly():
    """Their mean may be off in the last bit: 0.1 three times adds up to 0.30000000000000004."""
    found, keep = group_advantages(np.full(3, 0.1), np.zeros(3, int), "group", 1e-30, drop_zero_variance=False)
    np.testing.assert_array_equal(found, np.zeros(3))
    assert keep.all()


def mask_of(seed=0, length=9):
    mask = (np.random.default_rng(seed).random((len(GROUP), length)) < 0.6).astype(np.float32)
    mask[:, 0] = 0
    return mask


@pytest.mark.parametrize("aggregation", ["token", "sample", "prompt"])
def test_weights_sum_to_one_for_what_counts_as_one(aggregation):
    mask = mask_of()
    mask[3] = 0  # a sample of prompt 7 without a token
    _, keep = group_advantages(REWARDS, GROUP)
    weights = token_weights(mask, GROUP, keep, aggregation)
    assert (weights[~keep] == 0).all() and (weights[mask == 0] == 0).all()
    if aggregation == "token":
        np.testing.assert_array_equal(weights, mask * keep[:, None])
    elif aggregation == "sample":
        np.testing.assert_allclose(weights.sum(1), keep & mask.any(1), rtol=1e-6)
    else:
        for prompt in (7, 2):
            assert weights[GROUP == prompt].sum() == pytest.approx(1, rel=1e-6)
            assert len(set(weights[GROUP == prompt][mask[GROUP == prompt] > 0])) == 1
        assert weights.sum() == pytest.approx(2, rel=1e-6)


def test_a_first_token_weighs_nothing():
    weights = token_weights(np.ones((2, 4)), np.array([0, 0]), np.ones(2, bool), "sample")
    np.testing.assert_allclose(weights, [[0, 1 / 3, 1 / 3, 1 / 3]] * 2, rtol=1e-6)


def test_report():
    _, keep = group_advantages(REWARDS, GROUP)
    report = group_report(REWARDS, GROUP, keep)
    assert report == {"rl/reward": pytest.approx(REWARDS[GROUP >= 0].mean()), "rl/kept_prompts": 2,
                      "rl/kept_share": 0.5}


def test_assembled_batch():
    mask = mask_of()
    rng = np.random.default_rng(1)
    lengths = np.where(GROUP < 0, 0, 8)
    args = dict(tokens=rng.integers(2, 24, mask.shape), lengths=lengths, loss_mask=mask,
                sampler_logprobs=rng.normal(size=mask.shape), versions=np.full(mask.shape, 3), rewards=REWARDS,
                group=GROUP)
    batch, report = assemble(LossConfig(), **args, version=5)
    assert report["rl/kept_prompts"] == 2
    assert batch.tokens.dtype == np.int32 and batch.weights.dtype == np.float32
    counted = mask.copy()
    counted[:, 8:] = 0
    counted[GROUP < 0] = 0
    np.testing.assert_array_equal(batch.loss_mask, counted)
    np.testing.assert_array_equal(batch.staleness, 2 * counted)
    np.testing.assert_array_equal(batch.sampler_logprobs[counted == 0], 0)
    np.testing.assert_array_equal(batch.segment_ids.sum(1), lengths)
    np.testing.assert_array_equal(batch.advantages[:, 3], group_advantages(REWARDS, GROUP)[0])
    assert batch.weights.sum() == pytest.approx(2, rel=1e-6)
    with pytest.raises(ConfigError, match="rewards=.*one for each row"):
        assemble(LossConfig(), **{**args, "rewards": REWARDS[:-1]}, version=5)
    with pytest.raises(ConfigError, match="rewards=.*must be finite"):
        assemble(LossConfig(), **{**args, "rewards": np.where(GROUP == 2, np.nan, REWARDS)}, version=5)
    with pytest.raises(ConfigError, match="versions=.*as tokens"):
        assemble(LossConfig(), **{**args, "versions": lengths}, version=5)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="normalization='batches': did you mean batch"):
        group_advantages(REWARDS, GROUP, "batches")
    with pytest.raises(ConfigError, match="aggregation='promt': did you mean prompt"):
        token_weights(mask_of(), GROUP, GROUP >= 0, "promt")
