"""The kernels of other backends against the plain form: splash interpreted, cuDNN's call by its XLA form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import flash
from jaxllm.models.layers import attend
from jaxllm.models.presets import preset
from jaxllm.parallel import make_mesh, on_mesh


def inputs(b=2, h=4, g=2, t=256, d=16):
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (b, n, t, d)) for key, n in zip(keys, (h, g, g), strict=True))
    segments = jnp.asarray(np.repeat([[1, 1, 2, 3], [1, 2, 2, 0]], t // 4, axis=1), jnp.int32)
    return q, k, v, segments


@pytest.mark.parametrize("causal", [False, True])
def test_splash_is_plain_attention_with_its_gradient(causal):
    q, k, v, segments = inputs()
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    if causal:
        mask = mask & jnp.tril(jnp.ones((256, 256), bool))
    weight = jax.random.normal(jax.random.key(4), (2, 256, 4, 16))

    def plain(q, k, v):
        return jnp.sum(weight * attend(q, k, v, mask))

    def fast(q, k, v):
        return jnp.sum(weight * flash.splash(q, k, v, segments, causal, interpret=True))

    expected, want = jax.value_and_grad(plain, argnums=(0, 1, 2))(q, k, v)
    found, got = jax.value_and_grad(fast, argnums=(0, 1, 2))(q, k, v)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), got, want)


def test_splash_on_a_mesh():
    q, k, v, segments = inputs()
    expected = flash.splash(q, k, v, segments, True, interpret=True)
    mesh = make_mesh(data=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    with on_mesh(mesh):
        found = jax.jit(lambda *x: flash.splash(*x, True, interpret=True))(q, k, v, segments)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_cudnns_call_means_plain_attention():
    q, k, v, segments = inputs()
    mask = segments[:, None, :, None] == segments[:, None, None, :]
    np.testing.assert_allclose(flash.cudnn(q, k, v, mask, "xla"), attend(q, k, v, mask), atol=1e-5)
    np.testing.assert_allclose(flash.cudnn(q, k, v, None, "xla"), attend(q, k, v, None), atol=1e-5)


def test_which_kernel(monkeypatch):
    half = preset("llama-3.2-1b")
    assert flash.kernel(half, 4096, "gpu") == "plain"  # no such GPU here
    monkeypatch.setattr(flash, "_has_cudnn_kernel", lambda: True)
    assert flash.kernel(half, 4096, "gpu") == "cudnn"
    assert flash.kernel(half, 4095, "gpu") == "plain"
    assert flash.kernel(half, 4096, "tpu") == "splash"
    assert flash.kernel(half, 4000, "tpu") == flash.kernel(half, 4096, "cpu") == "plain"
    assert flash.kernel(dataclasses.replace(half, activation_dtype="float32"), 4096, "gpu") == "plain"
    assert flash.kernel(dataclasses.replace(half, attention="plain"), 4096, "gpu") == "plain"
    with pytest.raises(ConfigError, match="multiple of 128, not 100"):
        flash.kernel(dataclasses.replace(half, attention="splash"), 100)


def test_a_models_mask_reaches_the_kernel(monkeypatch):
    """A whole forward pass by the interpreted kernel, packed, against the plain one; rows with `visible` stay plain."""
    real, calls = flash.splash, []

    def interpreted(*args):
        calls.append(args)
        return real(*args, interpret=True)

    monkeypatch.setattr(flash, "splash", interpreted)
    config = preset("llada-tiny", causal=True, num_kv_heads=2)
    fast = dataclasses.replace(config, attention="splash")
    params = models.init(fast, jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (2, 128), 0, 250)
    segments = jnp.asarray(np.repeat([[1, 2, 2, 0], [1, 1, 2, 3]], 32, axis=1), jnp.int32)
    expected = models.apply(params, config, tokens, segment_ids=segments).logits
    found = models.apply(params, fast, tokens, segment_ids=segments).logits
    assert calls
    real_rows = np.asarray(segments) > 0
    np.testing.assert_allclose(np.asarray(found)[real_rows], np.asarray(expected)[real_rows], atol=2e-4)
    calls.clear()
    models.apply(params, fast, tokens, visible=jnp.ones((2, 128, 128), bool))
    assert not calls
