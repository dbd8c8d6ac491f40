"""GPT-NeoX and Gemma-2 blocks: caches, segments, remat, chunks, windows, precision, counts, shardings, bad configs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import LoraConfig, ModelConfig, empty_cache, flash, layers
from jaxllm.models.masks import layer_masks
from jaxllm.models.norms import LayerNorm, RMSNorm
from jaxllm.training.meter import flops_per_token

SHAPE = dict(vocab_size=40, d_model=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, d_mlp=20, max_length=64)
NEOX = ModelConfig(**{**SHAPE, "num_kv_heads": 4, "head_dim": 8}, norm="layer", mlp="gelu", parallel_residual=True,
                   causal=True, qkv_bias=True, o_bias=True, mlp_bias=True, rotary_fraction=0.5, family="gpt_neox")
GEMMA = ModelConfig(**SHAPE, norm="rms_plus_one", mlp="geglu", post_norms=True, scale_embeddings=True, causal=True,
                    tie_embeddings=True, query_pre_attn_scalar=5, attention_cap=4.0, logit_cap=3.0, window=3,
                    window_layers=(True, False), family="gemma2")
BLOCKS = {"gpt_neox": NEOX, "gemma2": GEMMA}
forward = jax.jit(models.apply, static_argnums=1)


@functools.cache
def random_model(kind):
    config = BLOCKS[kind]
    rng = np.random.default_rng(0)  # norms and biases at their start would hide a mix-up
    return jax.tree.map(lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
                        models.abstract(config)), config


def tokens(rows=2, length=11, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("kind", BLOCKS)
def test_cached_decoding_gives_the_logits_of_one_pass(kind):
    """Slots are used in no order, so a window cannot be read off them."""
    params, config = random_model(kind)
    whole = forward(params, config, tokens()[:, :10]).logits
    cache, parts = empty_cache(config, 2, 16), []
    places = np.random.default_rng(1).permutation(16)[:10].astype(np.int32)
    for start, stop in ((0, 5), (5, 10)):
        positions = np.broadcast_to(np.arange(start, stop, dtype=np.int32), (2, stop - start))
        out = forward(params, config, tokens()[:, start:stop], positions=positions, cache=cache,
                      slots=places[positions])
        cache = out.cache
        parts.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize("kind", BLOCKS)
def test_packed_documents_do_not_see_each_other(kind):
    params, config = random_model(kind)
    a, b = tokens(1, 5), tokens(1, 5, seed=3)
    packed = np.concatenate([a, b, np.zeros((1, 2), np.int32)], axis=1)
    segments = np.array([[1] * 5 + [2] * 5 + [0] * 2], np.int32)
    positions = np.array([[*range(5), *range(5), 0, 0]], np.int32)
    logits = forward(params, config, packed, positions=positions, segment_ids=segments).logits
    for part, alone in ((logits[:, :5], a), (logits[:, 5:10], b)):
        np.testing.assert_allclose(part, forward(params, config, alone).logits, atol=1e-5)
    assert np.isfinite(np.asarray(logits)).all()


@pytest.mark.parametrize("causal", [pytest.param(True, marks=pytest.mark.slow), False])
def test_windows_show_the_keys_they_should(causal):
    """One layer, so that nothing reaches a row but by its own window."""
    config = dataclasses.replace(GEMMA, num_layers=1, causal=causal)
    params = {**random_model("gemma2")[0]}
    params["layers"] = jax.tree.map(lambda leaf: leaf[:1], params["layers"])

    def row(embedded):
        mask = models.api.attention_mask(config, jnp.arange(11)[None], jnp.arange(11)[None])
        layer = jax.tree.map(lambda leaf: leaf[0], params["layers"])
        q, k, v = models.api.project(layer, config, embedded, models.api.tables(config, jnp.arange(11)[None]))
        (seen,) = layer_masks(config, mask, jnp.arange(11)[None], jnp.arange(11)[None])
        return models.api.finish(layer, config, embedded, layers.attend(q, k, v, seen, cap=config.attention_cap))[0, 5]

    embedded = models.api.embed(params, config, tokens(1))
    found = jnp.any(jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(row(x)))))(embedded)[0] != 0, axis=1)
    assert np.nonzero(np.asarray(found))[0].tolist() == ([3, 4, 5] if causal else [2, 3, 4, 5, 6, 7, 8])
    logits = models.api.logits(params, config, row(embedded)[None, None])
    np.testing.assert_allclose(forward(params, config, tokens(1)).logits[0, 5], logits[0, 0], atol=1e-5)


@pytest.mark.parametrize("kind, remat, chunk", [
    pytest.param("gpt_neox", "none", 4, marks=pytest.mark.slow), ("gemma2", "dots", 4)])
def test_remat_and_chunks_change_no_gradient(monkeypatch, kind, remat, chunk):
    params, config = random_model(kind)

    def grads(config):
        return jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(models.apply(p, config, tokens()).logits))))(params)

    expected = grads(config)
    monkeypatch.setattr(layers, "QUERY_CHUNK", chunk)
    monkeypatch.setattr(layers, "CAUSAL_CHUNK", chunk)
    found = grads(dataclasses.replace(config, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_norms_by_hand():
    x = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32) * 5 + 2
    scale, bias = np.linspace(-1, 1, 8, dtype=np.float32), np.linspace(2, 3, 8, dtype=np.float32)
    wide = x.astype(np.float64)
    found = LayerNorm(8, "norm", 1e-5).apply({"params": {"scale": scale, "bias": bias}}, x)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(found, expected, atol=1e-5)
    norm = RMSNorm(8, "norm", 1e-6, plus_one=True)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale)
    np.testing.assert_allclose(norm.apply({"params": {"scale": scale}}, x), expected, atol=1e-5)
    # Rounded once, at the end.
    half = norm.apply({"params": {"scale": scale.astype(jnp.bfloat16)}}, x.astype(jnp.bfloat16))
    wide = x.astype(jnp.bfloat16).astype(np.float32)
    factor = 1 + scale.astype(jnp.bfloat16).astype(np.float32)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * factor
    np.testing.assert_array_equal(half, exact.astype(jnp.bfloat16))


def test_caps_and_embeddings_in_half_precision():
    params, config = random_model("gemma2")
    half = dataclasses.replace(config, activation_dtype="bfloat16", head_dtype="bfloat16")
    embedded = models.api.embed(params, half, tokens())
    table = params["embed"]["embedding"][tokens()].astype(jnp.bfloat16)
    np.testing.assert_array_equal(embedded, table * jnp.asarray(24**0.5, jnp.bfloat16))
    out = forward(params, half, tokens())
    assert out.logits.dtype == jnp.float32 and np.abs(out.logits).max() < config.logit_cap
    # float32 logits before the cap: none of them coincide as bfloat16 ones would.
    assert len(np.unique(np.asarray(out.logits))) > 0.9 * out.logits.size
    assert np.abs(np.asarray(out.logits) - np.asarray(forward(params, config, tokens()).logits)).max() < 0.3


def test_which_kernel():
    half = dataclasses.replace(NEOX, activation_dtype="bfloat16")
    assert flash.kernel(half, 1024, "tpu") == "splash"
    assert flash.kernel(dataclasses.replace(half, window=4), 1024, "tpu") == "plain"
    assert flash.kernel(dataclasses.replace(half, window=4, attention="splash"), 1024) == "plain"
    assert flash.kernel(dataclasses.replace(half, window=4, attention="cudnn"), 1024) == "cudnn"  # takes any mask
    for kind in ("auto", "cudnn", "splash"):
        assert flash.kernel(dataclasses.replace(half, attention_cap=50.0, attention=kind), 1024, "tpu") == "plain"


VARIANTS = [NEOX, GEMMA, dataclasses.replace(GEMMA, mlp_bias=True, o_bias=True, norm="layer", qk_norm=True),
            dataclasses.replace(NEOX, mlp="gelu_tanh", mlp_bias=False, tie_embeddings=True, post_norms=True)]


@pytest.mark.parametrize("config", VARIANTS)
def test_counts_are_those_of_the_tree(config):
    shapes = models.abstract(config)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == config.num_parameters == config.active_parameters
    kernels = [part["kernel"] for part in shapes["layers"].values() if "kernel" in part]
    assert config.layer_weights_per_token == sum(leaf.size for leaf in kernels) // config.num_layers
    axes = models.logical_axes(config)
    assert all(len(a) == len(leaf.shape) for a, leaf in zip(
        jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, tuple)), jax.tree.leaves(shapes), strict=True))


def test_flops_count_a_window_as_far_as_it_reaches():
    weights = GEMMA.num_parameters  # tied: the head's products count, the look-up costs nothing
    assert flops_per_token(GEMMA, 64) == 6 * weights + 12 * 4 * 6 * (3 + 64 + 3)
    assert flops_per_token(GEMMA, 2) == 6 * weights + 12 * 4 * 6 * (2 + 2 + 2)
    assert dataclasses.replace(GEMMA, causal=False).keys_met(64) == 7 + 64 + 7
    assert NEOX.keys_met(64) == 3 * 64


def test_layers_and_their_windows():
    assert GEMMA.windowed == (True, False, True)
    assert dataclasses.replace(GEMMA, window_layers=()).windowed == (True,) * 3
    assert NEOX.windowed == (False,) * 3


@pytest.mark.parametrize("base, change, message", [
    (NEOX, dict(rotary_fraction=0.4), "rotary_fraction=0.4: must give an even width of 2..head_dim=8, not 3"),
    (NEOX, dict(rotary_fraction=1.5), "rotary_fraction"), (GEMMA, dict(window=0), "window_layers=.*needs a window"),
    (GEMMA, dict(window_layers=(False,)), "window_layers"), (GEMMA, dict(attention_cap=-1.0), "attention_cap"),
    (GEMMA, dict(query_pre_attn_scalar=0), "query_pre_attn_scalar"),
    (NEOX, dict(lora=LoraConfig(targets=("gate",))), "lora.targets='gate': an MLP of 'gelu' has no gate"),
    (NEOX, dict(num_experts=4, experts_per_token=2, d_expert=8), "mlp='gelu': experts are swiglu")])
def test_impossible_blocks(base, change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(base, **change)
