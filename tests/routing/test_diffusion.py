"""Masked-diffusion models along routes, against the numpy decoders and one token at a time with the plain model."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models

from jaxllm.checkpoint import save_pretrained
from jaxllm.config import load
from jaxllm.diffusion import DecodeConfig
from jaxllm.models import apply, follow, unstack
from jaxllm.routing import EvaluateConfig, RoutingConfig, evaluate_routers, open_routing, train_routers
from jaxllm.routing.counts import to_path
from jaxllm.routing.problems import Problem
from jaxllm.routing.rewards import Diffused
from tests.diffusion.helpers import random_pair
from tests.diffusion.test_decoders import compare
from tests.models.test_transformer import random_model

L, G, MASK = 3, 6, 39
ROUTES = [(1, 1, 1), (1, 0, 2), (2, 1, 0)]
CONFIG = DecodeConfig(method="full_recompute", gen_length=G, window_length=G, threshold=None, tokens_per_step=1,
                      eos_id=-1)


@pytest.fixture(scope="module")
def case():
    params, config = random_model("llada", num_layers=L, mask_id=MASK, eos_id=1)
    params["head"]["kernel"] *= 0.2  # no two probabilities that round to one
    prompts = np.random.default_rng(0).integers(2, 38, (4, 5)).tolist()
    return params, config, prompts


@functools.partial(jax.jit, static_argnames="config")
def logits_of(params, config, tokens, path):
    return apply(params, config, tokens[None], path=path).logits[0]


def naive(params, config, prompt, path):
    tokens = np.array(prompt + [MASK] * G)
    while (tokens == MASK).any():
        logits = np.array(logits_of(params, config, jnp.array(tokens), jnp.array(path)), np.float64)
        logits[:, MASK] = -np.inf
        chance = np.exp(logits - logits.max(-1, keepdims=True))
        best = (chance / chance.sum(-1, keepdims=True)).max(-1)
        place = int(np.argmax(np.where(tokens == MASK, best, -1)))
        tokens[place] = int(logits[place].argmax())
    return tokens[len(prompt):].tolist()


@pytest.mark.parametrize("method, settings", [
    ("elastic", {"gen_length": 16, "window_length": 6, "threshold": 0.5, "gamma": 0.97}),
    ("dual", {"gen_length": 16, "block_length": 8, "threshold": 0.5})])
def test_decoders_follow_a_path(method, settings, tmp_path):
    """Tokens, steps, and rows computed by window and refresh, as the numpy restatement has them over those layers."""
    reference, params, model = random_pair(tmp_path / "llada", "llada", seed=3, vocab=48, sharpness=3.0)
    prompts = [np.random.default_rng(1).integers(0, 46, 7).tolist()]
    for path in ((0, 2), (0, 1, 1, 2), (2, 2)):
        followed = dataclasses.replace(reference, layers=[reference.layers[i] for i in path])
        compare((followed, *follow(unstack(params, model), model, path)), method, prompts, settings)


@pytest.fixture(scope="module")
def worded(case):
    """A tokenizer of words, and for each prompt the text that a planted route says."""
    params, config, prompts = case
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, 40))]
    tokenizer = Tokenizer(tokenizer_models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    answers = [" ".join(words[t] for t in naive(params, config, p, to_path(ROUTES[i % 3])))
               for i, p in enumerate(prompts)]
    return tokenizer, words, answers


def test_verdicts(case, worded):
    (params, config, prompts), (tokenizer, words, answers) = case, worded
    problems = [Problem("x", i, tuple(p), (1,), G, "", {"answer": a}) for i, (p, a) in
                enumerate(zip(prompts, answers, strict=True))]
    verdicts = Diffused(unstack(params, config), config, problems, tokenizer,
                        lambda p, text: text == p.entry["answer"], CONFIG, batch=2)
    asked = [(i, np.array(r)) for r in ROUTES for i in range(4)]
    for (number, counts), verdict in zip(asked, verdicts(asked), strict=True):
        said = " ".join(words[t] for t in naive(params, config, prompts[number], to_path(counts)))
        assert verdict.right == (said == answers[number]) and verdict.score == -G


@pytest.mark.slow
def test_search_train_evaluate(case, worded, tmp_path):
    (params, config, prompts), (tokenizer, words, answers) = case, worded
    save_pretrained(params, config, tmp_path / "model")
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"prompt": " ".join(words[t] for t in p), "answer": a}) + "\n"
                                              for p, a in zip(prompts, answers, strict=True)))
    (tmp_path / "config.yaml").write_text(f"""
model: {tmp_path}/model
families:
- {{name: seen, prompts: {{path: {tmp_path}/x.jsonl}}}}
- {{name: test, role: in, prompts: {{path: {tmp_path}/x.jsonl}}}}
reward: generated
end: false
batch: 4
bucket: 16
decode: {{method: full_recompute, gen_length: {G}, window_length: {G}, threshold: null, tokens_per_step: 1, eos_id: -1}}
search: {{simulations: 12, stop: budget}}
router: {{width: 8, windows: 4}}
fit: {{epochs: 2, validation: 0}}
""")
    opened = open_routing(load(RoutingConfig, tmp_path / "config.yaml"))
    report = train_routers(opened, tmp_path / "run")
    # The first and the last are right by default; whether another is found depends on the twelve routes tried.
    assert report["search"]["seen"]["default_right"] == 2
    result = evaluate_routers(opened, tmp_path / "run", EvaluateConfig(random_draws=1))
    arms = result["families"]["test"]["arms"]
    assert set(arms) >= {"unrouted", "routed", "random", "early exit", "oracle"} and "per token" not in arms
    assert arms["unrouted"]["accuracy"][0] == 0.5 and "generated" not in result["families"]["test"]
