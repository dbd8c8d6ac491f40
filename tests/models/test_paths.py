"""Layers left out and repeated, against a Python loop over layers, dense and MoE, causal and not, cached and not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import api, empty_cache, follow, unstack
from tests.models.test_transformer import random_model

L = 4
PATHS = [(0, 2, 3), (1, 1, 3), (0, 0, 2), (2, 2, 3)]  # of one length, hence one program


def model_of(kind, **changes):
    params, config = random_model(kind, num_layers=L, **changes)
    return params, config


@functools.partial(jax.jit, static_argnames="config")
def run(params, config, tokens, path=None):
    return models.apply(params, config, tokens, path=path).logits


project = jax.jit(api.project, static_argnames="config")
finish = jax.jit(api.finish, static_argnames="config")


def tokens_of(config, b=2, t=7):
    return jax.random.randint(jax.random.key(3), (b, t), 0, config.vocab_size)


def naive(params, config, tokens, path):
    """A Python loop over one-layer models: each is run by the transformer itself, from the embedding of the last."""
    one = dataclasses.replace(config, num_layers=1, window=0, window_layers=())
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    x, tables = api.embed(params, config, tokens), api.tables(config, positions)
    t = tokens.shape[1]
    distance = np.arange(t)[:, None] - np.arange(t)[None]
    for i in path:
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        q, k, v = (np.asarray(a, np.float64) for a in project(layer, one, x, tables))
        group = q.shape[1] // k.shape[1]
        scores = np.einsum("bhtk,bhsk->bhts", q, np.repeat(k, group, 1)) / np.sqrt(q.shape[-1])
        seen = distance >= 0 if config.causal else np.ones((t, t), bool)
        if config.windowed[i]:
            seen = seen & (distance < config.window if config.causal else np.abs(distance) <= config.window)
        scores = np.where(seen, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("bhts,bhsk->bthk", weights, np.repeat(v, group, 1))
        x = finish(layer, one, x, jnp.asarray(attended, jnp.float32))
    return np.asarray(api.logits(params, config, x))


@pytest.mark.parametrize("kind", ["llama", "llada_moe"])
def test_a_path_is_a_loop_over_its_layers(kind):
    params, config = model_of(kind)
    tokens, unstacked = tokens_of(config), unstack(params, config)
    for path in PATHS:
        want = naive(params, config, tokens, path)
        np.testing.assert_allclose(run(params, config, tokens, jnp.array(path)), want, atol=1e-5, rtol=1e-5)
        some, shorter = follow(params, config, path)
        np.testing.assert_allclose(run(some, shorter, tokens), want, atol=1e-5, rtol=1e-5)
        same = follow(unstacked, config, path)[0]["layers"]
        assert all(layer is unstacked["layers"][i] for layer, i in zip(same, path, strict=True))


@pytest.mark.parametrize("kind", ["llama", "llada_moe"])
def test_the_identity_is_the_plain_model_bit_for_bit(kind):
    params, config = model_of(kind)
    tokens = tokens_of(config)
    plain = run(params, config, tokens)
    np.testing.assert_array_equal(run(params, config, tokens, jnp.arange(L)), plain)
    np.testing.assert_array_equal(run(*follow(params, config, range(L)), tokens), plain)


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def test_a_cache_holds_keys_of_each_execution(kind):
    params, config = model_of(kind)
    tokens, path = tokens_of(config), (0, 1, 1, 3, 3)
    whole = run(params, config, tokens, jnp.array(path))
    cache = empty_cache(config, 2, 8, layers=len(path))
    step = jax.jit(lambda tokens, positions, cache: models.apply(
        params, config, tokens, positions=positions, cache=cache, path=path))
    got = []
    for start, stop in ((0, 5), (5, 6), (6, 7)):
        positions = jnp.broadcast_to(jnp.arange(start, stop), (2, stop - start))
        out = step(tokens[:, start:stop], positions, cache)
        cache = out.cache
        got.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(got, 1), whole, atol=1e-5, rtol=1e-5)


def test_windows_go_with_their_layers():
    params, config = model_of("llama", window=3, window_layers=(True, False))
    tokens = tokens_of(config)
    for path in ((1, 3, 3), (0, 1, 2), (0, 0, 2)):
        want = naive(params, config, tokens, path)
        np.testing.assert_allclose(run(params, config, tokens, jnp.array(path)), want, atol=1e-5, rtol=1e-5)
        some, shorter = follow(params, config, path)
        np.testing.assert_allclose(run(some, shorter, tokens), want, atol=1e-5, rtol=1e-5)


def test_paths_of_a_length_share_one_program():
    params, config = model_of("llama")
    layers, tokens = unstack(params, config), tokens_of(config)
    traces = []

    @jax.jit
    def counted(params, path):
        traces.append(1)
        return models.apply(params, config, tokens, path=path).logits

    for path in ((0, 1, 2), (1, 2, 3), (0, 0, 3)):
        counted(params, jnp.array(path))
    assert len(traces) == 1

    @jax.jit
    def unrolled(params):
        traces.append(1)
        return params["layers"][0]["q"]["kernel"].sum()

    for path in ((0, 1, 2), (1, 2, 3), (0, 0, 3)):
        unrolled(follow(layers, config, path)[0])
    assert len(traces) == 2


def test_a_wrong_path_is_refused():
    params, config = model_of("llama")
    for path, message in (((), "holds no layer"), ((0, 4), r"path\[1\]=4: the model's layers are 0\.\.3"),
                          ((-1,), r"path\[0\]=-1")):
        with pytest.raises(ConfigError, match=message):
            follow(params, config, path)
        with pytest.raises(ConfigError, match=message):
            models.apply(params, config, tokens_of(config), path=path)
