"""The bench of expert dispatch: both sides timed in turn, every second kept, the two results equal."""

import statistics

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.bench.moe import _inputs, _loss, moe_dispatch
from jaxllm.config import ConfigError


def test_raw_seconds_and_ratios():
    result = moe_dispatch(tokens=24, num_experts=4, per_token=2, d_model=8, d_expert=6, repeats=3)
    for name, ratio in (("forward", "moe_blocks_vs_dense"), ("gradient", "moe_blocks_vs_dense_grad")):
        seconds = result[name]
        assert {side: len(values) for side, values in seconds.items()} == {"dense": 3, "blocks": 3}
        assert result[ratio] == statistics.median(np.divide(seconds["dense"], seconds["blocks"]).tolist())
    assert result["settings"]["tokens"] == 24 and result["environment"]["backend"] == "cpu"


def test_both_sides_compute_the_same():
    args = _inputs(24, 4, 2, 8, 6, jnp.dtype("float32"))
    sides = [jax.grad(lambda *a, side=side: _loss(side, *a), argnums=(0, 2, 3))(*args) for side in ("dense", "blocks")]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *sides)
    assert np.abs(np.asarray(sides[0][0])).max() > 1e-4


def test_repeats_are_checked():
    with pytest.raises(ConfigError, match="repeats=0"):
        moe_dispatch(repeats=0)
