"""The engine on GPT-NeoX and Gemma-2 blocks: prompts and answers longer than the sliding window."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from tests.generation.test_engine import greedy, prompts
from tests.models.test_blocks import BLOCKS


@pytest.mark.parametrize("kind", BLOCKS)
def test_greedy_is_a_loop_without_caches(kind):
    """More requests than slots, so that slots are refilled and the ring of columns goes round within a window."""
    model = dataclasses.replace(BLOCKS[kind], vocab_size=48, num_layers=2)
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(np.float32), models.abstract(model))
    asked = [Request(i, p, max_tokens=3 + 5 * (i % 4), sampling=Sampling(temperature=0))
             for i, p in enumerate(prompts(7, seed=2))]
    config = EngineConfig(slots=3, length=32, chunk=4, prompt_bucket=16)
    assert max(len(r.prompt) for r in asked) > 3 * model.window
    for found, request in zip(Engine(params, model, config).run(asked), asked, strict=True):
        tokens, logprobs = greedy(params, model, request.prompt, request.max_tokens)
        assert found.tokens.tolist() == tokens
        np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)
