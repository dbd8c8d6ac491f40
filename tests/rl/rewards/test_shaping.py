"""Length shaping and scales against values worked out by hand."""

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.rl.rewards import length_penalty, overlong, rescale


def test_overlong_with_grpo_tcr_numbers():
    lengths = [0, 16384, 16385, 18432, 20480, 22528]
    got = overlong([1, -1, 1, 1, -1, 1], lengths, max_response=20480, buffer=4096)
    np.testing.assert_allclose(got, [1, -1, 1 - 1 / 4096, 0.5, -2, -0.5], rtol=1e-6)
    assert got.dtype == np.float32
    np.testing.assert_allclose(overlong([0.0], [18432], max_response=20480, buffer=4096, factor=0.5), [-0.25])


def test_overlong_equals_loops():
    rng = np.random.default_rng(0)
    lengths, rewards = rng.integers(0, 120, 50), rng.normal(size=50)
    want = []
    for length, reward in zip(lengths, rewards, strict=True):
        exceed = length - (100 - 30)
        want.append(reward + min(-exceed / 30 * 2.0, 0))
    np.testing.assert_allclose(overlong(rewards, lengths, max_response=100, buffer=30, factor=2.0), want, rtol=1e-5,
                               atol=1e-6)


def test_length_penalty_only_on_correct_ones():
    lengths = [100, 8, 9, 10, 12, 8, 12]
    got = length_penalty([1, 1, 1, 1, 1, -1, -1], lengths, [True] * 5 + [False] * 2, max_length=10, cache=2)
    np.testing.assert_allclose(got, [0, 1, 0.5, 0, 0, -1, -1])


def test_rescale():
    np.testing.assert_allclose(rescale([0, 1, 0.25]), [-1, 1, -0.5])
    np.testing.assert_allclose(rescale([0, 1], wrong=0.0, right=10.0), [0, 10])


def test_dropped_samples_stay_dropped():
    for got in (overlong([np.nan], [9], max_response=10, buffer=5), rescale([np.nan]),
                length_penalty([np.nan], [9], [True], max_length=10, cache=5)):
        assert np.isnan(got).all()


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="overlong.buffer=30"):
        overlong([1], [1], max_response=20, buffer=30)
    with pytest.raises(ConfigError, match="overlong.factor"):
        overlong([1], [1], max_response=20, buffer=10, factor=-1.0)
    with pytest.raises(ConfigError, match="length_penalty.cache"):
        length_penalty([1], [1], [True], cache=0)
    with pytest.raises(ConfigError, match="rescale.right"):
        rescale([1], wrong=1.0)
