"""Rows do not see each other, devices do not change tokens, and one shape compiles once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.diffusion import METHODS, DecodeConfig, decode, decode_prompts, pad_prompts
from jaxllm.parallel import batch_sharding, make_mesh, shardings
from tests.diffusion.helpers import random_pair

LENGTHS = (3, 7, 12, 15, 20, 24, 29, 31)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {family: random_pair(root / family, family, seed=11, vocab=64, sharpness=3.0)
            for family in ("llada", "dream")}


def config_for(method, **changes):
    # EOS at a common token makes rows stop at different steps.
    return DecodeConfig(method=method, gen_length=24, block_length=8, window_length=6, gamma=0.97, eos_id=5, **changes)


def prompts(model):
    rng = np.random.default_rng(1)
    return [rng.integers(0, model.vocab_size - 2, n).tolist() for n in LENGTHS]


@pytest.mark.parametrize("method, family", [
    pytest.param(method, family, marks=() if (method, family) in (("full", "dream"), ("prefix", "dream"),
                                                                  ("elastic", "llada")) else pytest.mark.slow)
    for method in METHODS for family in ("llada", "dream")])
def test_batch_of_8_equals_8_single_decodes(pairs, method, family):
    _, params, model = pairs[family]
    batch = prompts(model)
    config = config_for(method, threshold=0.5)
    keys = jax.random.split(jax.random.key(0), len(batch))
    together = decode_prompts(params, batch, model=model, config=config, key=keys, bucket=32)
    steps = set()
    for row, prompt in enumerate(batch):
        alone = decode_prompts(params, [prompt], model=model, config=config, key=keys[row:row + 1], bucket=32)
        np.testing.assert_array_equal(together.tokens[row], alone.tokens[0])
        n = int(alone.record.steps[0])
        assert int(together.record.steps[row]) == n
        for name in ("committed", "rows", "refresh_from"):
            np.testing.assert_array_equal(getattr(together.record, name)[:n, row], getattr(alone.record, name)[:n, 0])
        steps.add(n)
    assert len(steps) > 1  # else rows never were in different phases


def test_sampling_noise_of_a_row_is_its_own(pairs):
    _, params, model = pairs["llada"]
    batch = prompts(model)[:3]
    keys = jax.random.split(jax.random.key(3), 3)
    config = config_for("elastic", threshold=0.5, temperature=0.7)
    together = decode_prompts(params, batch, model=model, config=config, key=keys, bucket=32)
    alone = decode_prompts(params, batch[2:], model=model, config=config, key=keys[2:], bucket=32)
    np.testing.assert_array_equal(together.tokens[2], alone.tokens[0])


def always(*names):
    """Every method takes long to compile: these always, the others by --slow."""
    return [method if method in names else pytest.param(method, marks=pytest.mark.slow) for method in METHODS]


@pytest.mark.parametrize("method", always("full"))
def test_8_devices_give_the_tokens_of_one(pairs, method):
    _, params, model = pairs["llada"]
    config = config_for(method, threshold=0.5)
    prompt, lengths = pad_prompts(prompts(model), bucket=32)
    expected = decode(params, jnp.asarray(prompt), jnp.asarray(lengths), jax.random.key(0), model=model, config=config)
    for sizes in ({"data": 8}, {"data": 2, "tensor": 4}, {"data": 2, "fsdp": 2, "tensor": 2}):
        mesh = make_mesh(**sizes)
        layout = shardings(models.logical_axes(model), mesh, shapes=models.abstract(model))
        rows = batch_sharding(mesh)
        result = decode(jax.device_put(params, layout), jax.device_put(prompt, rows), jax.device_put(lengths, rows),
                        jax.random.key(0), model=model, config=config)
        np.testing.assert_array_equal(result.tokens, expected.tokens)
        np.testing.assert_array_equal(result.record.steps, expected.record.steps)


@pytest.mark.parametrize("method", always("full", "elastic"))
def test_compiles_once_per_batch_bucket_and_length(pairs, method):
    _, params, model = pairs["llada"]
    config = DecodeConfig(method=method, gen_length=16, block_length=8, window_length=5, eos_id=-1)
    before = decode._cache_size()
    for length in (3, 8, 16):  # one bucket
        decode_prompts(params, [[1] * length] * 2, model=model, config=config, bucket=16)
    assert decode._cache_size() - before == 1
    decode_prompts(params, [[1] * 17] * 2, model=model, config=config, bucket=16)
    assert decode._cache_size() - before == 2
    decode_prompts(params, [[1] * 3], model=model, config=config, bucket=16)
    assert decode._cache_size() - before == 3
    longer = dataclasses.replace(config, gen_length=24)
    for length in (3, 8):
        decode_prompts(params, [[1] * length], model=model, config=longer, bucket=16)
    assert decode._cache_size() - before == 4
