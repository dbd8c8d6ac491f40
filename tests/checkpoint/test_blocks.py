"""GPT-NeoX and Gemma-2 against logits of transformers; their names, layouts, configs and adapters."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, merge_directory, save_adapters, save_pretrained
from jaxllm.checkpoint.hf_config import config_from_huggingface, config_to_huggingface
from jaxllm.config import ConfigError
from jaxllm.models import LoraConfig
from jaxllm.models.config import RopeScaling
from jaxllm.models.presets import PRESETS, preset
from jaxllm.parallel import make_mesh
from tests.golden.make_blocks import VARIANTS, changed, their_logits

GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = ("gpt_neox", "gemma2")
EACH = [(family, variant) for family in FAMILIES for variant in VARIANTS[family]]
LATER = ("tanh", "bidirectional", "sliding", "uncapped")  # by --slow
SOME = [pytest.param(*each, marks=pytest.mark.slow if each[1] in LATER else ()) for each in EACH]
forward = jax.jit(lambda params, config, tokens: models.apply(params, config, tokens).logits, static_argnums=1)


@functools.cache
def golden(family):
    params, config = load_pretrained(GOLDEN / f"{family}-tiny")
    return params, config


def variant_of(family, variant):
    """The same tensors, described anew."""
    return golden(family)[0], config_from_huggingface(changed(family, variant))


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


@pytest.mark.parametrize("family, variant", SOME)
def test_logits_are_those_of_transformers(family, variant):
    params, config = variant_of(family, variant)
    stored = np.load(GOLDEN / f"{family}-tiny" / "logits.npz")
    found = forward(params, config, stored["tokens"])
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, stored[variant], atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_golden_configs(family):
    params, config = golden(family)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config.num_parameters
    if family == "gpt_neox":
        assert config.rotary_dim == 2 and config.parallel_residual and config.norm == "layer"
    else:
        assert config.windowed == (True, False, True) and config.query_pre_attn_scalar == 24
        assert variant_of(family, "odd")[1].window_layers == (False, True)
        assert variant_of(family, "sliding")[1].window_layers == (True,)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip(tmp_path, family, shard_bytes):
    params, config = golden(family)
    save_pretrained(params, config, tmp_path / "m", shard_bytes=shard_bytes)
    again, found = load_pretrained(tmp_path / "m")
    assert found == config and same(params, again)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)
    if shard_bytes > 20_000:
        theirs = load_file(GOLDEN / f"{family}-tiny" / "model.safetensors")
        ours = load_file(tmp_path / "m" / "model.safetensors")
        assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_load_equals_the_plain_one(tmp_path, family):
    loaded, _ = load_pretrained(GOLDEN / f"{family}-tiny", mesh=make_mesh(data=2, fsdp=2, tensor=2))
    assert same(golden(family)[0], loaded)
    layers = loaded["layers"]
    q = layers["q"]["kernel"]
    assert q.sharding.shard_shape(q.shape) == (q.shape[0], 16, 2, q.shape[3])
    if family == "gpt_neox":
        shapes = {name: layers[name]["bias"].sharding.shard_shape(layers[name]["bias"].shape) for name in
                  ("q", "o", "up", "down", "attn_norm")}
        assert shapes == {"q": (2, 2, 8), "o": (2, 16), "up": (2, 24), "down": (2, 16), "attn_norm": (2, 32)}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith(("pythia", "gemma"))])
def test_presets_are_written_and_read(name):
    assert config_from_huggingface(config_to_huggingface(preset(name))) == dataclasses.replace(
        preset(name), activation_dtype="bfloat16")


def test_published_configs_are_the_presets():
    """As the files on Hugging Face have them, older keys included."""
    pythia = dict(architectures=["GPTNeoXForCausalLM"], bos_token_id=0, eos_token_id=0, hidden_act="gelu",
                  hidden_size=1024, initializer_range=0.02, intermediate_size=4096, layer_norm_eps=1e-5,
                  max_position_embeddings=2048, model_type="gpt_neox", num_attention_heads=16, num_hidden_layers=24,
                  rotary_emb_base=10000, rotary_pct=0.25, tie_word_embeddings=False, torch_dtype="float16",
                  use_cache=True, use_parallel_residual=True, vocab_size=50304)
    half = dict(weight_dtype="float16", activation_dtype="float16")
    assert config_from_huggingface(pythia) == preset("pythia-410m", **half)
    gemma = dict(architectures=["Gemma2ForCausalLM"], attention_bias=False, attn_logit_softcapping=50.0,
                 bos_token_id=2, cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0,
                 head_dim=128, hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
                 hidden_size=4608, intermediate_size=36864, max_position_embeddings=8192, model_type="gemma2",
                 num_attention_heads=32, num_hidden_layers=46, num_key_value_heads=16, pad_token_id=0,
                 query_pre_attn_scalar=144, rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=4096,
                 torch_dtype="float32", use_cache=True, vocab_size=256000)
    assert config_from_huggingface(gemma) == preset("gemma-2-27b", weight_dtype="float32", activation_dtype="float32")


def test_dynamic_wavelengths_are_written_as_what_they_come_to():
    scaling = RopeScaling(2.0, original_max_length=2048, kind="dynamic")
    short, long = (preset("pythia-160m", rope_scaling=scaling, max_length=n) for n in (2048, 8192))
    assert config_from_huggingface(config_to_huggingface(short)) == short
    found = config_from_huggingface(config_to_huggingface(long))
    assert found.rope_scaling is None and found.max_length == 8192
    np.testing.assert_allclose(found.rope_theta, 1e4 * 7 ** (16 / 14))


def test_what_transformers_5_and_old_files_call_things(tmp_path):
    params, config = golden("gpt_neox")
    save_pretrained(params, config, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
    tensors["gpt_neox.layers.0.attention.bias"] = np.ones((1, 1, 64, 64), np.float32)
    tensors["gpt_neox.layers.1.attention.masked_bias"] = np.ones((), np.float32)
    save_file(tensors, str(tmp_path / "m/model.safetensors"))
    assert same(params, load_pretrained(tmp_path / "m")[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_reward_models(tmp_path, family):
    params, config = load_pretrained(GOLDEN / f"{family}-tiny", score_head=True)
    assert not np.asarray(params["head"]["kernel"]).any()
    params = {**params, "head": {"kernel": jax.random.normal(jax.random.key(0), (32, 1)) * 9}}
    save_pretrained(params, config, tmp_path / "m")
    again, found = load_pretrained(tmp_path / "m")
    assert found == config and same(params, again)
    scores = forward(params, config, np.arange(9)[None])
    assert scores.shape == (1, 9, 1) and np.abs(scores).max() > 3  # a score is not capped


@pytest.mark.parametrize("family, change, message", [
    ("gpt_neox", {"hidden_act": "relu"}, "hidden_act='relu'"),
    ("gpt_neox", {"rope_scaling": {"rope_type": "yarn"}}, "rope_type='yarn'.*supported: default, llama3, linear, dyn"),
    ("gpt_neox", {"rotary_pct": 0.1, "rope_parameters": None}, "rotary_fraction=0.1: must give an even width"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation='gelu'"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types=.* for each of 3 layers"),
    ("gemma2", {"layer_types": ["linear_attention"] * 3}, "layer_types="),
    ("gemma2", {"use_bidirectional_attention": True}, "is_causal: false")])
def test_unsupported_configs(family, change, message):
    data = {**json.loads((GOLDEN / f"{family}-tiny/config.json").read_text()), **change}
    with pytest.raises(ConfigError, match=message):
        config_from_huggingface(data)


@pytest.mark.parametrize("family, change, message", [
    ("gpt_neox", {"num_kv_heads": 2}, "num_kv_heads=2: checkpoints of family 'gpt_neox' have as many as num_heads=4"),
    ("gpt_neox", {"norm": "rms"}, "model.norm='rms': a checkpoint of family 'gpt_neox' reads back 'layer'"),
    ("gemma2", {"family": "llama"}, "family='llama': its checkpoints have no place for attn_post_norm"),
    ("gemma2", {"scale_embeddings": False}, "scale_embeddings=False: a checkpoint of family 'gemma2'")])
def test_what_a_family_cannot_say_is_refused(tmp_path, family, change, message):
    config = dataclasses.replace(golden(family)[1], **change)
    with pytest.raises(ConfigError, match=message):
        save_pretrained(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), models.abstract(config)), config,
                        tmp_path / "m")


@pytest.mark.parametrize("targets", [("q", "v", "up"), *(pytest.param(each, marks=pytest.mark.slow) for each in (
    ("q", "k", "v", "o"), ("o", "down")))])
def test_adapters_of_a_fused_matrix(tmp_path, targets):
    """Folded in from a file as in memory; the file's product is the difference of the fused matrices."""
    base, plain = golden("gpt_neox")
    lora = LoraConfig(rank=2, alpha=3.0, targets=targets)
    config = models.with_lora(plain, lora)
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
                            models.split_adapters(models.abstract(config))[0])
    moved = models.merge_adapters(models.join_adapters(adapters, base), lora)
    save_adapters(adapters, config, tmp_path / "adapter")
    folded = merge_directory(base, plain, tmp_path / "adapter")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), folded, moved)
    save_pretrained(moved, plain, tmp_path / "m")
    before, after = (load_file(d / "model.safetensors") for d in (GOLDEN / "gpt_neox-tiny", tmp_path / "m"))
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for name in filter(lambda name: "lora_A" in name, tensors):
        product = tensors[name.replace("lora_A", "lora_B")] @ tensors[name] * stated["lora_alpha"] / stated["r"]
        theirs = name.removeprefix("base_model.model.").replace(".lora_A", "")
        np.testing.assert_allclose(after[theirs] - before[theirs], product, atol=1e-4)
    assert sum("lora_A" in name for name in tensors) == 2 * len(stated["target_modules"])


