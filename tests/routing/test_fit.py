"""Class weights against the paper's figures, focal loss against numpy and optax, features, training, files."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from jaxllm.config import ConfigError
from jaxllm.routing.config import FitConfig
from jaxllm.routing.counts import identity
from jaxllm.routing.fit import Features, agreement, class_weights, collect, fit_routers, focal_loss, layer_logits
from jaxllm.routing.forward import sweep
from jaxllm.routing.problems import Reading
from jaxllm.routing.router import RouterConfig, decide, init_routers, router_logits
from jaxllm.routing.saved import load_routers, model_hash, save_routers
from tests.models.test_transformer import random_model


def test_class_weights_are_those_of_the_published_counts():
    labels = np.repeat([0, 1, 2], [4399, 120956, 1457])
    np.testing.assert_allclose(class_weights(labels, 0.999), [0.916, 0.905, 1.179], atol=1e-3)
    np.testing.assert_allclose(class_weights(labels, 0.9999), [0.754, 0.268, 1.978], atol=1e-3)
    np.testing.assert_allclose(class_weights(labels, 0.0), 1)
    np.testing.assert_allclose(class_weights(np.array([1, 1, 0]), 0.9), [1.9 / 1.45, 1 / 1.45, 0], atol=1e-6)


def test_focal_loss():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 4, 3)).astype(np.float32), rng.integers(0, 3, (5, 4))
    weights = np.array([0.5, 1.0, 1.5], np.float32)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    p = np.take_along_axis(p, labels[..., None], -1)[..., 0]
    for gamma in (0.0, 2.0):
        want = -weights[labels] * (1 - p) ** gamma * np.log(p)
        np.testing.assert_allclose(focal_loss(jnp.array(logits), jnp.array(labels), jnp.array(weights), gamma), want,
                                   rtol=1e-5)
    plain = focal_loss(jnp.array(logits), jnp.array(labels), jnp.ones(3), 0.0)
    np.testing.assert_allclose(plain, optax.softmax_cross_entropy_with_integer_labels(jnp.array(logits),
                                                                                      jnp.array(labels)), rtol=1e-5)


def test_the_knob():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.2, 0.5, 0.3]]))
    for lean, want in ((-1.0, [0, 0, 0]), (-0.5, [0, 2, 1]), (0.5, [1, 1, 1]), (1.0, [2, 2, 2]), (0.7, [1, 1, 1]),
                       (0.8, [2, 2, 2]), (-0.3, [1, 2, 1]), (-0.35, [0, 2, 1]), (-0.6, [0, 2, 1]), (-0.65, [0, 2, 0])):
        assert decide(logits, lean).tolist() == want, lean


def test_features_are_the_sweeps():
    params, config = random_model("llama", num_layers=3)
    rng = np.random.default_rng(0)
    read = [Reading(tuple(rng.integers(0, 40, n).tolist()), prompt) for n, prompt in ((4, 4), (8, 8), (7, 2))]
    counts = np.array([[1, 0, 2], [1, 1, 1], [0, 2, 1]], np.int8)
    router = RouterConfig(width=8, windows=4)
    found = collect(params, config, read, counts, router, batch=2, chunk=1, bucket=8)
    assert found.pooled.shape == (3, 3, 4, config.d_model) and found.held.sum(1).tolist() == [4, 4, 2]
    for i, r in enumerate(read):
        n = len(r.tokens)
        tokens = jnp.array([r.tokens + (0,) * (8 - n)])
        alone = sweep(params, tokens, jnp.array([n]), jnp.array(counts[i:i + 1]), model=config, chunk=1, windows=4,
                      features=True, prompt_lengths=jnp.array([r.prompt]))
        np.testing.assert_allclose(found.pooled[i], alone.features[:, 0], atol=1e-5)


def planted(n=400, layers=3, windows=4, d=8):
    """The label of layer l is read off direction l of the mean window."""
    rng = np.random.default_rng(0)
    pooled = rng.normal(size=(n, layers, windows, d)).astype(np.float32)
    value = pooled.mean(2)[:, np.arange(layers), np.arange(layers)]
    labels = np.where(value < -0.5, 0, np.where(value > 0.6, 2, 1)).astype(np.int8)
    return Features(pooled, np.ones((n, windows), bool), labels)


def test_routers_learn_what_can_be_read_and_nothing_else():
    config = FitConfig(epochs=60, learning_rate=5e-3, warmup=50, validation=0.25)
    routers, report = fit_routers(planted(), RouterConfig(width=16, windows=4), config)
    found = report["validation_agreement"]
    assert found["accuracy"] > 0.9 and found["macro_f1"] > 0.85 and found["always_once"] < 0.75
    assert report["loss"][-1] < 0.3 * report["loss"][0] and sum(report["labels"].values()) == 1200
    shuffled = planted()
    shuffled = shuffled._replace(labels=np.random.default_rng(1).permutation(shuffled.labels))
    _, control = fit_routers(shuffled, RouterConfig(width=16, windows=4), config)
    assert control["validation_agreement"]["accuracy"] < found["always_once"] + 0.05
    again, same = fit_routers(planted(), RouterConfig(width=16, windows=4), config)
    assert same == report
    jax.tree.map(np.testing.assert_array_equal, again, routers)
    # All layers together are each layer alone.
    data = planted(4)
    logits = layer_logits(routers, jnp.asarray(data.pooled), jnp.asarray(data.held))
    for layer in range(3):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], routers)
        np.testing.assert_allclose(logits[:, layer], router_logits(one, data.pooled[:, layer], data.held), atol=1e-5)


def test_agreement():
    labels, chosen = np.array([[0, 1, 1, 2], [1, 1, 1, 1]]), np.array([[0, 1, 0, 1], [1, 1, 1, 1]])
    found = agreement(chosen, labels)
    assert found["accuracy"] == 0.75 and found["always_once"] == 0.75
    assert found["f1"] == {"skip": pytest.approx(2 / 3), "once": pytest.approx(10 / 12), "repeat": 0.0}


def test_files(tmp_path):
    routers = init_routers(RouterConfig(width=8), 3, 8, jax.random.key(0))
    save_file({"w": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    base, path = model_hash(tmp_path), tmp_path / "routers.safetensors"
    save_routers(path, routers, RouterConfig(width=8, windows=3), base)
    assert model_hash(tmp_path) == base  # the routers beside it are not the model
    found = load_routers(path, base, 3)
    assert found.config == RouterConfig(width=8, windows=3)
    jax.tree.map(np.testing.assert_array_equal, found.routers, routers)
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    for arguments, message in (((path, model_hash(tmp_path), 3), "routers of another model"),
                               ((path, base, 4), "routers of 3 layers; the model has 4"),
                               ((tmp_path / "no", base, 3), "no such file"),
                               ((tmp_path / "model.safetensors", base, 3), "not routers")):
        with pytest.raises(ConfigError, match=message):
            load_routers(*arguments)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        load_routers(path, base, 3)
    with pytest.raises(ConfigError, match=r"no \.safetensors here"):
        model_hash(tmp_path.parent / "nothing")
    assert identity(3).tolist() == [1, 1, 1]
