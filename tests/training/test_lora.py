"""Adapters against naive numpy, and what a step may move."""

import jax
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.config import ConfigError, load
from jaxllm.models.presets import preset
from jaxllm.training.lora import INPUT_DIMS, LoraConfig, adapters_only, init_lora, lora_axes, merge, with_lora

MODEL = preset("llada-tiny", d_model=16, num_heads=2, num_kv_heads=1, head_dim=6, d_mlp=20, num_layers=3,
               vocab_size=32, mask_id=31, eos_id=30, pad_id=30)
CONFIG = LoraConfig(rank=3, alpha=5.0, targets=tuple(INPUT_DIMS))


def trees(seed=0):
    base = models.init(MODEL, jax.random.key(seed))
    lora = init_lora(CONFIG, MODEL, jax.random.key(seed + 1))
    return base, lora


def test_fresh_adapters_change_nothing():
    base, lora = trees()
    for path, leaf in jax.tree_util.tree_leaves_with_path(merge({"base": base, "lora": lora}, CONFIG)):
        expected = base
        for step in path:
            expected = expected[step.key]
        np.testing.assert_array_equal(leaf, expected)


def test_merged_kernels_are_the_naive_sum():
    base, lora = trees()
    rng = np.random.default_rng(0)
    lora = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), lora)
    merged = merge({"base": base, "lora": lora}, CONFIG)["layers"]
    for name in INPUT_DIMS:
        kernel, a, b = np.asarray(base["layers"][name]["kernel"]), lora[name]["a"], lora[name]["b"]
        n = INPUT_DIMS[name]
        expected = kernel.astype(np.float64).copy()
        for layer in range(3):
            for i in np.ndindex(*kernel.shape[1:1 + n]):
                for o in np.ndindex(*kernel.shape[1 + n:]):
                    expected[(layer, *i, *o)] += 5.0 / 3 * sum(a[(layer, *i, r)] * b[(layer, r, *o)] for r in range(3))
        np.testing.assert_allclose(merged[name]["kernel"], expected, rtol=1e-4, atol=1e-5)


def test_a_step_moves_adapters_only():
    base, lora = trees()
    params = {"base": base, "lora": lora}

    def loss(params, tokens, key):
        return models.apply(params, MODEL, tokens).logits.std()

    optimizer = adapters_only(optax.adam(1e-2))
    state = optimizer.init(params)
    tokens = jax.random.randint(jax.random.key(3), (2, 7), 0, 30)
    grads = jax.grad(with_lora(loss, CONFIG))(params, tokens, jax.random.key(0))
    assert all(not np.any(g) for g in jax.tree.leaves(grads["base"]))
    updates, state = optimizer.update(grads, state, params)
    after = optax.apply_updates(params, updates)
    jax.tree.map(np.testing.assert_array_equal, after["base"], base)
    assert all(np.any(after["lora"][n]["b"] != lora[n]["b"]) for n in CONFIG.targets)
    moments = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert moments < 2 * sum(leaf.size for leaf in jax.tree.leaves(lora)) + 10


def test_axes_fit_shapes():
    _, lora = trees()
    axes = lora_axes(CONFIG, MODEL)
    for name in CONFIG.targets:
        assert len(axes[name]["a"]) == lora[name]["a"].ndim
        assert len(axes[name]["b"]) == lora[name]["b"].ndim


@pytest.mark.parametrize(("override", "message"), [
    ("rank=0", "lora.rank=0"), ("alpha=0", "lora.alpha=0"), ("targets=[query]", "lora.targets='query'"),
    ("targets=[]", "at least one of")])
def test_bad_settings(override, message):
    with pytest.raises(ConfigError, match=message):
        load(LoraConfig, None, [override])