@pytest.mark.parity
@pytest.mark.parametrize("family, variant", EACH)
def test_goldens_and_what_we_write_are_transformers_logits(tmp_path, family, variant):
    torch = pytest.importorskip("torch", reason="needs the parity extra: launch/setup.sh --extra parity")
    from transformers import AutoModelForCausalLM

    stored = np.load(GOLDEN / f"{family}-tiny" / "logits.npz")
    np.testing.assert_allclose(their_logits(family, variant, stored["tokens"], tmp_path), stored[variant], atol=1e-5)
    params, config = variant_of(family, variant)
    save_pretrained(params, config, tmp_path / "m")
    tokens = np.random.default_rng(1).integers(0, 40, (2, 37))
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m"), dtype=torch.float32,
                                                  attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(forward(params, config, tokens), expected, atol=1e-4)
    theirs.save_pretrained(str(tmp_path / "back"))
    again, found = load_pretrained(tmp_path / "back")
    assert found == config and same(params, again)


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_transformers(tmp_path, family):
    torch = pytest.importorskip("torch", reason="needs the parity extra: launch/setup.sh --extra parity")
    from transformers import AutoModelForSequenceClassification

    params, config = load_pretrained(GOLDEN / f"{family}-tiny", score_head=True)
    params = {**params, "head": {"kernel": jax.random.normal(jax.random.key(0), (32, 1))}}
    save_pretrained(params, dataclasses.replace(config, pad_id=39), tmp_path / "m")
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "m"), dtype=torch.float32,
                                                                attn_implementation="eager").eval()
    tokens = np.random.default_rng(0).integers(0, 39, (2, 17))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(models.apply(params, config, tokens).logits[:, -1], expected, atol=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_rounds_as_transformers_does(family):
    """Both in bfloat16: about as far from each other as either is from float32."""
    torch = pytest.importorskip("torch", reason="needs the parity extra: launch/setup.sh --extra parity")
    from transformers import AutoModelForCausalLM

    stored = np.load(GOLDEN / f"{family}-tiny" / "logits.npz")
    theirs = AutoModelForCausalLM.from_pretrained(str(GOLDEN / f"{family}-tiny"), dtype=torch.bfloat16,
                                                  attn_implementation="eager").eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(stored["tokens"])).logits.float().numpy()
    params, config = load_pretrained(GOLDEN / f"{family}-tiny", dtype="bfloat16")
    found = np.asarray(models.apply(params, config, stored["tokens"]).logits)
    apart, rounding = (np.sqrt(np.mean((x - y) ** 2)) for x, y in ((found, expected), (expected, stored["plain"])))
    assert apart < 1.5 * rounding < 0.1
