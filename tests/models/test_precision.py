"""Half-precision activations over float32 weights: gradients of weights are summed in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import models
from jaxllm.models.layers import _product
from jaxllm.models.presets import preset
from jaxllm.parallel import make_mesh, on_mesh


def test_the_product_and_its_gradients_by_hand():
    """`[T, H, K] x [H, K, D]`, two dims summed over, against float64 sums of the same rounded numbers."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 2, 3)).astype(jnp.bfloat16)
    kernel, weight = jax.random.normal(keys[1], (2, 3, 5)), jax.random.normal(keys[2], (64, 5)).astype(jnp.bfloat16)
    y, back = jax.vjp(lambda x, k: _product(x, k, 2, None), x, kernel)
    dx, dk = back(weight)
    assert (y.dtype, dx.dtype, dk.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
    wide = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (x, kernel, weight)]
    np.testing.assert_allclose(np.asarray(y, np.float64), np.einsum("thk,hkd->td", wide[0], wide[1]), rtol=1e-2,
                               atol=1e-2)
    np.testing.assert_allclose(np.asarray(dx, np.float64), np.einsum("td,hkd->thk", wide[2], wide[1]), rtol=1e-2,
                               atol=1e-2)
    # No rounding to 8 bits between the sum over tokens and the weight's gradient.
    np.testing.assert_allclose(dk, np.einsum("thk,td->hkd", wide[0], wide[2]), rtol=1e-5, atol=1e-5)


def test_gradients_cross_devices_in_float32():
    config = preset("llada-tiny", activation_dtype="bfloat16", num_layers=1)
    params = models.init(config, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (8, 16), 0, 250)

    def loss(params, tokens):
        return jnp.sum(models.apply(params, config, tokens).logits)

    mesh = make_mesh()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with on_mesh(mesh):
        lowered = jax.jit(jax.grad(loss)).lower(params, jax.ShapeDtypeStruct(tokens.shape, tokens.dtype, sharding=rows))
        text = lowered.compile().as_text()
    sums = [line for line in text.splitlines() if " all-reduce(" in line or " all-reduce-start(" in line]
    assert sums and not any("bf16[" in line.split("all-reduce")[0] for line in sums), sums


def test_a_half_precision_head_still_sums_in_float32():
    config = preset("llada-tiny")
    params = models.init(config, jax.random.key(0))
    hidden = jax.random.normal(jax.random.key(1), (3, config.d_model))
    exact = models.api.unembed(params, config, hidden)
    half = models.api.unembed(params, dataclasses.replace(config, head_dtype="bfloat16"), hidden)
    assert half.dtype == jnp.float32
    rounded = [np.asarray(x.astype(jnp.bfloat16), np.float64) for x in (hidden, params["head"]["kernel"])]
    np.testing.assert_allclose(half, rounded[0] @ rounded[1], rtol=1e-5, atol=1e-5)
    assert 1e-6 < float(jnp.max(jnp.abs(half - exact))) < 0.1
