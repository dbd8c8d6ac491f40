"""The optimisers: Muon against singular vectors by numpy, its sharded state, decay on matrices alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
