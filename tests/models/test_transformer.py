"""The transformer against a loop-by-loop numpy one; cache, segments, remat and chunks change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models import ModelConfig, empty_cache, layers

SHAPE = dict(vocab_size=40, d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_mlp=20, max_length=64)
KINDS = {
    "llama": dict(causal=True, tie_embeddings=True, family="llama"),
    "qwen2": dict(causal=True, qkv_bias=True, family="qwen2"),
    "qwen3": dict(causal=True, qk_norm=True, family="qwen3"),
    "llada": dict(causal=False),
    "qwen3_moe": dict(causal=True, qk_norm=True, family="qwen3_moe", num_experts=5, experts_per_token=2, d_expert=14,
                      router="softmax_renormalized"),
    "llada_moe": dict(qk_norm=True, family="llada_moe", num_experts=4, experts_per_token=3, d_expert=14),
    "llama4": dict(causal=True, num_experts=4, experts_per_token=1, d_expert=14, d_shared_expert=10, router="sigmoid"),
}


def random_model(kind, **changes):
    config = ModelConfig(**{**SHAPE, **KINDS[kind], **changes})
    rng = np.random.default_rng(0)

    def weights(path, leaf):  # drawn by numpy: a program for each shape would take seconds
        return jnp.asarray((path[-1].key == "scale") + 0.25 * rng.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(weights, models.abstract(config)), config


def swiglu(x, gate, up, down):
    return (x @ gate / (1 + np.exp(-(x @ gate))) * (x @ up)) @ down


def naive_mixture(w, c, n):
    """Token by token: the k experts of the highest logits, and the shared one."""
    out = np.zeros_like(n)
    for t, row in enumerate(n):
        logits = row @ w["router"]["kernel"]
        chosen = np.argsort(-logits)[:c.experts_per_token]
        scores = 1 / (1 + np.exp(-logits)) if c.router == "sigmoid" else np.exp(logits) / np.exp(logits).sum()
        scale = scores[chosen].sum() if c.router == "softmax_renormalized" else 1.0
        for e in chosen:
            expert = [w[m]["kernel"][e] for m in ("gate", "up", "down")]
            if c.router == "sigmoid":
                out[t] += swiglu(scores[e] * row, *expert)
            else:
                out[t] += scores[e] / scale * swiglu(row, *expert)
        if c.d_shared_expert:
            out[t] += swiglu(row, *(w["shared"][m]["kernel"] for m in ("gate", "up", "down")))
    return out


def naive_logits(params, c, tokens):
    """One sequence, float64, position by position."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + c.rms_norm_eps) * scale

    def turn(x, position):
        half = len(x) // 2
        out = np.empty_like(x)
        for j in range(half):
            angle = position * c.rope_theta ** (-2 * j / len(x))
            out[j] = x[j] * np.cos(angle) - x[j + half] * np.sin(angle)
            out[j + half] = x[j + half] * np.cos(angle) + x[j] * np.sin(angle)
        return out

    x = p["embed"]["embedding"][tokens]
    for i in range(c.num_layers):
        w = jax.tree.map(lambda a, i=i: a[i], p["layers"])
        n = norm(x, w["attn_norm"]["scale"])
        q, k, v = (np.einsum("td,dhk->thk", n, w[m]["kernel"]) for m in "qkv")
        if c.qkv_bias:
            q, k, v = q + w["q"]["bias"], k + w["k"]["bias"], v + w["v"]["bias"]
        if c.qk_norm:
            q, k = norm(q, w["q_norm"]["scale"]), norm(k, w["k_norm"]["scale"])
        out = np.zeros_like(x)
        for t in range(len(tokens)):
            seen = range(t + 1 if c.causal else len(tokens))
            for h in range(c.num_heads):
                g = h // (c.num_heads // c.num_kv_heads)
                scores = np.array([turn(q[t, h], t) @ turn(k[s, g], s) for s in seen]) / np.sqrt(c.head_dim)
                weights = np.exp(scores - scores.max())
                mixed = sum(a * v[s, g] for a, s in zip(weights / weights.sum(), seen, strict=True))
                out[t] += mixed @ w["o"]["kernel"][h]
        x = x + out
        n = norm(x, w["mlp_norm"]["scale"])
        if c.num_experts:
            x = x + naive_mixture(w["moe"], c, n)
        else:
            x = x + swiglu(n, *(w[m]["kernel"] for m in ("gate", "up", "down")))
    head = p["embed"]["embedding"].T if c.tie_embeddings else p["head"]["kernel"]
    return norm(x, p["final_norm"]["scale"]) @ head


