"""An engine used again after `reset`, and engines on devices of their own."""

import threading

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.generation import Engine, Request, Sampling
from jaxllm.parallel import make_mesh, on_mesh, shardings
from tests.generation.test_engine import CONFIG, DENSE, EXPERTS, MODELS, init, prompts


def asked(count, seed, **more):
    return [Request(i, p, 3 + 5 * (i % 4), Sampling(**{"temperature": float(i % 3), **more}), seed=seed + i)
            for i, p in enumerate(prompts(count, seed))]


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.id == b.id and a.tokens.tolist() == b.tokens.tolist() and a.reason == b.reason
        np.testing.assert_array_equal(a.logprobs.view(np.int32), b.logprobs.view(np.int32))


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_reset_engine_gives_what_a_new_one_gives_bit_for_bit(model):
    params, later = init(model), asked(9, 5)
    fresh = Engine(params, model, CONFIG).run(later)
    engine = Engine(params, model, CONFIG)
    engine.run(asked(7, 1, top_p=0.5))
    engine.submit(Request("a", [1, 2], 20))
    engine.step(3)
    with pytest.raises(ConfigError, match="reset: 1 requests are open"):
        engine.reset()
    engine.cancel("a")
    engine.reset()
    same(engine.run(later), fresh)


def devices_of(tree):
    return {device for leaf in jax.tree.leaves(tree) for device in leaf.devices()}


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "unstacked"])
@pytest.mark.parametrize("model", [DENSE, EXPERTS], ids=MODELS)
def test_an_engine_keeps_to_the_devices_of_its_mesh(model, stacked):
    requests = [Request(i, p, 3 + 5 * (i % 4), Sampling(temperature=0)) for i, p in enumerate(prompts(7))]
    expected = Engine(init(model), model, CONFIG).run(requests)
    mine, trainers = jax.devices()[6:8], make_mesh(2, 2, 1, devices=jax.devices()[:4])
    axes = models.logical_axes(model)
    params = jax.device_put(init.__wrapped__(model), shardings(axes, trainers))
    given = params if stacked else models.unstack(params, model)
    engine = Engine(given, model, CONFIG, mesh=make_mesh(1, 1, 2, devices=mine))
    with on_mesh(trainers), jax.transfer_guard_device_to_device("disallow"):  # a trainer's step around it
        found = engine.run(requests)
    for a, b in zip(found, expected, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    assert devices_of(engine._params) == devices_of(engine._state) == set(mine)
    assert engine._params["layers"][1]["q"]["kernel"].sharding.spec[1] == "tensor"
    assert engine._state.caches[0].k.sharding.shard_shape((3, 2, 40, 8)) == (3, 1, 40, 8)
    # The copy is the engine's own: a trainer's step that donates the weights takes nothing from it.
    jax.tree.map(lambda x: x.delete(), params)
    engine.reset()
    assert [c.tokens.tolist() for c in engine.run(requests)] == [c.tokens.tolist() for c in expected]


def test_weights_on_the_engine_s_own_devices_are_copied_too():
    mesh = make_mesh(1, 1, 2, devices=jax.devices()[6:8])
    params = jax.device_put(init.__wrapped__(DENSE), shardings(models.logical_axes(DENSE), mesh))
    requests = asked(4, 2, temperature=0.0)
    engine = Engine(params, DENSE, CONFIG, mesh=mesh)
    expected = engine.run(requests)
    engine.update(params, 1)
    jax.tree.map(lambda x: x.delete(), params)
    assert [c.tokens.tolist() for c in engine.run(requests)] == [c.tokens.tolist() for c in expected]


def test_a_trainer_s_thread_and_an_engine_s_do_not_meet():
    """Steps that donate the weights on some devices while an engine draws on others and is given each version."""
    one = jax.devices()[0]
    params = jax.device_put(init.__wrapped__(DENSE), one)
    step = jax.jit(lambda p: jax.tree.map(lambda x: x * 1.001, p), donate_argnums=0)
    engine = Engine(params, DENSE, CONFIG, mesh=make_mesh(1, 1, 1, devices=jax.devices()[5:6]))
    offered, taken, failures = [], threading.Semaphore(0), []

    def draw():
        try:
            for round_ in range(4):
                versions = {int(v) for c in engine.run(asked(4, round_)) for v in c.versions}
                assert versions == {round_}
                offered.append(round_)
                taken.acquire()
        except Exception as err:  # seen by the other thread below
            failures.append(err)

    thread = threading.Thread(target=draw)
    thread.start()
    for version in range(1, 5):
        while len(offered) < version and thread.is_alive():
            params = step(params)
        engine.update(params, version)
        given = np.array(params["embed"]["embedding"])
        taken.release()
        for _ in range(3):
            params = step(params)
        np.testing.assert_array_equal(engine._params["embed"]["embedding"], given)
    thread.join()
    assert not failures and devices_of(engine._params) == {jax.devices()[5]}


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match=r"mesh\.data=2"):
        Engine(init(DENSE), DENSE, CONFIG, mesh=make_mesh(2, 1, 1, devices=jax.devices()[:2]))
    with pytest.raises(ConfigError, match="does not divide"):
        Engine(init(DENSE), DENSE, CONFIG, mesh=make_mesh(1, 1, 4, devices=jax.devices()[:4]))
