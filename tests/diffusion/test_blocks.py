"""Masked diffusion on GPT-NeoX and Gemma-2 blocks: decoders against loops over `models.apply`, a training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.data import Batch
from jaxllm.diffusion import DecodeConfig, MaskedDiffusionConfig, decode_prompts, masked_diffusion_loss
from jaxllm.diffusion.elastic import drift_similarity
from jaxllm.models import empty_cache
from jaxllm.parallel import make_mesh
from jaxllm.training import OptimizerConfig, jit_step, make_optimizer, make_step, place_state
from tests.diffusion.helpers import random_pair
from tests.diffusion.test_decoders import compare, prompts_for
from tests.models.test_blocks import BLOCKS

PROMPT, ANSWER, BLOCK = 7, 8, 4
forward = jax.jit(models.apply, static_argnums=1)


@functools.cache
def random_model(kind):
    config = dataclasses.replace(BLOCKS[kind], causal=False, num_layers=2, mask_id=39, eos_id=38)
    rng = np.random.default_rng({"gpt_neox": 0, "gemma2": 2}[kind])
    sizes = {"kernel": 0.5, "embedding": 0.2}  # beside norms and biases of 0.1: masks shall not all become the same

    def draw(path, leaf):
        size = sizes.get(path[-1].key, 0.1) * (2 if "o" in {key.key for key in path} else 1)
        return (size * rng.normal(size=leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, models.abstract(config)), config


def prompt():
    return np.random.default_rng(0).integers(0, 38, PROMPT).tolist()


def by_loop(params, model, cached):
    """A token a step, the surest of the leftmost open block; `cached`: keys outside it as they were at its start."""
    tokens = np.array([*prompt(), *[model.mask_id] * ANSWER], np.int32)
    n = len(tokens)
    everywhere = np.arange(n, dtype=np.int32)[None]
    for start in range(PROMPT, n, BLOCK):
        block = everywhere[:, start:start + BLOCK]
        cache = forward(params, model, tokens[None], positions=everywhere, cache=empty_cache(model, 1, n)).cache
        for step in range(BLOCK):
            if cached and step:
                out = forward(params, model, tokens[None, start:start + BLOCK], positions=block, cache=cache)
                cache, logits = out.cache, np.asarray(out.logits)[0]
            else:
                logits = np.asarray(forward(params, model, tokens[None]).logits)[0, start:start + BLOCK]
            shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)  # the mask's too, which is not chosen
            shares[:, model.mask_id] = 0
            place = int(np.where(tokens[block[0]] == model.mask_id, shares.max(-1), -1).argmax())
            tokens[start + place] = shares[place].argmax()
    return tokens[PROMPT:].tolist()


def answer(params, model, method, **settings):
    config = DecodeConfig(method=method, gen_length=ANSWER, eos_id=-1, **settings)
    result = decode_prompts(models.unstack(params, model), [prompt()], model=model, config=config, bucket=8)
    return np.asarray(result.tokens)[0].tolist()


# GPT-NeoX by --slow: windows and caps are what decoders have to know of.
@pytest.mark.parametrize("kind, method", [
    pytest.param(kind, method, marks=pytest.mark.slow if kind == "gpt_neox" else ())
    for kind in BLOCKS for method in ("full", "dual")])
def test_block_decoders_are_loops_over_whole_passes_and_cached_ones(kind, method):
    params, model = random_model(kind)
    expected = by_loop(params, model, cached=method == "dual")
    assert answer(params, model, method, block_length=BLOCK, steps=ANSWER) == expected
    if method == "dual":
        assert expected != by_loop(params, model, cached=False)


WINDOWED = {"elastic": ("elastic", dict(window_length=6, threshold=0.5, gamma=0.97, track_num=2)),
            "drift_over_keys": ("elastic", dict(window_length=6, threshold=0.5, gamma=0.97, drift_axis="keys")),
            "refreshed": ("elastic", dict(window_length=6, threshold=0.5, gamma=2.0)),
            "kept": ("elastic", dict(window_length=6, threshold=0.5, gamma=-1.0)),
            "dual": ("dual", dict(block_length=8, threshold=0.5)),
            "prefix": ("prefix", dict(block_length=8, threshold=0.5))}


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name == "elastic" else pytest.mark.slow)
                                  for name in WINDOWED])
def test_sliding_windows_match_the_restatement(tmp_path, name):
    """Tokens, refreshes and similarities of a LLaDA with a window of four in every other layer."""
    reference, params, model = random_pair(tmp_path / "m", "llada", seed=3, vocab=48, sharpness=3.0)
    pair = (dataclasses.replace(reference, windows=(4, 0, 4)), params,
            dataclasses.replace(model, window=4, window_layers=(True, False)))
    method, settings = WINDOWED[name]
    compare(pair, method, prompts_for(model), dict(gen_length=24, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("kind", BLOCKS)
def test_the_other_decoders_run(kind):
    params, model = random_model(kind)
    for method, settings in (("elastic", dict(window_length=4, gamma=0.9)), ("full_recompute", dict(window_length=4)),
                             ("prefix", dict(block_length=4))):
        found = answer(params, model, method, threshold=0.5, **settings)
        assert len(found) == ANSWER and model.mask_id not in found


@pytest.mark.parametrize("axis", ["heads", "keys"])
def test_keys_outside_a_window_are_no_drift(axis):
    weights = np.zeros((1, 2, 3, 10), np.float32)
    for row, first in enumerate((0, 2, 5)):  # rows of two heads, each with a window of 4; the third is not tracked
        weights[:, :, row, first:first + 4] = [[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]
    tracked, keys = jnp.array([[True, True, False]]), jnp.array([[4, 4, 4]])
    np.testing.assert_allclose(drift_similarity(weights, weights, tracked, keys, axis), [1.0], atol=1e-6)
    other = drift_similarity(weights, np.roll(weights, 1, axis=1), tracked, keys, axis)
    assert other[0] < 0.95


@pytest.mark.parametrize("kind", [pytest.param("gpt_neox", marks=pytest.mark.slow), "gemma2"])
def test_masked_diffusion_learns(kind):
    model = random_model(kind)[1]
    tokens = np.tile(np.arange(12), (8, 1)).astype(np.int32)
    batch = Batch(tokens=tokens, positions=tokens, segment_ids=np.ones_like(tokens),
                  loss_weights=np.ones(tokens.shape, np.float32))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=2e-2, warmup_steps=0), 40)
    mesh = make_mesh(devices=jax.devices()[:1])
    state, layout = place_state(model, optimizer, mesh)
    loss = masked_diffusion_loss(model, MaskedDiffusionConfig())
    step = jit_step(make_step(loss, optimizer, seed=0), layout, mesh)
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics["train/loss"]))
    assert np.isfinite(losses).all() and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:3])
