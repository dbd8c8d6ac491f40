"""Ten products of the five mesh axes give the losses of one device: dense, with experts, GPT-NeoX and Gemma-2."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxllm.data import Batch
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh
from jaxllm.training import (
    OptimizerConfig,
    causal_loss,
    jit_step,
    make_optimizer,
    make_step,
    place_state,
)

DENSE = ModelConfig(vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_mlp=24,
                    max_length=32, causal=True)
EXPERTS = dataclasses.replace(DENSE, num_experts=4, experts_per_token=2, d_expert=12, router="softmax_renormalized",
                              balance_coef=0.01, z_coef=0.001, family="qwen3_moe")
NEOX = dataclasses.replace(DENSE, num_kv_heads=4, norm="layer", mlp="gelu", parallel_residual=True, qkv_bias=True,
                           o_bias=True, mlp_bias=True, rotary_fraction=0.5, family="gpt_neox")
GEMMA = dataclasses.replace(DENSE, norm="rms_plus_one", mlp="geglu", post_norms=True, scale_embeddings=True,
                            tie_embeddings=True, query_pre_attn_scalar=6, attention_cap=4.0, logit_cap=3.0, window=3,
                            window_layers=(True, False), family="gemma2")
PRODUCTS = [
    dict(data=8), dict(data=1, fsdp=8), dict(data=1, sequence=8), dict(data=2, fsdp=2, tensor=2),
    dict(data=2, sequence=4), dict(data=2, sequence=2, tensor=2), dict(data=1, fsdp=2, sequence=2, tensor=2),
    dict(data=2, expert=4), dict(data=1, fsdp=2, expert=2, tensor=2), dict(data=2, expert=2, sequence=2),
]


def losses(model, mesh, steps=5):
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    state, layout = place_state(model, optimizer, mesh)
    step = jit_step(make_step(causal_loss(model), optimizer, seed=0), layout, mesh)
    found = []
    for _ in range(steps):
        segments = np.ones((8, 16), np.int32)
        segments[::2, 9:] = 2
        segments[1::2, 13:] = 0
        batch = Batch(tokens=rng.integers(0, 32, (8, 16)).astype(np.int32),
                      positions=np.where(segments == 2, np.arange(16) - 9, np.arange(16)).astype(np.int32),
                      segment_ids=segments, loss_weights=(segments > 0).astype(np.float32))
        state, metrics = step(state, batch)
        found.append(float(metrics["train/loss"]))
    return found


@functools.cache
def alone(model):
    return losses(model, make_mesh(devices=jax.devices()[:1]))


def name(axes):
    return "-".join(f"{k}{v}" for k, v in axes.items() if v > 1)


# All by --slow; always one, and a mixture of experts on a mesh in tests/training/test_moe_training.py.
@pytest.mark.parametrize("model, axes", [
    pytest.param(model, axes, marks=() if i in always else pytest.mark.slow, id=f"{kind}-{name(axes)}")
    for kind, model, always in (("dense", DENSE, (6,)), ("experts", EXPERTS, ()), ("neox", NEOX, ()),
                                ("gemma2", GEMMA, ()))
    for i, axes in enumerate(PRODUCTS) if kind in ("dense", "experts") or i in (3, 6)])
def test_products_of_axes_give_the_losses_of_one_device(model, axes):
    np.testing.assert_allclose(losses(model, make_mesh(**axes)), alone(model), rtol=1e-5)
