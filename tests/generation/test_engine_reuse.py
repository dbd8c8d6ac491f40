"""Prompts that go on from what a slot holds: the same tokens as from nothing, and only the rest is read."""

import dataclasses

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.generation import engine as engine_module
from tests.generation.test_engine import CONFIG, DENSE, EXPERTS, greedy, init, logits_of, prompts, read

REUSE = dataclasses.replace(CONFIG, length=64, reuse=True)
WINDOWED = dataclasses.replace(DENSE, window=6)


@pytest.fixture
def extended(monkeypatch):
    """Tokens of `rest` that each call of `extend` reads, padding included, and prompts' lengths."""
    calls = []
    inner = engine_module.extend

    def counting(params, state, rest, known, lengths, *args, **kwargs):
        calls.append((rest.shape, known.tolist(), lengths.tolist()))
        return inner(params, state, rest, known, lengths, *args, **kwargs)
    monkeypatch.setattr(engine_module, "extend", counting)
    return calls


def talk(engine, turns, count, seed=0):
    """`count` conversations at once of `turns` turns; each goes on from all that was said. Prompts and answers."""
    rng = np.random.default_rng(seed)
    said, out = [rng.integers(0, 48, 20).tolist() for _ in range(count)], []
    for turn in range(turns):
        done = engine.run([Request((turn, i), list(p), 2 + (i + turn) % 4, Sampling(temperature=0))
                           for i, p in enumerate(said)])
        for i, c in enumerate(done):
            out.append((list(said[i]), c))
            said[i] += [*c.tokens.tolist(), *rng.integers(0, 48, 1 + (i + turn) % 5).tolist()]
    return out


@pytest.mark.parametrize("model", [DENSE, EXPERTS, WINDOWED], ids=["dense", "experts", "windowed"])
def test_a_conversation_is_a_loop_without_caches(model, extended):
    """Five turns of three in three slots; the ring of 64 columns goes round."""
    params = init(model)
    found = talk(Engine(params, model, REUSE), turns=5, count=3)
    for prompt, completion in found:
        tokens, logprobs = greedy(params, model, prompt, len(completion.tokens))
        assert completion.tokens.tolist() == tokens
        np.testing.assert_allclose(completion.logprobs, logprobs, atol=2e-5)
    assert len(extended) == 4  # all turns after the first, three slots at once
    for shape, known, lengths in extended:
        assert shape == (4, 16) and sum(n > 1 for n in lengths) == 3
        # All that stood there when the answer ended, but for its last token.
        assert all(known[i] > lengths[i] - 8 for i in range(3))


def test_experts_are_those_of_a_whole_pass(extended):
    params = init(EXPERTS)
    config = dataclasses.replace(REUSE, keep_routes=True)
    for prompt, completion in talk(Engine(params, EXPERTS, config), turns=3, count=2):
        tokens = [*prompt, *completion.tokens.tolist()]
        ids = np.asarray(read(params, EXPERTS, tokens)[1])
        np.testing.assert_array_equal(completion.routes, ids[:, :len(tokens) - 1])
    assert extended


def test_draws_are_those_without_reuse(extended):
    params = init(DENSE)
    first = prompts(3, seed=4, longest=30)
    for engine in (Engine(params, DENSE, REUSE), Engine(params, DENSE, dataclasses.replace(REUSE, reuse=False))):
        out = []
        said = [[*p, *range(20)] for p in first]
        for turn in range(2):
            done = engine.run([Request(i, p, 6, Sampling(temperature=1.0), seed=10 * turn + i)
                               for i, p in enumerate(said)])
            said = [[*p, *c.tokens.tolist(), 7] for p, c in zip(said, done, strict=True)]
            out.append([c.tokens.tolist() for c in done])
        if engine.config.reuse:
            kept = out
    assert kept == out and len(extended) >= 1


