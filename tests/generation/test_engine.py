"""The engine against a loop without caches, one request at a time against many; stops, bad input."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.data import build_word_tokenizer
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.generation import engine as engine_module
from jaxllm.models import ModelConfig

DENSE = ModelConfig(vocab_size=48, d_model=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=48,
                    max_length=64, causal=True, qkv_bias=True)
EXPERTS = dataclasses.replace(DENSE, num_experts=4, experts_per_token=2, d_expert=24, router="softmax_renormalized",
                              family="qwen3_moe", qkv_bias=False)
MODELS = {"dense": DENSE, "experts": EXPERTS}
CONFIG = EngineConfig(slots=3, length=40, chunk=4, prompt_bucket=8)


@functools.cache
def init(model, seed=3):
    return jax.jit(models.init, static_argnums=0)(model, jax.random.key(seed))


def prompts(count, seed=0, longest=14):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 48, rng.integers(1, longest)).tolist() for _ in range(count)]


@functools.partial(jax.jit, static_argnames="model")
def whole_pass(params, model, tokens):
    return models.apply(params, model, tokens)


def read(params, model, tokens):
    """Logits `[T, V]` and experts by a whole pass without a cache; what stands behind a causal row changes nothing."""
    out = whole_pass(params, model, jnp.asarray([[*tokens, *[0] * (64 - len(tokens))]], jnp.int32))
    ids = None if out.aux is None else np.asarray(out.aux.ids)[:, :len(tokens)]
    return np.asarray(out.logits[0, :len(tokens)]), ids


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - x.max(-1, keepdims=True) - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))


def logits_of(params, model, tokens):
    return log_softmax(read(params, model, tokens)[0])


def greedy(params, model, prompt, count, stop=()):
    tokens, found = list(prompt), []
    for _ in range(count):
        row = logits_of(params, model, tokens)[-1]
        tokens.append(int(row.argmax()))
        found.append(float(row.max()))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt):], found


@pytest.fixture(scope="module", params=MODELS)
def given(request):
    model = MODELS[request.param]
    return init(model), model


def test_greedy_is_a_loop_without_caches(given):
    """More requests than slots, of all lengths, so that slots are refilled and the ring of columns goes round."""
    params, model = given
    asked = [Request(i, p, max_tokens=3 + 5 * (i % 4), sampling=Sampling(temperature=0))
             for i, p in enumerate(prompts(11))]
    for found, request in zip(Engine(params, model, CONFIG).run(asked), asked, strict=True):
        tokens, logprobs = greedy(params, model, request.prompt, request.max_tokens)
        assert found.tokens.tolist() == tokens and found.reason == "length"
        np.testing.assert_allclose(found.logprobs, logprobs, atol=1e-4)


def test_draws_do_not_depend_on_neighbours_and_have_the_trainer_s_log_probabilities(given):
    params, model = given
    asked = [Request(i, p, 12, Sampling(temperature=1.3), seed=100 + i) for i, p in enumerate(prompts(8, seed=1))]
    together = Engine(params, model, CONFIG).run(asked)
    one = Engine(params, model, CONFIG)
    for found, request in zip(together, asked, strict=True):
        (alone,) = one.run([request])
        assert found.tokens.tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(found.logprobs, alone.logprobs, atol=1e-5)
        whole = [*request.prompt, *found.tokens.tolist()]
        table = log_softmax(read(params, model, whole)[0] / 1.3)
        n = len(request.prompt)
        np.testing.assert_allclose(found.logprobs, [table[n + i - 1, t] for i, t in enumerate(found.tokens)], atol=1e-4)


def test_what_is_said_once_is_not_said_again():
    params = init(DENSE)
    once = tuple(range(0, DENSE.vocab_size, 2))  # half of the vocabulary
    engine = Engine(params, DENSE, EngineConfig(slots=3, length=40, once=once))
    asked = prompts(5)
    answers = engine.run(Request(i, p, 12, Sampling(temperature=0.0)) for i, p in enumerate(asked))
    for prompt, found in zip(asked, answers, strict=True):
        said = []
        for _ in range(12):
            row = np.array(logits_of(params, DENSE, [*prompt, *said])[-1])
            row[[t for t in said if t in once]] = -np.inf
            said.append(int(row.argmax()))
        assert found.tokens.tolist() == said
        counts = {t: found.tokens.tolist().count(t) for t in once}
        assert max(counts.values()) <= 1


def test_equal_prompts_are_read_once(monkeypatch):
    params, read = init(DENSE), []
    admit = engine_module.admit
    monkeypatch.setattr(engine_module, "admit", lambda *a, **k: read.append(a[2].shape) or admit(*a, **k))
    engine = Engine(params, DENSE, dataclasses.replace(CONFIG, slots=4))
    found = engine.run([Request(i, [5, 6, 7], 6, seed=i) for i in range(4)])
    assert read == [(1, 8)]
    assert len({tuple(c.tokens.tolist()) for c in found}) > 1


def test_stop_tokens_and_stop_texts():
    params = init(DENSE)
    prompt = prompts(1, seed=5)[0]
    free, _ = greedy(params, DENSE, prompt, 20)
    stop = free[7]
    first = free.index(stop)
    config = dataclasses.replace(CONFIG, stop_ids=(stop,))
    calm = Sampling(temperature=0)
    stopped, unstopped = Engine(params, DENSE, config).run(
        [Request(0, prompt, 20, calm), Request(1, prompt, 20, calm, ignore_stop_ids=True)])
    assert stopped.tokens.tolist() == free[:first + 1] and stopped.reason == "stop"
    assert unstopped.tokens.tolist() == free and unstopped.reason == "length"

    tokenizer = build_word_tokenizer([" ".join(f"w{i}" for i in range(60))])
    engine = Engine(params, DENSE, CONFIG, tokenizer=tokenizer)
    wanted = tokenizer.decode([free[9]])
    if wanted:
        place = next(i for i in range(1, 21) if wanted in tokenizer.decode(free[:i]))
        (found,) = engine.run([Request(0, prompt, 20, calm, stop=(wanted,))])
        assert found.tokens.tolist() == free[:place] and found.reason == "stop"


def test_new_weights_between_steps_keep_the_caches():
    first, second = init(DENSE), init(DENSE, 4)
    prompt = prompts(1, seed=2)[0]
    engine = Engine(first, DENSE, CONFIG, version=7)
    engine.submit(Request("a", prompt, 12, Sampling(temperature=0)))
    assert engine.step(5) == []
    assert engine.partial()["a"].tolist() == greedy(first, DENSE, prompt, 5)[0]
    engine.update(second, version=8)
    found = []
    while not found:
        found = engine.step()
    assert found[0].versions.tolist() == [7] * 5 + [8] * 7


@pytest.mark.slow
def test_routes_are_those_of_a_whole_pass():
    params, model = init(EXPERTS), EXPERTS
    engine = Engine(params, model, dataclasses.replace(CONFIG, keep_routes=True))
    for found in engine.run([Request(i, p, 9, seed=i) for i, p in enumerate(prompts(5, seed=4))]):
        whole = [*found.prompt, *found.tokens.tolist()]
        ids = read(params, model, whole)[1]  # [L, T, k]
        assert found.routes.shape == (model.num_layers, len(whole) - 1, 2)
        np.testing.assert_array_equal(np.sort(found.routes, -1), np.sort(ids[:, :-1], -1))


def test_one_program_a_shape():
    params = init(DENSE)
    engine_module.advance.clear_cache()
    engine = Engine(params, DENSE, CONFIG)
    engine.run([Request(i, p, 2 + i, Sampling(temperature=i % 2), seed=i) for i, p in enumerate(prompts(9))])
    assert engine_module.advance._cache_size() == 1  # pyright: ignore[reportFunctionMemberAccess]


def test_a_cancelled_request_frees_its_slot():
    engine = Engine(init(DENSE), DENSE, dataclasses.replace(CONFIG, slots=1))
    engine.submit(Request("a", [1, 2], 30))
    engine.submit(Request("b", [3], 4))
    engine.step(3)
    partial = engine.cancel("a")
    assert partial is not None and partial.reason == "cancelled" and len(partial.tokens) == 3
    assert engine.cancel("nobody") is None
    found = []
    while not found:
        found = engine.step()
    assert found[0].id == "b" and len(found[0].tokens) == 4 and engine.idle


@pytest.mark.parametrize(("request_", "text"), [
    (Request(0, [], 3), "empty prompt"), (Request(0, [99], 3), "0..47"), (Request(0, [1] * 40, 3), "length=40"),
    (Request(0, [1], 0), "max_tokens=0"), (Request(0, [1], 2, stop=("x",)), "tokenizer"),
])
def test_bad_requests_are_refused_and_harm_nobody(request_, text):
    engine = Engine(init(DENSE), DENSE, CONFIG)
    with pytest.raises(ConfigError, match=text):
        engine.submit(request_)
    assert engine.idle


def test_bidirectional_models_and_wrong_lengths_are_refused():
    params = init(DENSE)
    with pytest.raises(ConfigError, match="causal"):
        Engine(params, dataclasses.replace(DENSE, causal=False), CONFIG)
    with pytest.raises(ConfigError, match="length=100"):
        Engine(params, DENSE, EngineConfig(length=100))


def test_steps_run_without_transfers():
    params = models.unstack(init(DENSE), DENSE)
    state = engine_module.empty_slots(DENSE, CONFIG.slots, CONFIG.length)
    arguments = jax.device_put((jnp.int32(4), jnp.int32(1), jnp.int32(0)))
    with jax.transfer_guard("disallow"):
        state = engine_module.advance(params, state, *arguments, model=DENSE, stop_ids=())
    chex.assert_shape(state.tokens, (3, 40))


def passes(monkeypatch):
    """Shapes of the prompts of each pass, filled in as they come."""
    seen = []
    admit = engine_module.admit
    monkeypatch.setattr(engine_module, "admit", lambda *a, **k: seen.append(a[2].shape) or admit(*a, **k))
    return seen


@pytest.mark.parametrize(("refill", "expected"), [(1, [4, 1, 1, 1, 1]), (2, [4, 2, 2]), (3, [4, 4, 1])])
def test_refills_wait_for_each_other(monkeypatch, refill, expected):
    """The first four end five steps apart, and one, two or three of them (padded to four) are replaced at a time."""
    seen = passes(monkeypatch)
    engine = Engine(init(DENSE), DENSE, EngineConfig(slots=4, length=64, chunk=60, prompt_bucket=16, refill=refill))
    asked = [Request(i, [i + 1], 5 + 5 * i if i < 4 else 30) for i in range(8)]
    assert [len(c.tokens) for c in engine.run(asked)] == [5, 10, 15, 20, 30, 30, 30, 30]
    assert [rows for rows, _ in seen] == expected


def test_a_request_waits_for_a_free_slot_no_longer_than_a_chunk(monkeypatch):
    seen = passes(monkeypatch)
    engine = Engine(init(DENSE), DENSE, EngineConfig(slots=4, length=64, chunk=6, prompt_bucket=16, refill=4))
    for i in range(8):
        engine.submit(Request(i, [i + 1], 2 if i == 0 else 40))
    assert [c.id for c in engine.step()] == [0] and len(seen) == 1  # six steps, though one was done after two
    engine.step(1)
    assert len(seen) == 2 and len(engine.partial()[4]) == 1
    # With nobody waiting decoding goes on to the end of the chunk; one that comes finds its slot at once.
    engine = Engine(init(DENSE), DENSE, EngineConfig(slots=4, length=64, chunk=6, prompt_bucket=16, refill=4))
    engine.submit(Request("a", [1], 40))
    engine.step()
    engine.submit(Request("b", [2], 40))
    engine.step()
    assert {name: len(tokens) for name, tokens in engine.partial().items()} == {"a": 12, "b": 6}


def test_prompts_are_read_in_passes_of_bounded_size(monkeypatch):
    seen = passes(monkeypatch)
    params = init(DENSE)
    calm = Sampling(temperature=0)
    asked = [Request(i, p, 4, calm) for i, p in enumerate(prompts(13, seed=9, longest=8))]
    shape = EngineConfig(slots=13, length=40, prompt_bucket=8, read_tokens=35)
    found = Engine(params, DENSE, shape).run(asked)
    assert {width for _, width in seen} == {8} and max(rows for rows, _ in seen) == 4
    assert sum(rows for rows, _ in seen) - len({tuple(r.prompt) for r in asked}) < 128 // 8
    for c, request in zip(found, asked, strict=True):
        assert c.tokens.tolist() == greedy(params, DENSE, request.prompt, 4)[0]
    seen.clear()
    alone = Engine(params, DENSE, dataclasses.replace(shape, read_tokens=1)).run(asked[:3])
    assert [c.tokens.tolist() for c in alone] == [c.tokens.tolist() for c in found[:3]]
    assert {rows for rows, _ in seen} == {1}


@pytest.mark.parametrize(("count", "width", "most", "expected"), [
    (1, 64, 4096, [1]), (3, 64, 4096, [4]), (5, 64, 4096, [4, 1]), (6, 64, 4096, [4, 2]), (7, 64, 4096, [8]),
    (13, 64, 4096, [8, 4, 1]), (32, 64, 1024, [16, 16]), (31, 64, 1024, [16, 16]), (5, 64, 300, [4, 1]),
    (3, 1024, 512, [1, 1, 1]), (3, 1024, 4096, [2, 1]), (9, 8, 4096, [16]),
])
def test_passes_are_powers_of_two_with_little_padding(count, width, most, expected):
    assert engine_module._parts(count, width, most) == expected


@pytest.mark.parametrize("refill", [0, 5])
def test_refill_lies_within_the_slots(refill):
    with pytest.raises(ConfigError, match=f"refill={refill}"):
        EngineConfig(slots=4, refill=refill)
