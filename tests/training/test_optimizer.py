"""The optimisers: Muon against singular vectors by numpy, its sharded state, decay on matrices alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.models import init
from jaxllm.parallel import make_mesh
from jaxllm.training import (
    OptimizerConfig,
    causal_loss,
    jit_step,
    make_optimizer,
    make_step,
    place_state,
)
from tests.training.test_training import MODEL, batch, close

RATE = 1e-2


def one_update(name, weight_decay=0.0, seed=0, model=MODEL):
    """Parameters, random gradients and the update of a first step, numpy."""
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=RATE, schedule="constant", warmup_steps=0,
                                               weight_decay=weight_decay, clip_norm=None), 10)
    params = init(model, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    grads = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return jax.tree.map(np.asarray, (params, grads, updates))


@pytest.mark.parametrize("part, inputs", [("q", 1), ("o", 2), ("gate", 1), ("down", 1)])
def test_muon_follows_the_singular_vectors(part, inputs):
    _, grads, updates = one_update("muon")
    for gradient, update in zip(grads["layers"][part]["kernel"], updates["layers"][part]["kernel"], strict=True):
        rows = int(np.prod(gradient.shape[:inputs]))
        u, s, v = np.linalg.svd(gradient.reshape(rows, -1), full_matrices=False)
        shrunk = u.T @ (-update.reshape(rows, -1) / (RATE * 0.2 * np.sqrt(max(rows, v.shape[1])))) @ v.T
        kept = s > 0.1 * s.max()  # five Newton-Schulz steps leave the smallest behind
        assert ((np.diag(shrunk)[kept] > 0.6) & (np.diag(shrunk)[kept] < 1.3)).all()
        assert np.abs(shrunk - np.diag(np.diag(shrunk))).max() < 1e-3


def test_muon_takes_each_expert_as_a_matrix():
    from tests.training.test_moe_training import MIXTURE

    _, grads, updates = one_update("muon", model=MIXTURE)
    gradient, update = grads["layers"]["moe"]["down"]["kernel"][1, 5], updates["layers"]["moe"]["down"]["kernel"][1, 5]
    u, s, v = np.linalg.svd(gradient, full_matrices=False)
    shrunk = u.T @ (-update / (RATE * 0.2 * np.sqrt(max(gradient.shape)))) @ v.T
    kept = s > 0.1 * s.max()
    assert ((np.diag(shrunk)[kept] > 0.6) & (np.diag(shrunk)[kept] < 1.3)).all()
    assert np.abs(shrunk - np.diag(np.diag(shrunk))).max() < 1e-3


def test_muon_leaves_the_rest_to_adam():
    # Adam's first update goes against the gradient's sign by the rate; with Nesterov momentum, by
    # 1 + b1 (1 - b1) / (1 - b1^2) rates.
    _, grads, updates = one_update("muon")
    for path in (("embed", "embedding"), ("head", "kernel"), ("final_norm", "scale")):
        gradient, update = grads[path[0]][path[1]], updates[path[0]][path[1]]
        np.testing.assert_allclose(update, -RATE * (1 + 0.9 * 0.1 / 0.19) * np.sign(gradient), rtol=1e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_decay_touches_matrices_alone(name):
    params, _, plain = one_update(name)
    _, _, decayed = one_update(name, weight_decay=0.5)
    for path, update in jax.tree_util.tree_leaves_with_path(decayed):
        bare, value = plain, params
        for key in path:
            bare, value = bare[key.key], value[key.key]
        matrix = path[-1].key in ("kernel", "embedding") and (name == "adamw" or path[0].key == "layers")
        expected = -RATE * 0.5 * value if matrix else 0 * value
        np.testing.assert_allclose(update - bare, expected, atol=1e-6)


def trained_with(freeze, name="adamw", mesh=None, steps=3, accumulate=1, **changes):
    """States before and after some steps of a mixture, numpy, and its last metrics."""
    from tests.training.test_moe_training import MIXTURE

    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=RATE, warmup_steps=0, weight_decay=0.5,
                                               freeze=freeze, **changes), 10)
    mesh = make_mesh(data=1, devices=jax.devices()[:1]) if mesh is None else mesh
    state, layout = place_state(MIXTURE, optimizer, mesh)
    step = jit_step(make_step(causal_loss(MIXTURE), optimizer, seed=1, accumulate=accumulate), layout, mesh)
    before = jax.tree.map(np.asarray, state)
    for i in range(steps):
        state, _ = step(state, batch(seed=i))
    return before, jax.tree.map(np.asarray, state)


@pytest.mark.parametrize("name, mesh, accumulate", [
    pytest.param("adamw", None, 1, marks=pytest.mark.slow), ("adamw", {"data": 2, "fsdp": 2, "tensor": 2}, 2),
    pytest.param("muon", {"data": 4, "fsdp": 2}, 1, marks=pytest.mark.slow)])
def test_frozen_parameters_stay_as_they_are(name, mesh, accumulate):
    before, after = trained_with(("router", "embed"), name, mesh and make_mesh(**mesh), accumulate=accumulate)
    for path, new in jax.tree_util.tree_leaves_with_path(after.params):
        old, keys = before.params, [key.key for key in path]
        for key in keys:
            old = old[key]
        if {"router", "embed"} & set(keys):
            np.testing.assert_array_equal(new, old)
        else:
            assert (new != old).any(), keys
    # There is no moment of them, and the count of the others' says that the rest is as without.
    shapes = {x.shape for x in jax.tree.leaves(after.opt_state)}
    assert before.params["layers"]["moe"]["router"]["kernel"].shape not in shapes
    assert before.params["layers"]["q"]["kernel"].shape in shapes


def test_frozen_parameters_are_clipped_without():
    config = OptimizerConfig(learning_rate=RATE, schedule="constant", warmup_steps=0, weight_decay=0, clip_norm=1.0,
                             eps=1e3, freeze=("big",))  # so large an eps makes Adam's update that of its gradient
    params = {"big": {"kernel": jnp.ones(2)}, "small": {"kernel": jnp.ones(2)}}
    optimizer = make_optimizer(config, 10)
    grads = {"big": {"kernel": jnp.array([3e3, 4e3])}, "small": {"kernel": jnp.array([0.3, 0.4])}}
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["big"]["kernel"], [0, 0])
    np.testing.assert_allclose(updates["small"]["kernel"], -RATE * np.array([0.3, 0.4]) / 1e3, rtol=1e-3)


def test_frozen_parameters_go_through_checkpoints(tmp_path):
    from jaxllm.checkpoint import Checkpointer
    from tests.training.test_moe_training import MIXTURE

    optimizer = make_optimizer(OptimizerConfig(freeze=("router",)), 10)
    state, layout = place_state(MIXTURE, optimizer, make_mesh(data=1, devices=jax.devices()[:1]))
    state = state.replace(opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
    checkpointer = Checkpointer(tmp_path, 1)
    checkpointer.save(1, state)
    checkpointer.close()
    again, moved = place_state(MIXTURE, optimizer, make_mesh(data=4, fsdp=2), seed=1)
    restored = Checkpointer(tmp_path, 1).restore(1, jax.eval_shape(lambda: again), moved)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize("freeze, text", [(("ruoter",), "'ruoter'; did you mean router"),
                                          (("layers", "embed", "final_norm", "head"), "leaves nothing to train")])
def test_frozen_parameters_that_cannot_be(freeze, text):
    with pytest.raises(ConfigError, match=text):
        trained_with(freeze)


@pytest.mark.slow
def test_muon_on_meshes_gives_the_same_training():
    optimizer = make_optimizer(OptimizerConfig(name="muon", learning_rate=RATE, warmup_steps=0), 10)

    def after(mesh):
        state, layout = place_state(MODEL, optimizer, mesh)
        step = jit_step(make_step(causal_loss(MODEL), optimizer, seed=1), layout, mesh)
        for i in range(3):
            state, _ = step(state, batch(seed=i))
        return state

    expected = after(make_mesh(data=1, devices=jax.devices()[:1]))
    state = after(make_mesh(data=2, fsdp=2, tensor=2))
    close(state.params, expected.params, atol=1e-4)
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.shape == state.params["layers"]["gate"]["kernel"].shape]
    assert moments and all(m.sharding.shard_shape(m.shape) == (2, 8, 12) for m in moments)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state.opt_state))