def test_each_goes_on_from_its_own(extended):
    """Two that share a beginning: the longer match gets the slot; the third, which shares none, reads all."""
    params = init(DENSE)
    engine = Engine(params, DENSE, REUSE)
    shared = list(range(18))
    one, other = [*shared, *[40] * 6], [*shared, *[41] * 6]
    a, b = engine.run([Request("a", one, 3, Sampling(temperature=0)), Request("b", other, 3, Sampling(temperature=0))])
    asked = {"b": [*other, *b.tokens.tolist(), 5], "c": list(range(47, 20, -1)), "a": [*one, *a.tokens.tolist(), 5]}
    done = engine.run([Request(i, p, 4, Sampling(temperature=0)) for i, p in asked.items()])
    for completion, prompt in zip(done, asked.values(), strict=True):
        assert completion.tokens.tolist() == greedy(params, DENSE, prompt, 4)[0]
    ((_, known, lengths),) = extended
    assert sorted(zip(known, lengths, strict=True))[-2:] == [(26, 28), (26, 28)]


@pytest.mark.parametrize("steps,reused", [(20, True), (45, False)])
def test_what_the_ring_came_round_over_is_read_again(extended, steps, reused):
    """A prompt of 24 and 4 tokens on from it, then so many steps of another slot, of 64 columns."""
    params, prompt = init(DENSE), list(range(24))
    engine = Engine(params, DENSE, REUSE)
    engine.run([Request(0, prompt, 4, Sampling(temperature=0))])
    engine.run([Request(1, [45, 46], steps, Sampling(temperature=0))])
    (found,) = engine.run([Request(2, [*prompt, 9], 2, Sampling(temperature=0))])
    assert found.tokens.tolist() == greedy(params, DENSE, [*prompt, 9], 2)[0]
    assert bool(extended) is reused


def test_new_weights_and_a_reset_forget(extended):
    engine = Engine(init(DENSE), DENSE, REUSE)
    for first, forget in enumerate((lambda: engine.update(init(DENSE, 5), 1), engine.reset)):
        prompt = list(range(first, first + 20))
        engine.run([Request(0, prompt, 2, Sampling(temperature=0))])
        forget()
        (found,) = engine.run([Request(0, [*prompt, 3], 3, Sampling(temperature=0))])
        assert found.tokens.tolist() == greedy(init(DENSE, 5), DENSE, [*prompt, 3], 3)[0]
    assert not extended


def test_what_ran_while_weights_changed_is_not_gone_on_with(extended):
    """Its first keys are of the old weights."""
    engine, prompt = Engine(init(DENSE), DENSE, REUSE), list(range(20))
    engine.submit(Request(0, prompt, 6, Sampling(temperature=0)))
    engine.step(2)
    engine.update(init(DENSE, 5), 1)
    while not engine.idle:
        engine.step()
    for reads in (0, 1):  # the second goes on from what the first has read anew
        (found,) = engine.run([Request(1, [*prompt, 3], 3, Sampling(temperature=0))])
        assert found.tokens.tolist() == greedy(init(DENSE, 5), DENSE, [*prompt, 3], 3)[0]
        assert len(extended) == reads


def test_a_cancelled_request_leaves_what_it_read(extended):
    params = init(DENSE)
    engine = Engine(params, DENSE, REUSE)
    prompt = list(range(20))
    engine.submit(Request(0, prompt, 30, Sampling(temperature=0)))
    engine.step(5)
    cut = engine.cancel(0)
    assert cut is not None
    again = [*prompt, *cut.tokens.tolist()]
    (found,) = engine.run([Request(1, again, 4, Sampling(temperature=0))])
    assert found.tokens.tolist() == greedy(params, DENSE, again, 4)[0]
    assert extended[0][1][0] == len(again) - 1
    np.testing.assert_allclose(found.logprobs[0], logits_of(params, DENSE, again)[-1].max(), atol=2e-5)


def test_one_program_a_shape():
    engine_module.extend.clear_cache()  # pyright: ignore[reportAttributeAccessIssue]
    engine = Engine(init(DENSE), DENSE, REUSE)
    talk(engine, turns=4, count=3, seed=1)
    assert engine_module.extend._cache_size() == 1  # pyright: ignore[reportAttributeAccessIssue]


def test_not_with_routes_of_layers():
    with pytest.raises(ConfigError, match="reuse"):
        EngineConfig(layer_routes=True, reuse=True)
