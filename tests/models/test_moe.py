"""Routing and experts against loops in numpy; the three dispatches agree, gradients included; padding and replay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig, api, moe

N, E, K, D, F = 40, 6, 2, 8, 12
SHAPE = dict(vocab_size=40, d_model=24, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=6, d_mlp=20, max_length=64,
             num_experts=5, experts_per_token=2, d_expert=16, family="qwen3_moe")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def naive_route(logits, k, mode, valid, forced=None):
    """Token by token, float64: ids, weights, load, balance, z."""
    n, e = logits.shape
    ids, weights = np.full((n, k), -1), np.zeros((n, k))
    hits, shares, squares = np.zeros(e), np.zeros(e), []
    for t in range(n):
        if not valid[t]:
            continue
        row = logits[t].astype(np.float64)
        chosen = sorted(range(e), key=lambda i, row=row: -row[i])[:k]
        if forced is not None and (forced[t] >= 0).all():
            chosen = list(forced[t])
        each = 1 / (1 + np.exp(-row)) if mode == "sigmoid" else softmax(row)
        ids[t], weights[t] = chosen, each[chosen]
        if mode == "softmax_renormalized":
            weights[t] = each[chosen] / each[chosen].sum()
        hits[chosen] += 1
        shares += each / each.sum()
        squares.append(np.log(np.exp(row).sum()) ** 2)
    count = max(valid.sum(), 1)
    load = hits / (count * k)
    return ids, weights, load, e * (load * shares / count).sum(), np.sum(squares) / count


def naive_experts(x, ids, weights, params, scale_input=False):
    out = np.zeros(x.shape)
    p = {name: w.astype(np.float64) for name, w in params.items()}
    for t in range(len(x)):
        for e, w in zip(ids[t], weights[t], strict=True):
            if not 0 <= e < len(p["gate"]):
                continue
            row = x[t].astype(np.float64) * (w if scale_input else 1)
            g = row @ p["gate"][e]
            out[t] += (g / (1 + np.exp(-g)) * (row @ p["up"][e])) @ p["down"][e] * (1 if scale_input else w)
    return out


def kernels(e=E, d=D, f=F, seed=3):
    return {"gate": normal(seed, e, d, f), "up": normal(seed + 1, e, d, f), "down": normal(seed + 2, e, f, d)}


@pytest.mark.parametrize("mode, k", [("softmax", 2), ("softmax_renormalized", 3), ("sigmoid", 1)])
def test_routing_is_the_naive_one(mode, k):
    logits, valid = 2 * normal(0, N, E), np.arange(N) % 5 != 0
    forced = np.random.default_rng(1).permuted(np.tile(np.arange(E), (N, 1)), axis=1)[:, :k]
    forced[::3] = -1
    forced[1, 0] = -1  # a token with any -1 is routed afresh
    for given in (None, forced):
        ids, weights, stats = moe.route(jnp.asarray(logits), k, mode, given, jnp.asarray(valid))
        expected = naive_route(logits, k, mode, valid, given)
        for found, value in zip((ids, weights, stats.load, stats.balance, stats.z), expected, strict=True):
            np.testing.assert_allclose(found, value, rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(stats.ids, ids)


def test_even_load_has_balance_one_and_z_of_zero_logits():
    _, _, stats = moe.route(jnp.zeros((12, 4)), 1, "softmax", jnp.arange(12)[:, None] % 4)
    np.testing.assert_allclose(stats.load, 0.25)
    assert float(stats.balance) == pytest.approx(1.0) and float(stats.z) == pytest.approx(np.log(4) ** 2)


@pytest.mark.parametrize("mode", ["softmax", "softmax_renormalized", "sigmoid"])
def test_replayed_weights_move_the_router(mode):
    # Expert 3 and 4 are far from the top of these logits.
    logits = jnp.array([[5.0, 4.0, 3.0, -1.0, -2.0]])
    k = 1 if mode == "sigmoid" else 2
    grad = jax.grad(lambda x: moe.route(x, k, mode, jnp.array([[3, 4][:k]]))[1][0, 0])(logits)[0]
    p = np.asarray(jax.nn.softmax(logits))[0].astype(np.float64)
    pair = p[3] / (p[3] + p[4])
    s = 1 / (1 + np.exp(1.0))
    expected = {"softmax": p[3] * (np.eye(5)[3] - p), "softmax_renormalized": pair * (1 - pair) * np.array(
        [0, 0, 0, 1, -1]), "sigmoid": np.array([0, 0, 0, s * (1 - s), 0])}[mode]
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-8)


CASES = {  # tokens, experts, k, weights on the input
    "few": (5, 6, 2, False), "one": (1, 3, 1, False), "many": (700, 3, 2, False), "input": (90, 4, 1, True),
    "all": (30, 4, 4, False)}


def case(name):
    n, e, k, scale_input = CASES[name]
    ids = np.random.default_rng(0).permuted(np.tile(np.arange(e), (n, 1)), axis=1)[:, :k]
    if name != "one":
        ids[::7] = [e] * k if name == "few" else [-1] * k  # both ways of belonging to no expert here
    if name == "many":
        ids[:, 0] = np.where(ids[:, 0] == 2, 0, ids[:, 0])  # an uneven load
    return normal(1, n, D), ids, np.abs(normal(2, n, k)), kernels(e), scale_input


@pytest.mark.parametrize("impl", ["dense", "blocks", "ragged"])
@pytest.mark.parametrize("name", CASES)
def test_experts_are_the_naive_sum(name, impl):
    x, ids, weights, params, scale_input = case(name)
    found = jax.jit(functools.partial(moe.experts, impl=impl, scale_input=scale_input))(x, ids, weights, params)
    np.testing.assert_allclose(found, naive_experts(x, ids, weights, params, scale_input), atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_all_dispatches_agree(name):
    x, ids, weights, params, scale_input = case(name)
    target = normal(9, *x.shape)

    def gradients(impl):
        def loss(x, weights, params):
            return jnp.mean(target * moe.experts(x, ids, weights, params, impl, scale_input=scale_input))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, weights, params)

    expected = gradients("dense")
    for impl in ("blocks", "ragged"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients(impl), expected)
    assert all(np.abs(np.asarray(g)).max() > 0 for g in jax.tree.leaves(expected))


def test_dense_gradient_is_the_slope():
    x, ids, weights, params, _ = case("few")
    target = normal(9, *x.shape)
    grad = jax.grad(lambda w: jnp.sum(target * moe.experts(x, ids, w, params, "dense")))(jnp.asarray(weights))
    step = 1e-3 * np.eye(weights.size).reshape(weights.size, *weights.shape)
    slope = [((naive_experts(x, ids, weights + s, params) - naive_experts(x, ids, weights - s, params)) * target).sum()
             / 2e-3 for s in step]
    np.testing.assert_allclose(np.ravel(grad), slope, rtol=1e-4, atol=1e-5)


def test_half_precision_stays_near():
    x, ids, weights, params, _ = case("many")
    half = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), (x, params))
    exact = naive_experts(x, ids, weights, params)
    for impl in ("dense", "blocks", "ragged"):
        found = moe.experts(half[0], ids, weights, half[1], impl)
        assert found.dtype == jnp.bfloat16
        assert np.abs(np.asarray(found, np.float32) - exact).max() < 0.03 * np.abs(exact).max()


def random_model(**changes):
    config = ModelConfig(**{**SHAPE, **changes})
    leaves, tree = jax.tree.flatten(jax.jit(models.init, static_argnums=0)(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return jax.tree.unflatten(tree, [x + 0.2 * jax.random.normal(k, x.shape)
                                     for x, k in zip(leaves, keys, strict=True)]), config


apply = jax.jit(models.apply, static_argnames="config")


def tokens(rows=2, length=9, seed=0):
    return np.random.default_rng(seed).integers(0, 40, (rows, length)).astype(np.int32)


@pytest.mark.slow
def test_a_pass_replays_the_routes_of_another():
    params, config = random_model()
    out = apply(params, config, tokens())
    assert out.aux.ids.shape == (2, 18, 2) and out.aux.load.shape == (2, 5) and out.aux.z.shape == (2,)
    other = {**params, "layers": {**params["layers"], "moe": {
        **params["layers"]["moe"], "router": {"kernel": params["layers"]["moe"]["router"]["kernel"][:, :, ::-1]}}}}
    free = apply(other, config, tokens())
    assert (free.aux.ids != out.aux.ids).any()
    def replay(params, ids):
        return apply(params, config, tokens(), routes=ids)

    forced = replay(other, out.aux.ids)
    np.testing.assert_array_equal(forced.aux.ids, out.aux.ids)
    np.testing.assert_allclose(replay(params, out.aux.ids).logits, out.logits, atol=1e-5)
    np.testing.assert_allclose(replay(other, jnp.full_like(out.aux.ids, -1)).logits, free.logits, atol=1e-5)

    def loss(router):
        moved = {**other, "layers": {**other["layers"], "moe": {**other["layers"]["moe"], "router": router}}}
        return jnp.sum(replay(moved, out.aux.ids).logits[..., 0])

    assert np.abs(jax.grad(loss)(other["layers"]["moe"]["router"])["kernel"]).max() > 0


def test_padding_is_neither_routed_nor_counted():
    params, config = random_model(causal=True)
    alone = apply(params, config, tokens(1, 5))
    padded = np.concatenate([tokens(1, 5), np.zeros((1, 4), np.int32)], axis=1)
    out = apply(params, config, padded, segment_ids=np.array([[1] * 5 + [0] * 4]))
    np.testing.assert_allclose(out.logits[:, :5], alone.logits, atol=1e-5)
    assert (out.aux.ids[:, 5:] == -1).all()
    np.testing.assert_array_equal(out.aux.ids[:, :5], alone.aux.ids)
    for name in ("load", "balance", "z"):
        np.testing.assert_allclose(getattr(out.aux, name), getattr(alone.aux, name), rtol=1e-5)
    cached = apply(params, config, padded, cache=models.empty_cache(config, 1, 8),
                          slots=np.array([[0, 1, 2, 3, 4, -1, -1, -1, -1]]))
    np.testing.assert_array_equal(cached.aux.ids, out.aux.ids)


@pytest.mark.parametrize("changes", [{}, {"router": "sigmoid", "experts_per_token": 1, "d_shared_expert": 12}])
def test_the_halves_of_a_layer_give_the_whole_model(changes):
    from jaxllm.diffusion.forward import full_forward
    from jaxllm.models import unstack

    params, config = random_model(**changes)
    @jax.jit
    def layer_by_layer(params):
        x = full_forward(unstack(params, config), config, tokens(), jnp.ones((2, 9), bool))
        return api.logits(params, config, x)

    np.testing.assert_allclose(layer_by_layer(params), apply(params, config, tokens()).logits, atol=1e-5)


@pytest.mark.slow
def test_dispatch_by_config_changes_no_logit_and_no_gradient():
    params, config = random_model(remat="full", balance_coef=0.1)

    def loss(params, dispatch):
        out = models.apply(params, ModelConfig(**{**config.__dict__, "dispatch": dispatch}), tokens())
        return jnp.mean(jnp.square(out.logits)) + jnp.mean(out.aux.balance)

    expected = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, "dense")
    for dispatch in ("auto", "ragged"):
        found = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, dispatch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


@pytest.mark.parametrize("changes, message", [
    ({"experts_per_token": 6}, "experts_per_token=6: must lie in 1..num_experts=5"),
    ({"router": "sigmoid"}, "experts_per_token=2: must be 1 with router='sigmoid'"),
    ({"d_expert": 0}, "d_expert=0"), ({"balance_coef": -0.1}, "balance_coef=-0.1"),
    ({"num_experts": 0}, "experts_per_token=2: needs num_experts"),
    ({"num_experts": 0, "experts_per_token": 0, "d_expert": 0}, "family='qwen3_moe': needs num_experts")])
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        ModelConfig(**{**SHAPE, **changes})


def test_routes_need_a_mixture():
    config = ModelConfig(vocab_size=8, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, d_mlp=8)
    with pytest.raises(ValueError, match="routes: a dense model"):
        models.apply(models.init(config, jax.random.key(0)), config, np.zeros((1, 2), np.int32),
                     routes=jnp.zeros((1, 2, 1), jnp.int32))
