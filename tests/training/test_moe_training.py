"""Training a mixture of experts: expert parallelism changes nothing, router losses are added, metrics logged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh, on_mesh, shardings
from jaxllm.training import (
    OptimizerConfig,
    causal_loss,
    jit_step,
    make_optimizer,
    make_step,
    place_state,
)
from tests.training.test_training import MODEL, RUN, batch, close, run

MIXTURE = ModelConfig(**{**MODEL.__dict__, "family": "qwen3_moe", "num_experts": 8, "experts_per_token": 2,
                         "d_expert": 12, "router": "softmax_renormalized", "balance_coef": 0.05, "z_coef": 0.01})


def padded(seed=0):
    b = batch(seed=seed)
    b.segment_ids[3, 7:] = 0
    b.loss_weights[3, 7:] = 0
    return b


def run_steps(mesh, config=MIXTURE, steps=3):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    state, layout = place_state(config, optimizer, mesh)
    step = jit_step(make_step(causal_loss(config), optimizer, seed=1), layout, mesh)
    metrics = []
    for i in range(steps):
        state, found = step(state, padded(seed=i))
        metrics.append({name: float(value) for name, value in found.items()})
    return metrics, state


@pytest.fixture(scope="module")
def on_one_device():
    metrics, state = run_steps(make_mesh(data=1, devices=jax.devices()[:1]))
    return metrics, jax.tree.map(np.asarray, state.params)


@pytest.mark.parametrize("sizes", [pytest.param({"data": 1, "expert": 8}, marks=pytest.mark.slow),
                                   {"data": 1, "fsdp": 2, "expert": 2, "tensor": 2},
                                   pytest.param({"data": 2, "expert": 4}, marks=pytest.mark.slow),
                                   pytest.param({"data": 4, "tensor": 2}, marks=pytest.mark.slow)])
def test_meshes_give_the_training_of_one_device(sizes, on_one_device):
    mesh = make_mesh(**sizes)
    metrics, state = run_steps(mesh)
    for found, expected in zip(metrics, on_one_device[0], strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name
    close(jax.tree.map(np.asarray, state.params), on_one_device[1])
    kernel = state.params["layers"]["moe"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape)[1] == 8 // mesh.shape["expert"]


@pytest.mark.parametrize("dispatch", [pytest.param("dense", marks=pytest.mark.slow), "ragged"])
def test_other_dispatches_on_a_mesh(dispatch):
    config = ModelConfig(**{**MIXTURE.__dict__, "dispatch": dispatch})
    params, tokens = models.init(config, jax.random.key(0)), batch().tokens
    def loss(params):
        return jnp.mean(jnp.square(models.apply(params, config, tokens).logits))

    expected = jax.jit(jax.value_and_grad(loss))(params)
    mesh = make_mesh(data=2, expert=2, tensor=2)
    placed = jax.device_put(params, shardings(models.logical_axes(config), mesh))
    with on_mesh(mesh):
        close(jax.jit(jax.value_and_grad(loss))(placed), expected, atol=1e-5)


def test_each_device_holds_and_runs_its_own_experts():
    # Inside the shard_map of 4 expert groups a device's kernels are those of 2 experts, and nothing gathers all 8. Each
    # has one row of the batch; it sees the four of its group, and no logits of the router but its own.
    mesh = make_mesh(data=2, expert=4)
    shapes = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), models.abstract(MIXTURE),
                          shardings(models.logical_axes(MIXTURE), mesh))
    with on_mesh(mesh):
        text = jax.jit(lambda p: models.apply(p, MIXTURE, batch().tokens).hidden).lower(shapes).compile().as_text()
    assert "f32[2,16,12]" in text and "f32[8,16,12]" not in text and "f32[8,12,8]" not in text
    assert "reduce-scatter" in text and "f32[4,12,16]" in text and "f32[8,12,16]" not in text


def test_odd_batches_run_whole_on_every_device():
    params, tokens = models.init(MIXTURE, jax.random.key(0)), batch(rows=3).tokens
    expected = models.apply(params, MIXTURE, tokens).logits
    mesh = make_mesh(data=2, expert=4)
    placed = jax.device_put(params, shardings(models.logical_axes(MIXTURE), mesh))
    with on_mesh(mesh):
        found = jax.jit(lambda p: models.apply(p, MIXTURE, tokens).logits)(placed)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_router_losses_come_on_top_of_the_cross_entropy():
    params, b = models.init(MIXTURE, jax.random.key(0)), padded()
    plain = ModelConfig(**{**MIXTURE.__dict__, "balance_coef": 0.0, "z_coef": 0.0})
    bare, count, _ = causal_loss(plain)(params, b, jax.random.key(0))
    total, _, metrics = causal_loss(MIXTURE)(params, b, jax.random.key(0))
    aux = models.apply(params, MIXTURE, b.tokens, positions=b.positions, segment_ids=b.segment_ids).aux
    load = np.zeros((2, 8))
    for layer, ids in zip(load, np.asarray(aux.ids), strict=True):
        for e in ids[ids >= 0]:
            layer[e] += 1 / (8 * 12 - 5) / 2
    np.testing.assert_allclose(aux.load, load, rtol=1e-5)
    added = float(0.05 * jnp.mean(aux.balance) + 0.01 * jnp.mean(aux.z))
    assert float(total) == pytest.approx(float(bare) + float(count) * added, rel=1e-6)
    found = {name: float(s / d) for name, (s, d) in metrics.items()}
    assert found["moe/loss"] == pytest.approx(added, rel=1e-5)
    assert found["moe/load_cv"] == pytest.approx(np.mean(load.std(1) / load.mean(1)), rel=1e-5)
    for layer in range(2):
        each = load[layer] / load[layer].mean()
        assert found[f"moe/load_cv_layer_{layer}"] == pytest.approx(each.std(), rel=1e-5)
        assert found[f"moe/load_max_layer_{layer}"] == pytest.approx(each.max(), rel=1e-5)
    assert found["moe/balance"] == pytest.approx(float(jnp.mean(aux.balance)), rel=1e-5)


def test_the_balance_loss_evens_the_load():
    config = ModelConfig(**{**MIXTURE.__dict__, "balance_coef": 5.0, "z_coef": 0.0})
    metrics, _ = run_steps(make_mesh(data=1, devices=jax.devices()[:1]), config, steps=12)
    assert metrics[-1]["moe/balance"] < metrics[0]["moe/balance"]
    assert metrics[-1]["moe/load_cv"] < 0.7 * metrics[0]["moe/load_cv"]


@pytest.mark.slow
def test_a_diffusion_run_logs_its_routers_and_is_exported(tmp_path):
    from jaxllm.checkpoint import load_pretrained

    mixture = {"num_experts": 4, "experts_per_token": 2, "d_expert": 8, "balance_coef": 0.01, "family": "llada_moe",
               "max_length": 4096}
    stages = [{**RUN["stages"][0], "steps": 2}]
    state = run(tmp_path / "r", model={**RUN["model"], **mixture}, stages=stages,
                mesh={"data": 4, "expert": 2})
    lines = [json.loads(x) for x in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert all({"moe/load_cv", "moe/balance", "moe/z", "moe/loss"} <= x.keys() for x in lines if "train/loss" in x)
    validation = [x["validation/nll_per_token"] for x in lines if "validation/nll_per_token" in x]
    assert validation and np.isfinite(validation).all()
    params, config = load_pretrained(tmp_path / "r/model")
    assert config.num_experts == 4 and config.family == "llada_moe"
    close(params, jax.tree.map(np.asarray, state.params), atol=0)


def test_flops_count_the_experts_a_token_meets():
    from jaxllm.training import flops_per_token

    # Matrices of a layer: q, k, v, o of 16 x 16, a router of 16 x 8, two experts of three 16 x 12; the head 24 x 16.
    # Norm scales count as weights too: two of 16 a layer and the last.
    weights = 2 * (4 * 256 + 16 * 8 + 2 * 3 * 16 * 12 + 32) + 24 * 16 + 16
    assert flops_per_token(MIXTURE, 12) == 6 * weights + 12 * 2 * 16 * 12
