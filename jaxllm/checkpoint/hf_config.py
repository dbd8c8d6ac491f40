"""`config.json` of Hugging Face checkpoints, to and from `ModelConfig`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxllm.checkpoint.hf_fields import (
    SCORED,
    SCORER,
    dtypes,
    is_scored,
    read_rope_scaling,
    rope_scaling_contents,
    rotary_settings,
    token_ids,
)
from jaxllm.checkpoint.hf_gemma2 import gemma2_contents, read_gemma2
from jaxllm.checkpoint.hf_gpt_neox import gpt_neox_contents, read_gpt_neox
from jaxllm.config import ConfigError, check
from jaxllm.files import read_json
from jaxllm.models import ModelConfig
from jaxllm.models.config import MIXTURE_FAMILIES
from jaxllm.models.rope import base

# model_type -> our family
FAMILIES = {"llada": "llada", "Dream": "dream", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
            "gpt_neox": "gpt_neox", "gemma2": "gemma2", "lladamoe": "llada_moe", "mixtral": "mixtral",
            "qwen3_moe": "qwen3_moe"}
_ARCHITECTURES = {"llada": "LLaDAModelLM", "dream": "DreamModel", "llama": "LlamaForCausalLM",
                  "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM",
                  "gemma2": "Gemma2ForCausalLM", "llada_moe": "LLaDAMoEModelLM",
                  "mixtral": "MixtralForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM"}

# Switches of OLMo-style configs that only one value of is implemented.
_LLADA_FIXED = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True,
                "include_bias": False, "include_qkv_bias": False, "bias_for_layer_norm": False, "alibi": False,
                "scale_logits": False, "input_emb_norm": False, "attention_layer_norm": False,
                "multi_query_attention": False}
# The same for mixtures of experts. LLaDA-MoE's code never renormalises, whatever its config says of norm_topk_prob.
_MIXTURE_FIXED = {"qwen3_moe": {"decoder_sparse_step": 1, "mlp_only_layers": []}, "mixtral": {"sliding_window": None},
                  "llada_moe": {"partial_rotary_factor": 1, "clip_qkv": None, "moe_router_enable_expert_bias": False,
                                "moe_router_score_function": "softmax", "routed_scaling_factor": 1,
                                "router_num_group": None, "router_topk_group": None}}
_LLADA_MOE_MASK = 156895  # in the tokenizer of the published checkpoints, not in their config.json


def read_config(directory: str | Path) -> ModelConfig:
    """The description in `directory/config.json`.

    Raises:
      ConfigError: no such file, not JSON, or an architecture that is not supported.
    """
    file = Path(directory) / "config.json"
    data = read_json(file)
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: expected a JSON object")
    return config_from_huggingface(data, str(file))


def config_from_huggingface(data: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
    """`ModelConfig` of the contents of a `config.json`.

    Raises:
      ConfigError: unsupported architecture or switch, missing key.
    """
    kind = data.get("model_type")
    supported = ", ".join(FAMILIES)
    if kind not in FAMILIES:
        raise ConfigError(f"{source}: model_type={kind!r} is not supported; supported: {supported}")
    family = FAMILIES[kind]
    if family == "llada" and "expert_intermediate_size" in data:
        family = "llada_moe"  # published under the model_type of its dense predecessor
    if family not in MIXTURE_FAMILIES and (data.get("num_experts") or data.get("num_local_experts")):
        raise ConfigError(f"{source}: architectures={data.get('architectures')} is a mixture of experts that is not "
                          f"supported; supported mixtures: {', '.join(MIXTURE_FAMILIES)}")
    try:
        if family in _READERS:
            return _READERS[family](data, source)
        return _llama_like(data, family, source)
    except KeyError as err:
        raise ConfigError(f"{source}: missing key {err.args[0]!r} of model_type={kind!r}") from None
    except (TypeError, ZeroDivisionError, AttributeError) as err:
        raise ConfigError(f"{source}: a value of model_type={kind!r} has the wrong type or is zero ({err})") from None
    except ConfigError as err:
        raise ConfigError(str(err) if str(err).startswith(source) else f"{source}: {err}") from None


# Settings of a run that no checkpoint states. A weight's dtype and a mixture's losses are stated.
_RUN_ONLY = {"remat", "activation_dtype", "head_dtype", "attention", "dispatch", "lora"}


def config_to_huggingface(config: ModelConfig) -> dict[str, Any]:
    """Contents of a `config.json` that `transformers` or the model's own code reads.

    `dynamic` rotary wavelengths of a model that reads longer rows than its pretraining's are written as the plain ones
    of the base that they come to.

    Raises:
      ConfigError: the family's format cannot say what the config says.
    """
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "dynamic" and scaling.original_max_length != config.max_length:
        config = dataclasses.replace(config, rope_theta=base(config), rope_scaling=None)
    out = _contents(config)
    read = _compared(config_from_huggingface(out, "model"))
    for name, value in _compared(config).items():
        if name not in _RUN_ONLY and read[name] != value:
            raise ConfigError(f"model.{name}={value!r}: a checkpoint of family {config.family!r} reads back "
                              f"{read[name]!r}; choose another model.family of {', '.join(FAMILIES.values())}, or "
                              "export=false in a training run")
    return out


def _compared(config: ModelConfig) -> dict[str, Any]:
    """The fields, where two spellings of the same are one."""
    return {**dataclasses.asdict(config), "window_layers": config.windowed,
            "query_pre_attn_scalar": config.query_pre_attn_scalar or config.head_dim}


def _contents(config: ModelConfig) -> dict[str, Any]:
    c = config
    check(not c.score_head or c.family in SCORED, "model.family", c.family,
          f"a model with score_head is written as one of {', '.join(SCORED)}; choose one of these")
    ids = {"bos_token_id": c.bos_id, "eos_token_id": c.eos_id, "pad_token_id": c.pad_id}
    if c.mask_id is not None:
        ids["mask_token_id"] = c.mask_id
    name = _ARCHITECTURES[c.family]
    labels = {}
    if c.score_head:
        name = name.replace("ForCausalLM", SCORER)
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    common: dict[str, Any] = {"architectures": [name], **labels, "vocab_size": c.vocab_size,
                              "torch_dtype": c.weight_dtype, **ids}
    if c.family in _WRITERS:
        return {"model_type": c.family, **common, **_WRITERS[c.family](c)}
    common |= {"rms_norm_eps": c.rms_norm_eps, "rope_theta": c.rope_theta}
    if c.family == "llada":
        return {"model_type": "llada", **common, "embedding_size": c.vocab_size, "d_model": c.d_model,
                "n_layers": c.num_layers, "n_heads": c.num_heads, "n_kv_heads": c.num_kv_heads,
                "mlp_hidden_size": c.d_mlp, "max_sequence_length": c.max_length, "weight_tying": c.tie_embeddings,
                "rope_full_precision": True, **_LLADA_FIXED}
    kind = {"dream": "Dream", "llada_moe": "llada"}.get(c.family, c.family)
    return {"model_type": kind, **common, "hidden_size": c.d_model,
            "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.d_mlp,
            "max_position_embeddings": c.max_length, "tie_word_embeddings": c.tie_embeddings, "hidden_act": "silu",
            "attention_bias": False, "use_sliding_window": False, **_mixture_contents(c), **rope_scaling_contents(c)}


def _mixture_contents(c: ModelConfig) -> dict[str, Any]:
    if c.family not in MIXTURE_FAMILIES:
        return {}
    out = {**_MIXTURE_FIXED[c.family], "num_experts_per_tok": c.experts_per_token,
           "router_aux_loss_coef": c.balance_coef, "router_z_loss_coef": c.z_coef}
    if c.family == "mixtral":
        return {**out, "num_local_experts": c.num_experts}
    out |= {"num_experts": c.num_experts, "norm_topk_prob": c.router == "softmax_renormalized"}
    if c.family == "qwen3_moe":
        return {**out, "moe_intermediate_size": c.d_expert}
    return {**out, "dense_intermediate_size": c.d_mlp, "expert_intermediate_size": c.d_expert,
            "shared_expert_intermediate_size": c.d_shared_expert or None, "qk_layernorm": c.qk_norm,
            "moe_layer_freq": [1] * c.num_layers}


def _mixture(data: Mapping[str, Any], family: str, source: str) -> dict[str, Any]:
    """The fields that a mixture of experts adds to or sets in `ModelConfig`; none for other families."""
    if family not in MIXTURE_FAMILIES:
        return {}
    for key, value in _MIXTURE_FIXED[family].items():
        if data.get(key, value) not in (value, None):
            raise ConfigError(f"{source}: {key}={data[key]!r} is not supported; only {value!r}")
    if set(data.get("moe_layer_freq") or [1]) != {1}:
        raise ConfigError(f"{source}: moe_layer_freq={data['moe_layer_freq']!r} is not supported; every layer must be "
                          "a mixture (1)")
    # transformers 5 writes num_local_experts for every family.
    count = data.get("num_experts") or data["num_local_experts"]
    out: dict[str, Any] = {"num_experts": count, "experts_per_token": data["num_experts_per_tok"],
                           "balance_coef": float(data.get("router_aux_loss_coef") or 0.0),
                           "z_coef": float(data.get("router_z_loss_coef") or 0.0)}
    if family == "mixtral":
        return {**out, "d_expert": data["intermediate_size"], "router": "softmax_renormalized"}
    if family == "qwen3_moe":
        return {**out, "d_expert": data["moe_intermediate_size"],
                "router": "softmax_renormalized" if data.get("norm_topk_prob") else "softmax"}
    mask = data.get("mask_token_id")
    if mask is None and data["vocab_size"] > _LLADA_MOE_MASK:
        mask = _LLADA_MOE_MASK
    return {**out, "d_expert": data["expert_intermediate_size"], "router": "softmax", "mask_id": mask,
            "d_shared_expert": data.get("shared_expert_intermediate_size") or 0}


def _llada(data: Mapping[str, Any], source: str) -> ModelConfig:
    for key, value in _LLADA_FIXED.items():
        if data.get(key, value) not in (value, None):
            raise ConfigError(f"{source}: {key}={data[key]!r} is not supported; only {value!r}")
    heads = data["n_heads"]
    return ModelConfig(
        vocab_size=data.get("embedding_size") or data["vocab_size"], d_model=data["d_model"],
        num_layers=data["n_layers"], num_heads=heads, num_kv_heads=data.get("n_kv_heads") or heads,
        head_dim=data["d_model"] // heads, d_mlp=data["mlp_hidden_size"], max_length=data["max_sequence_length"],
        rope_theta=data.get("rope_theta", 10_000.0), rms_norm_eps=data.get("rms_norm_eps", 1e-5), causal=False,
        tie_embeddings=bool(data.get("weight_tying", False)), family="llada", **dtypes(data), **token_ids(data))


def _llama_like(data: Mapping[str, Any], family: str, source: str) -> ModelConfig:
    if data.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{source}: hidden_act={data['hidden_act']!r} is not supported; only 'silu'")
    for key in ("attention_bias", "mlp_bias", "use_sliding_window"):
        if data.get(key):
            raise ConfigError(f"{source}: {key}={data[key]!r} is not supported")
    heads, mixture = data["num_attention_heads"], _mixture(data, family, source)
    rope = rotary_settings(data)
    return ModelConfig(
        vocab_size=data["vocab_size"], d_model=data["hidden_size"], num_layers=data["num_hidden_layers"],
        num_heads=heads, num_kv_heads=data.get("num_key_value_heads") or heads,
        head_dim=data.get("head_dim") or data["hidden_size"] // heads,
        d_mlp=data["dense_intermediate_size" if family == "llada_moe" else "intermediate_size"],
        max_length=data["max_position_embeddings"],
        rope_theta=float(data.get("rope_theta") or rope.get("rope_theta") or 10_000.0),
        rope_scaling=read_rope_scaling(data, source),
        rms_norm_eps=data.get("rms_norm_eps", 1e-5 if family in ("llada_moe", "mixtral") else 1e-6),
        causal=family not in ("dream", "llada_moe"), shift_logits=family == "dream",
        qkv_bias=family in ("qwen2", "dream"),
        qk_norm=family in ("qwen3", "qwen3_moe") or bool(family == "llada_moe" and data.get("qk_layernorm")),
        tie_embeddings=bool(data.get("tie_word_embeddings", False)), family=family,  # type: ignore[arg-type]
        score_head=is_scored(data, family, source),
        **dtypes(data), **{**token_ids(data), **mixture})


_READERS = {"llada": _llada, "gpt_neox": read_gpt_neox, "gemma2": read_gemma2}
_WRITERS = {"gpt_neox": gpt_neox_contents, "gemma2": gemma2_contents}
