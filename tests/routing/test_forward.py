"""Rows along routes of their own, against one row at a time along its path."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models import api
from jaxllm.routing.counts import to_path
from jaxllm.routing.forward import DECIDE, answer_chances, same_so_far, sweep
from jaxllm.routing.router import RouterConfig, init_routers, router_logits
from tests.models.test_transformer import random_model

module = importlib.import_module("jaxllm.routing.forward")
L, B, T = 4, 6, 9
# All of four executions, so that one program follows each.
ROUTES = np.array([[1, 1, 1, 1], [0, 1, 2, 1], [2, 0, 2, 0], [0, 0, 2, 2], [1, 2, 0, 1], [1, 1, 0, 2]], np.int8)


def case(kind, **changes):
    params, config = random_model(kind, num_layers=L, **changes)
    tokens = jax.random.randint(jax.random.key(3), (B, T), 0, config.vocab_size)
    return params, config, tokens, jnp.array([9, 7, 9, 5, 1, 8])


@functools.partial(jax.jit, static_argnames="config")
def along(params, config, tokens, path, n):
    """Logits `[1, T, V]` of the first n tokens along a path."""
    held = jnp.where(jnp.arange(T)[None] < n, 1, 0)
    return models.apply(params, config, tokens, path=path, segment_ids=held).logits


@functools.partial(jax.jit, static_argnames="config")
def one_layer(params, config, x, i):
    """Residual stream `[1, T, D]` after layer i, all keys up to its own seen."""
    layer = jax.tree.map(lambda leaf: leaf[i], params["layers"])
    q, k, v = api.project(layer, config, x, api.tables(config, jnp.arange(T)[None]))
    return api.finish(layer, config, x, models.layers.attend(q, k, v, jnp.tril(jnp.ones((1, 1, T, T), bool))))


@pytest.mark.parametrize("kind, changes", [
    ("llada_moe", {}), ("llama", {"window": 3, "window_layers": (True, False)})])
def test_each_row_follows_its_own_route(kind, changes):
    params, config, tokens, lengths = case(kind, **changes)
    logits = jax.jit(functools.partial(api.logits, config=config))
    for chunk in (1, 4, 6):
        got = sweep(params, tokens, lengths, jnp.array(ROUTES), model=config, chunk=chunk)
        np.testing.assert_array_equal(got.counts, ROUTES)
        found = logits(params, x=got.x)
        for row, n in enumerate(lengths.tolist()):
            want = along(params, config, tokens[row:row + 1], jnp.array(to_path(ROUTES[row])), n)[0]
            np.testing.assert_allclose(found[row, :n], want[:n], atol=2e-5, rtol=1e-5)


def test_rows_that_are_the_same_so_far_are_computed_once(monkeypatch):
    params, config, tokens, lengths = case("llama")
    problems, counts = [0, 1, 0, 0, 1, 1], np.array([[1, 1, 2, 1], [1, 1, 1, 1], [1, 1, 2, 1], [1, 1, 0, 2],
                                                     [0, 1, 1, 1], [1, 1, 1, 0]], np.int8)
    tokens, lengths = tokens[jnp.array(problems)], lengths[jnp.array(problems)]
    same = same_so_far(problems, counts)
    for row in range(B):
        for layer in range(L):
            alike = [r for r in range(B) if problems[r] == problems[row]
                     and (counts[r, :layer + 1] == counts[row, :layer + 1]).all()]
            assert same[row, layer] == alike[0]
    each, once = (sweep(params, tokens, lengths, jnp.array(counts), same=s, model=config, chunk=1)
                  for s in (None, same))
    np.testing.assert_allclose(once.x, each.x, atol=1e-6)
    np.testing.assert_array_equal(once.counts, counts)
    # The work done: rows that are asked for, layer by layer.
    executed = []
    monkeypatch.setattr(module, "run_rows", lambda run, needed, rows, chunk: executed.append(needed) or rows)
    with jax.disable_jit():
        sweep(params, tokens, lengths, jnp.array(counts), same=same, model=config, chunk=1)
    distinct = {(problems[r], tuple(counts[r, :layer + 1].tolist())) for r in range(B) for layer in range(L)}
    assert sum(int(n.sum()) for n in executed) == sum(c[-1] for _, c in distinct) < counts.sum()


def naive_logits(router, x, windows):
    """One prompt `[n, D]` through one router, window by window, float64."""
    r = jax.tree.map(lambda a: np.asarray(a, np.float64), router)
    x = np.asarray(x, np.float64)
    w = min(windows, len(x))
    size = len(x) // w
    out = []
    means = [x[i * size:(i + 1) * size].mean(0) for i in range(w)]
    for mean in means:
        h = mean @ r["in"]["kernel"] + r["in"]["bias"]
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        out.append(h @ r["out"]["kernel"] + r["out"]["bias"])
    return np.mean(out, 0), means


def test_routers_decide_on_the_routed_path_from_the_prompt_alone():
    params, config, tokens, lengths = case("llama")
    routers = init_routers(RouterConfig(width=16, windows=4), L, config.d_model, jax.random.key(5))
    routers["out"]["bias"] = jnp.tile(jnp.array([0.3, 0.0, 0.3]), (L, 1))  # all classes come up
    prompt = jnp.minimum(lengths, 6)
    got = sweep(params, tokens, lengths, jnp.full((B, L), DECIDE), model=config, chunk=2, routers=routers,
                prompt_lengths=prompt, windows=4, features=True)
    assert len(np.unique(np.asarray(got.counts))) == 3
    embedded, logits = api.embed(params, config, tokens), jax.jit(router_logits)
    for row, n in enumerate(prompt.tolist()):
        counts, x = [], embedded[row:row + 1]
        for i in range(L):
            router = jax.tree.map(lambda leaf, i=i: leaf[i], routers)
            want, means = naive_logits(router, x[0, :n], 4)
            np.testing.assert_allclose(got.features[i, row, :len(means)], means, atol=2e-5, rtol=1e-5)
            assert not np.asarray(got.features[i, row, len(means):]).any()
            held = jnp.arange(4) < len(means)
            np.testing.assert_allclose(logits(router, got.features[i, row], held), want, atol=1e-5, rtol=1e-5)
            counts.append(int(np.argmax(want)))
            for _ in range(counts[-1]):
                x = one_layer(params, config, x, i)
        np.testing.assert_array_equal(got.counts[row], counts)
    # What follows the prompt, and padding, change nothing.
    other = tokens.at[jnp.arange(B)[:, None], prompt[:, None] + jnp.arange(3)].set(7, mode="drop")
    again = sweep(params, other, lengths, jnp.full((B, L), DECIDE), model=config, chunk=2, routers=routers,
                  prompt_lengths=prompt, windows=4)
    np.testing.assert_array_equal(again.counts, got.counts)


def test_answers_by_teacher_forcing():
    params, config, tokens, lengths = case("llama")
    begins = jnp.maximum(lengths - 2, 1).at[4].set(1)
    plain = jax.jit(lambda tokens: models.apply(params, config, tokens).logits)
    # Row 0 and 3 are made to say what the model would.
    for row in (0, 3):
        for place in range(int(begins[row]), int(lengths[row])):
            tokens = tokens.at[row, place].set(jnp.argmax(plain(tokens)[row, place - 1]))
    logits = np.asarray(plain(tokens), np.float64)
    greedy = logits.argmax(-1)
    swept = sweep(params, tokens, lengths, jnp.ones((B, L), int), model=config, chunk=3)
    right, chance = answer_chances(params, swept.x, tokens, begins, lengths, model=config, span=3)
    for row in range(B):
        places = range(int(begins[row]), int(lengths[row]))
        assert bool(right[row]) == all(greedy[row, p - 1] == tokens[row, p] for p in places)
        want = sum(logits[row, p - 1, tokens[row, p]] - np.log(np.exp(logits[row, p - 1]).sum()) for p in places)
        np.testing.assert_allclose(chance[row], want, atol=1e-4)
    assert bool(right[0]) and bool(right[3]) and not bool(right.all())
