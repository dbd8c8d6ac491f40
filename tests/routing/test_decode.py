"""Token after token along routes, against the whole sequence recomputed along the path at every token."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.models import unstack
from jaxllm.routing.counts import to_path
from jaxllm.routing.decider import PromptRouter
from jaxllm.routing.forward import DECIDE, sweep
from jaxllm.routing.router import RouterConfig, init_routers
from tests.models.test_transformer import random_model

L, N = 4, 16
ROUTES = [(1, 1, 1, 1), (0, 1, 2, 1), (2, 0, 2, 0), (1, 1, 2, 0), (0, 2, 1, 1)]  # of four executions
CONFIG = EngineConfig(slots=3, length=N, prompt_bucket=8, layer_routes=True)


@functools.partial(jax.jit, static_argnames="config")
def recompute(params, config, tokens, path):
    return models.apply(params, config, tokens[None], path=path).logits[0]


def greedy(params, config, prompt, path, count):
    tokens = list(prompt)
    for _ in range(count):
        row = jnp.array(tokens + [0] * (N - len(tokens)))
        tokens.append(int(jnp.argmax(recompute(params, config, row, jnp.array(path))[len(tokens) - 1])))
    return tokens[len(prompt):]


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen3_moe", marks=pytest.mark.slow)])
def case(request):
    params, config = random_model(request.param, num_layers=L)
    rng = np.random.default_rng(2)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in (5, 8, 3, 6, 5)]
    return params, config, prompts


def test_routed_decoding_is_routed_recomputation(case):
    params, config, prompts = case
    engine = Engine(unstack(params, config), config, CONFIG)
    asked = [Request(i, p, 6, Sampling(0.0), counts=r) for i, (p, r) in enumerate(zip(prompts, ROUTES, strict=True))]
    for request, got in zip(asked, engine.run(asked), strict=True):
        np.testing.assert_array_equal(got.counts, request.counts)
        assert got.tokens.tolist() == greedy(params, config, request.prompt, to_path(request.counts), 6)
    plain = Engine(unstack(params, config), config, dataclasses.replace(CONFIG, layer_routes=False))
    asked = [dataclasses.replace(r, counts=None) for r in asked]
    for want, got in zip(plain.run(asked), engine.run(asked), strict=True):  # no route is every layer once
        np.testing.assert_array_equal(got.tokens, want.tokens)
        np.testing.assert_array_equal(got.counts, 1)
        assert want.counts is None


def test_one_prompt_along_two_routes_is_read_twice(case):
    params, config, prompts = case
    engine = Engine(unstack(params, config), config, CONFIG)
    asked = [Request(i, prompts[0], 4, Sampling(0.0), counts=r) for i, r in enumerate((*ROUTES[1:3], ROUTES[1]))]
    for request, got in zip(asked, engine.run(asked), strict=True):
        assert got.tokens.tolist() == greedy(params, config, prompts[0], to_path(request.counts), 4)


def test_the_engine_decides_as_a_sweep_does_and_keeps_to_it(case):
    params, config, prompts = case
    routers = init_routers(RouterConfig(width=16), L, config.d_model, jax.random.key(5))
    routers["out"]["bias"] = jnp.tile(jnp.array([0.2, 0.0, 0.2]), (L, 1))
    engine = Engine(unstack(params, config), config, CONFIG, decider=PromptRouter(routers, windows=4))
    asked = [Request(i, p, 5, Sampling(0.0)) for i, p in enumerate(prompts)]
    asked.append(Request(9, prompts[0], 5, Sampling(0.0), counts=ROUTES[2]))
    lengths = np.array([len(p) - 1 for p in prompts])
    tokens = np.stack([np.pad(p, (0, N - len(p))) for p in prompts])
    swept = sweep(params, tokens, lengths, jnp.full((5, L), DECIDE), model=config, chunk=2, routers=routers, windows=4)
    found = engine.run(asked)
    assert len({tuple(c.counts.tolist()) for c in found}) > 2
    for row, got in enumerate(found[:5]):
        np.testing.assert_array_equal(got.counts, swept.counts[row])
        again = engine.run([dataclasses.replace(asked[row], counts=tuple(got.counts.tolist()))])[0]
        np.testing.assert_array_equal(again.tokens, got.tokens)
    assert found[5].tokens.tolist() == greedy(params, config, prompts[0], to_path(ROUTES[2]), 5)


def test_a_route_that_skips_all_runs_the_last_layer(case):
    params, config, prompts = case
    routers = init_routers(RouterConfig(width=16), L, config.d_model, jax.random.key(5))
    routers["out"]["bias"] = jnp.tile(jnp.array([9.0, 0.0, 0.0]), (L, 1))
    engine = Engine(unstack(params, config), config, CONFIG, decider=PromptRouter(routers))
    got = engine.run([Request(0, prompts[0], 3, Sampling(0.0))])[0]
    assert got.counts.tolist() == [0, 0, 0, 1]
    swept = sweep(params, jnp.array([prompts[0]]), jnp.array([5]), jnp.full((1, L), DECIDE), model=config, chunk=1,
                  routers=routers)
    assert swept.counts.tolist() == [[0, 0, 0, 1]]


def test_bad_routes_are_refused():
    params, config = random_model("llama", num_layers=L)
    engine = Engine(unstack(params, config), config, CONFIG)
    for counts, message in (((1, 1), r"has the shape \(2,\); a route of this model has 4"),
                            ((1, 3, 1, 1), r"request 0: counts\[1\]=3: a layer runs 0, 1 or 2 times"),
                            ((0, 0, 0, 0), "skips every layer")):
        with pytest.raises(ConfigError, match=message):
            engine.submit(Request(0, [1, 2], 3, counts=counts))
    plain = Engine(unstack(params, config), config, dataclasses.replace(CONFIG, layer_routes=False))
    with pytest.raises(ConfigError, match="layer_routes=False: must be true for the counts of request 0"):
        plain.submit(Request(0, [1, 2], 3, counts=(1, 1, 1, 1)))
    with pytest.raises(ConfigError, match="layer_routes"):
        EngineConfig(keep_routes=True, layer_routes=True)
