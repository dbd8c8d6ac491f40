"""`config.json` of Gemma-2, to and from `ModelConfig`."""

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

_TANH = "gelu_pytorch_tanh"
_SLIDING, _FULL = "sliding_attention", "full_attention"


def read_gemma2(data: Mapping[str, Any], source: str) -> ModelConfig:
    """The description that the file's contents give."""
    act, biased = data.get("hidden_activation") or _TANH, bool(data.get("attention_bias"))
    check(act == _TANH, f"{source}: hidden_activation", act, f"not supported; only {_TANH!r}")
    check(not data.get("use_bidirectional_attention"), f"{source}: use_bidirectional_attention", True,
          "not supported; a bidirectional model says is_causal: false")
    rope, window = rotary_settings(data), data.get("sliding_window", 4096) or 0
    layers = data["num_hidden_layers"]
    pattern = _pattern(data.get("layer_types") or [_FULL if i % 2 else _SLIDING for i in range(layers)], layers, source)
    if not window or True not in pattern:
        window, pattern = 0, ()
    return ModelConfig(
        vocab_size=data["vocab_size"], d_model=data["hidden_size"], num_layers=layers,
        num_heads=data["num_attention_heads"], num_kv_heads=data["num_key_value_heads"],
        head_dim=data.get("head_dim", 256), d_mlp=data["intermediate_size"],
        max_length=data["max_position_embeddings"],
        rope_theta=float(rope.get("rope_theta") or data.get("rope_theta") or 10_000.0),
        rope_scaling=read_rope_scaling(data, source), rms_norm_eps=data.get("rms_norm_eps", 1e-6),
        norm="rms_plus_one", mlp="geglu", post_norms=True, scale_embeddings=True, qkv_bias=biased, o_bias=biased,
        query_pre_attn_scalar=int(data.get("query_pre_attn_scalar", 256)),
        attention_cap=float(data.get("attn_logit_softcapping", 50.0) or 0.0),
        logit_cap=float(data.get("final_logit_softcapping", 30.0) or 0.0), window=window, window_layers=pattern,
        tie_embeddings=bool(data.get("tie_word_embeddings", True)), family="gemma2",
        score_head=is_scored(data, "gemma2", source), **read_direction(data), **dtypes(data), **token_ids(data))


def _pattern(kinds: list[str], layers: int, source: str) -> tuple[bool, ...]:
    """The shortest pattern that repeats to `kinds`."""
    check(len(kinds) == layers and set(kinds) <= {_SLIDING, _FULL}, f"{source}: layer_types", kinds,
          f"must name {_SLIDING} or {_FULL} for each of {layers} layers")
    own = tuple(kind == _SLIDING for kind in kinds)
    return next(own[:n] for n in range(1, layers + 1) if all(own[i] == own[i % n] for i in range(layers)))


def gemma2_contents(config: ModelConfig) -> dict[str, Any]:
    """The file's contents without what all families state."""
    c = config
    return {"hidden_size": c.d_model, "num_hidden_layers": c.num_layers, "num_attention_heads": c.num_heads,
            "num_key_value_heads": c.num_kv_heads, "head_dim": c.head_dim, "intermediate_size": c.d_mlp,
            "max_position_embeddings": c.max_length, "rope_theta": c.rope_theta, "rms_norm_eps": c.rms_norm_eps,
            "hidden_act": _TANH, "hidden_activation": _TANH, "attention_bias": c.qkv_bias,
            "query_pre_attn_scalar": c.query_pre_attn_scalar or c.head_dim,
            "attn_logit_softcapping": c.attention_cap or None, "final_logit_softcapping": c.logit_cap or None,
            "sliding_window": c.window or None,
            "layer_types": [_SLIDING if own else _FULL for own in c.windowed],
            "tie_word_embeddings": c.tie_embeddings, **rope_scaling_contents(c), **direction_contents(c)}
