"""Commit and stop rules on logits made by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxllm.config import ConfigError
from jaxllm.diffusion import DecodeConfig
from jaxllm.diffusion.commit import choose, commit, start
from jaxllm.diffusion.config import resolve
from jaxllm.models.presets import preset

MODEL = preset("llada-tiny")  # 256 tokens: mask 255, EOS 254


@pytest.mark.parametrize(("settings", "confidence", "chosen"), [
    ({"threshold": 0.5}, [.5, .4999, .75, .1], [1, 0, 1, 0]),  # reaching the bar is enough
    ({"threshold": 0.9}, [.2, .3, .3, .1], [0, 1, 1, 0]),  # below it: the best, and what equals it
    ({"tokens_per_step": 2}, [.2, .3, .3, .3], [0, 1, 1, 0]),  # the earlier first among equals
    ({"tokens_per_step": 9}, [.2, .3, .3, .1], [1, 1, 1, 1]),
    # Ranks 0..3 must reach none, 1 - 1/3, 1 - 1/4, 1 - 1/5.
    ({"factor": 1.0}, [.1, .7, .74, .9], [0, 0, 1, 1]),
    ({"factor": 1.0}, [.1, .2, .1, .1], [0, 1, 0, 0])])
def test_the_commit_rules(settings, confidence, chosen):
    config = DecodeConfig(gen_length=4, block_length=4, **settings)
    got = choose(jnp.asarray([confidence], jnp.float32), jnp.ones((1, 4), bool), config, None)
    assert np.asarray(got)[0].astype(int).tolist() == chosen
    # A position that is no candidate is never taken, whatever its confidence.
    less = jnp.asarray([confidence], jnp.float32).at[0, chosen.index(1)].set(1.0)
    candidates = jnp.ones((1, 4), bool).at[0, chosen.index(1)].set(False)
    assert not np.asarray(choose(less, candidates, config, None))[0, chosen.index(1)]


def test_an_earlier_end_found_later_cuts_again():
    config = resolve(MODEL, DecodeConfig(method="elastic", gen_length=8, window_length=8))
    state = start(MODEL, config, jnp.asarray([[5, 6, 0, 0]], jnp.int32), jnp.asarray([2]),
                  jax.vmap(jax.random.key)(jnp.arange(1)))
    positions = jnp.arange(2, 10)[None]

    def step(state, wanted):
        """Commit `wanted`, {position: token}, by logits that are sure of these and of nothing else."""
        logits = np.zeros((1, 8, 256), np.float32)
        for position, token in wanted.items():
            logits[0, position - 2, token] = 50.0
        zero = jnp.zeros(1, jnp.int32)
        return commit(state, jnp.asarray(logits), positions, MODEL, config, rows=zero, refresh_from=zero)[0]

    state = step(state, {7: 254, 9: 9})
    assert np.flatnonzero(state.left[0]).tolist() == [2, 3, 4, 5, 6]  # nothing behind the end is decoded any more
    state = step(state, {4: 254})
    assert np.flatnonzero(state.left[0]).tolist() == [2, 3]
    state = step(state, {2: 7, 3: 8})
    assert not np.any(state.left)
    assert dataclasses.asdict(state.record)["steps"].tolist() == [3]
    assert np.asarray(state.tokens)[0, :5].tolist() == [5, 6, 7, 8, 254]


def test_a_random_order_draws_subsets_evenly_and_takes_each_likeliest_token():
    b, settings = 3000, dict(method="full_recompute", gen_length=4, block_length=4, tokens_per_step=2)
    config = resolve(MODEL, DecodeConfig(order="random", **settings))
    prompt, lengths = jnp.full((b, 2), 5, jnp.int32), jnp.full(b, 2)
    state = start(MODEL, config, prompt, lengths, jax.vmap(jax.random.key)(jnp.arange(b)))
    logits = np.zeros((b, 4, 256), np.float32)
    for place in range(4):
        logits[:, place, 10 + place] = 2.0 + 3.0 * place  # confidence would always take the last two
    zero, places = jnp.zeros(b, jnp.int32), jnp.broadcast_to(jnp.arange(2, 6), (b, 4))
    state = commit(state, jnp.asarray(logits), places, MODEL, config, rows=zero, refresh_from=zero)[0]
    pairs, counts = np.unique(np.asarray(state.decoded)[:, 2:], axis=0, return_counts=True)
    assert len(pairs) == 6 and (pairs.sum(1) == 2).all()
    assert chisquare(counts).pvalue > 1e-3
    tokens = np.asarray(state.tokens)[:, 2:]
    assert (tokens[np.asarray(state.decoded)[:, 2:]] == np.broadcast_to(np.arange(10, 14), (b, 4))[
        np.asarray(state.decoded)[:, 2:]]).all()
    with pytest.raises(ConfigError, match="chance is no measure for a threshold"):
        DecodeConfig(order="random")
