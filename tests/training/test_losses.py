"""Token losses piece by piece: against naive numpy, and what the compiled gradient holds in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models.presets import preset
from jaxllm.parallel import make_mesh, on_mesh, shardings, token_sharding
from jaxllm.parallel.collectives import collectives
from jaxllm.training import losses

MODEL = preset("llada-tiny", vocab_size=96, mask_id=95, eos_id=94, pad_id=94)


def naive(params, hidden, targets):
    logits = np.asarray(hidden, np.float64) @ np.asarray(params["head"]["kernel"], np.float64)
    loss, right = np.zeros(targets.shape), np.zeros(targets.shape)
    for b, t in np.ndindex(targets.shape):
        row = logits[b, t]
        loss[b, t] = np.log(np.sum(np.exp(row - row.max()))) + row.max() - row[targets[b, t]]
        right[b, t] = np.argmax(row) == targets[b, t]
    return loss, right


@pytest.mark.parametrize("limit", [1 << 26, 3 * 96 * 13, 3 * 96 * 4])
def test_pieces_give_the_naive_losses_and_gradients(monkeypatch, limit):
    monkeypatch.setattr(losses, "MAX_LOGITS", limit)
    params = models.init(MODEL, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, 29, MODEL.d_model))
    targets = jax.random.randint(jax.random.key(2), (3, 29), 0, 96)
    loss, right = losses.token_losses(params, MODEL, hidden, targets)
    expected, hits = naive(params, hidden, np.asarray(targets))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(right, hits)

    # d loss / d hidden = (softmax - one-hot) W^T
    grad = jax.grad(lambda h: losses.token_losses(params, MODEL, h, targets)[0].sum())(hidden)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    logits = np.asarray(hidden, np.float64) @ kernel
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    np.testing.assert_allclose(grad, (probability - np.eye(96)[np.asarray(targets)]) @ kernel.T, atol=1e-5)


def test_whole_logits_never_exist(monkeypatch):
    b, t, v = 2, 64, MODEL.vocab_size
    monkeypatch.setattr(losses, "MAX_LOGITS", b * v * 8)
    params = models.init(MODEL, jax.random.key(0))
    hidden, targets = jnp.zeros((b, t, MODEL.d_model)), jnp.zeros((b, t), jnp.int32)
    text = jax.jit(jax.grad(lambda p, h: losses.token_losses(p, MODEL, h, targets)[0].sum(), (0, 1))).lower(
        params, hidden).compile().as_text()
    assert f"f32[{b},8,{v}]" in text
    assert f"f32[{b},{t},{v}]" not in text
    assert f"f32[{t // 8},{b},8,{v}]" not in text


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 4, "sequence": 2}])
def test_on_a_mesh_the_head_is_gathered_once(monkeypatch, sizes, tied):
    """However many pieces; losses and the gradient are the naive ones."""
    monkeypatch.setattr(losses, "MAX_LOGITS", 2 * 96 * 4)
    mesh, model = make_mesh(**sizes), dataclasses.replace(MODEL, tie_embeddings=tied)
    params = models.init(model, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (8, 32, model.d_model))
    targets = jax.random.randint(jax.random.key(2), (8, 32), 0, 96)
    placed = jax.device_put(params, shardings(models.logical_axes(model), mesh))
    rows = token_sharding(mesh)
    inputs = jax.device_put((hidden, targets), rows)

    def total(params, hidden, targets):
        loss, right = losses.token_losses(params, model, hidden, targets)
        return loss.sum(), (loss, right)

    with on_mesh(mesh):
        compiled = jax.jit(jax.grad(total, has_aux=True)).lower(placed, *inputs).compile()
    found, (loss, right) = compiled(placed, *inputs)
    kernel = params["embed"]["embedding"].T if tied else params["head"]["kernel"]
    expected, hits = naive({"head": {"kernel": kernel}}, hidden, np.asarray(targets))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_array_equal(right, hits)
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability /= probability.sum(-1, keepdims=True)
    # d loss / d W = hidden^T (softmax - one-hot)
    slope = np.einsum("btd,btv->dv", hidden, probability - np.eye(96)[np.asarray(targets)])
    gradient = found["embed"]["embedding"].T if tied else found["head"]["kernel"]
    np.testing.assert_allclose(gradient, slope, atol=1e-4)

    traffic = list(collectives(compiled.as_text(), 8, 8))
    whole = model.d_model * 96 * 4 // mesh.shape["tensor"]
    gathered = [c for c in traffic if c.kind == "all-gather" and c.size >= whole]
    assert [(c.size, c.times) for c in gathered] == [(whole, 1)]
    part = whole // mesh.shape["fsdp"]
    summed = [c for c in traffic if c.kind in ("all-reduce", "reduce-scatter") and c.size >= part]
    assert summed and all(c.times == 1 for c in summed)
