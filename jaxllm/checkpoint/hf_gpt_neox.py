"""`config.json` of GPT-NeoX (Pythia), to and from `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllm.checkpoint.hf_fields import (
    direction_contents,
    dtypes,
    is_scored,
    read_direction,
    read_rope_scaling,
    rope_scaling_contents,
    rotary_settings,
    token_ids,
)
from jaxllm.config import check
from jaxllm.models import ModelConfig

# Their names of activations; three write the same tanh form.
_MLPS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh"}


def read_gpt_neox(data: Mapping[str, Any], source: str) -> ModelConfig:
    """The description that the file's contents give."""
    act, rope, heads = data.get("hidden_act", "gelu"), rotary_settings(data), data["num_attention_heads"]
    check(act in _MLPS, f"{source}: hidden_act", act, f"not supported; only {', '.join(_MLPS)}")
    biased = bool(data.get("attention_bias", True))
    return ModelConfig(
        vocab_size=data["vocab_size"], d_model=data["hidden_size"], num_layers=data["num_hidden_layers"],
        num_heads=heads, num_kv_heads=heads, head_dim=data["hidden_size"] // heads, d_mlp=data["intermediate_size"],
        max_length=data["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or data.get("rotary_emb_base") or 10_000.0),
        rope_scaling=read_rope_scaling(data, source),
        rotary_fraction=float(rope.get("partial_rotary_factor") or data.get("rotary_pct", 0.25)),
        rms_norm_eps=data.get("layer_norm_eps", 1e-5), norm="layer", mlp=_MLPS[act],  # type: ignore[arg-type]
        parallel_residual=bool(data.get("use_parallel_residual", True)), qkv_bias=biased, o_bias=biased, mlp_bias=True,
        tie_embeddings=bool(data.get("tie_word_embeddings", False)), family="gpt_neox",
        score_head=is_scored(data, "gpt_neox", source), **read_direction(data), **dtypes(data), **token_ids(data))


def gpt_neox_contents(config: ModelConfig) -> dict[str, Any]:
    """The file's contents without what all families state."""
    c = config
    return {"hidden_size": c.d_model, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "intermediate_size": c.d_mlp, "max_position_embeddings": c.max_length, "rotary_emb_base": c.rope_theta,
            "rotary_pct": c.rotary_fraction, "layer_norm_eps": c.rms_norm_eps,
            "hidden_act": "gelu_pytorch_tanh" if c.mlp == "gelu_tanh" else "gelu",
            "use_parallel_residual": c.parallel_residual, "attention_bias": c.qkv_bias,
            "tie_word_embeddings": c.tie_embeddings, **rope_scaling_contents(c), **direction_contents(c)}