def tokens(rows=2, length=11, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (rows, length)).astype(np.int32)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_the_naive_ones(kind):
    params, config = random_model(kind)
    out = models.apply(params, config, tokens())
    assert out.logits.dtype == jnp.float32
    for row, expected in zip(out.logits, tokens(), strict=True):
        np.testing.assert_allclose(row, naive_logits(params, config, expected), atol=2e-4)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3_moe"])
def test_cached_decoding_gives_the_logits_of_one_pass(kind):
    params, config = random_model(kind)
    whole = models.apply(params, config, tokens()).logits
    cache, parts = empty_cache(config, 2, 16), []
    for start, stop in ((0, 5), (5, 6), (6, 11)):
        positions = np.broadcast_to(np.arange(start, stop, dtype=np.int32), (2, stop - start))
        out = models.apply(params, config, tokens()[:, start:stop], positions=positions, cache=cache)
        cache = out.cache
        parts.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)
    assert cache.positions[0].tolist() == [*range(11), -1, -1, -1, -1, -1]


def test_rows_without_a_slot_are_not_seen():
    params, config = random_model("llada")
    padded = np.concatenate([tokens(1, 6), tokens(1, 3, seed=9)], axis=1)
    slots = np.array([[0, 1, 2, 3, 4, 5, -1, -1, -1]], np.int32)
    out = models.apply(params, config, padded, cache=empty_cache(config, 1, 8), slots=slots)
    np.testing.assert_allclose(out.logits[:, :6], models.apply(params, config, padded[:, :6]).logits, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "llada", "llada_moe"])
def test_packed_documents_do_not_see_each_other(kind):
    params, config = random_model(kind)
    a, b = tokens(1, 5), tokens(1, 4, seed=3)
    packed = np.concatenate([a, b, np.zeros((1, 2), np.int32)], axis=1)
    segments = np.array([[1] * 5 + [2] * 4 + [0] * 2], np.int32)
    positions = np.array([[*range(5), *range(4), 0, 0]], np.int32)
    logits = models.apply(params, config, packed, positions=positions, segment_ids=segments).logits
    np.testing.assert_allclose(logits[:, :5], models.apply(params, config, a).logits, atol=1e-5)
    np.testing.assert_allclose(logits[:, 5:9], models.apply(params, config, b).logits, atol=1e-5)
    assert np.isfinite(np.asarray(logits)).all()


def loss_and_grads(params, config):
    def loss(p):
        return jnp.mean(jnp.square(models.apply(p, config, tokens()).logits))

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("remat, chunk", [("full", 1024), ("dots", 1024), ("none", 4)])
def test_remat_and_chunks_change_no_gradient(monkeypatch, remat, chunk):
    params, config = random_model("llama")
    expected = loss_and_grads(params, config)
    monkeypatch.setattr(layers, "QUERY_CHUNK", chunk)
    found = loss_and_grads(params, ModelConfig(**{**config.__dict__, "remat": remat}))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def test_hidden_states_without_the_head():
    params, config = random_model("llada")
    out = models.apply(params, config, tokens(), head=False)
    assert out.logits is None and out.hidden.shape == (2, 11, 24)
    np.testing.assert_allclose(models.api.unembed(params, config, out.hidden),
                               models.apply(params, config, tokens()).logits, atol=1e-6)


def test_bfloat16_activations_keep_float32_logits():
    params, config = random_model("llada")
    half = ModelConfig(**{**config.__dict__, "activation_dtype": "bfloat16"})
    out = models.apply(params, half, tokens())
    assert out.logits.dtype == jnp.float32 and out.hidden.dtype == jnp.bfloat16
    exact = np.asarray(models.apply(params, config, tokens()).logits)
    assert np.abs(np.asarray(out.logits) - exact).max() < 0.05 * np.abs(exact).max()
