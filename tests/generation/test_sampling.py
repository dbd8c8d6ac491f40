"""Draws against the distribution they should follow, worked out by numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.generation.sampling import Rows, Sampling, sample


def rows(count, s):
    return Rows(*(jnp.full(count, value) for value in (float(s.temperature), int(s.top_k), float(s.top_p),
                                                       float(s.min_p))))


def allowed(logits, s):
    """Probabilities after the cuts, token by token."""
    p = np.exp(logits / s.temperature - np.max(logits / s.temperature))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = set(order[:s.top_k].tolist() if s.top_k else order.tolist())
    mass, total, kept = sum(p[i] for i in keep), 0.0, set()
    for i in order:
        if i not in keep:
            continue
        if total / mass >= s.top_p:
            break
        kept.add(int(i))
        total += p[i]
    kept = {i for i in kept if p[i] >= s.min_p * p.max()}
    return np.array([p[i] if i in kept else 0.0 for i in range(len(p))]) / sum(p[i] for i in kept)


@pytest.mark.parametrize("s", [
    Sampling(), pytest.param(Sampling(temperature=0.6), marks=pytest.mark.slow),
    pytest.param(Sampling(top_k=5), marks=pytest.mark.slow), Sampling(top_p=0.7),
    pytest.param(Sampling(min_p=0.2), marks=pytest.mark.slow),
    Sampling(temperature=1.5, top_k=40, top_p=0.8, min_p=0.01)], ids=str)
def test_frequencies(s):
    rng, n = np.random.default_rng(0), 20_000
    logits = rng.normal(0, 2, 600).astype(np.float32)  # more than two blocks
    tokens, logprobs = jax.jit(sample)(jnp.broadcast_to(jnp.asarray(logits), (n, 600)),
                                       jax.random.split(jax.random.key(1), n), rows(n, s))
    expected = allowed(logits, s)
    counts = np.bincount(np.asarray(tokens), minlength=600)
    assert counts[expected == 0].sum() == 0
    error = np.abs(counts / n - expected)
    assert np.all(error <= 5 * np.sqrt(expected / n) + 1e-3)
    scaled = logits / s.temperature
    table = scaled - np.log(np.exp(scaled - scaled.max()).sum()) - scaled.max()
    np.testing.assert_allclose(logprobs, table[np.asarray(tokens)], atol=1e-4)


def test_greedy_and_mixed_rows():
    logits = jnp.asarray(np.random.default_rng(2).normal(size=(4, 37)), jnp.float32)
    r = Rows(jnp.asarray([0.0, 1.0, 0.0, 1.0]), jnp.asarray([0, 1, 3, 0]), jnp.asarray([1.0, 1.0, 0.5, 1e-6]),
             jnp.zeros(4))
    tokens, logprobs = sample(logits, jax.random.split(jax.random.key(0), 4), r)
    np.testing.assert_array_equal(tokens, np.asarray(logits).argmax(-1))  # top-1 and a tiny top-p are greedy too
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits).max(-1), atol=1e-6)


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"min_p": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("vocabulary", [5, 256, 600])
def test_greedy_takes_the_first_of_the_likeliest(vocabulary):
    """Few different values, so that many tokens share the highest, within a block and across blocks."""
    logits = np.random.default_rng(1).integers(-3, 0, (64, vocabulary)).astype(np.float32)
    tokens, logprobs = sample(jnp.asarray(logits), jax.random.split(jax.random.key(0), 64),
                              rows(64, Sampling(temperature=0)))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    expected = logits.max(-1) - np.log(np.exp(logits.astype(np.float64)).sum(-1))
    np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_barred_tokens_are_not_drawn_and_the_log_probability_is_the_whole_distributions():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2]] * 4000))
    keys = jax.random.split(jax.random.key(3), 4000)
    barred = jnp.broadcast_to(jnp.array([True, False, False]), logits.shape)
    for temperature in (0.0, 1.0):
        rows = Rows(temperature=jnp.full(4000, temperature), top_k=jnp.zeros(4000, jnp.int32), top_p=jnp.ones(4000),
                    min_p=jnp.zeros(4000))
        tokens, logprobs = sample(logits, keys, rows, barred)
        shares = np.bincount(tokens, minlength=3) / 4000
        wanted = [0, 1, 0] if temperature == 0 else [0, 0.6, 0.4]
        np.testing.assert_allclose(shares, wanted, atol=0.03)
        np.testing.assert_allclose(np.exp(logprobs), np.array([0.5, 0.3, 0.2])[tokens], rtol=1e-5)
