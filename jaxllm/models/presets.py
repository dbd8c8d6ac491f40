"""Model descriptions by name: published checkpoints and small models for tests and benchmarks.

Numbers of published models are those of their `config.json` on Hugging Face (base models of Qwen and
SmolLM2, whose special tokens differ from the instruct ones; the checkpoint's own config wins on load).
"""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxllm.config import ConfigError, nearest
from jaxllm.models.config import ModelConfig, RopeScaling

_BF16: dict[str, Any] = {"weight_dtype": "bfloat16", "activation_dtype": "bfloat16"}


def _config(
    family: str, vocab: int, d: int, layers: int, heads: int, kv_heads: int, d_mlp: int, *,
    head_dim: int | None = None, **rest: Any,
) -> ModelConfig:
    return ModelConfig(vocab_size=vocab, d_model=d, num_layers=layers, num_heads=heads, num_kv_heads=kv_heads,
                       head_dim=head_dim or d // heads, d_mlp=d_mlp, family=family, **{**_BF16, **rest})  # type: ignore


def _llama(*shape: int, **rest) -> ModelConfig:
    ids = {"bos_id": 128000, "eos_id": 128001}
    return _config("llama", 128256, *shape, **{"rope_theta": 5e5, "causal": True, **ids, **rest})


def _qwen25(vocab: int, *shape: int, **rest) -> ModelConfig:
    return _config("qwen2", vocab, *shape, rope_theta=1e6, rms_norm_eps=1e-6, causal=True, qkv_bias=True,
                   bos_id=151643, eos_id=151643, **rest)


def _qwen3(*shape: int, tied: bool) -> ModelConfig:
    return _config("qwen3", 151936, *shape, head_dim=128, rope_theta=1e6, rms_norm_eps=1e-6, max_length=40960,
                   causal=True, qk_norm=True, tie_embeddings=tied, bos_id=151643, eos_id=151645)


def _pythia(d: int, layers: int, heads: int) -> ModelConfig:
    return _config("gpt_neox", 50304, d, layers, heads, heads, 4 * d, max_length=2048, rotary_fraction=0.25,
                   norm="layer", mlp="gelu", parallel_residual=True, causal=True, qkv_bias=True, o_bias=True,
                   mlp_bias=True, bos_id=0, eos_id=0)


def _gemma2(*shape: int, head_dim: int, scalar: int) -> ModelConfig:
    return _config("gemma2", 256000, *shape, head_dim=head_dim, rms_norm_eps=1e-6, max_length=8192, causal=True,
                   norm="rms_plus_one", mlp="geglu", post_norms=True, scale_embeddings=True, tie_embeddings=True,
                   query_pre_attn_scalar=scalar, attention_cap=50.0, logit_cap=30.0, window=4096,
                   window_layers=(True, False), pad_id=0, eos_id=1, bos_id=2)


def _experts(count: int, per_token: int, width: int, router: str, balance_coef: float) -> dict[str, Any]:
    return {"num_experts": count, "experts_per_token": per_token, "d_expert": width, "router": router,
            "balance_coef": balance_coef}


def _smollm2(*shape: int, rope_theta: float = 1e5) -> ModelConfig:
    return _config("llama", 49152, *shape, rope_theta=rope_theta, max_length=8192, causal=True,
                   tie_embeddings=True, bos_id=0, eos_id=0)


_LLADA_8B = _config("llada", 126464, 4096, 32, 32, 32, 12288, rope_theta=5e5, max_length=4096,
                    mask_id=126336, eos_id=126081, pad_id=126081)
_LLAMA_32_ROPE = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
_FLOAT32: dict[str, Any] = {"weight_dtype": "float32", "activation_dtype": "float32"}

PRESETS: dict[str, ModelConfig] = {
    # masked diffusion
    "llada-8b": _LLADA_8B,
    "llada-1.5": _LLADA_8B,
    "dream-7b": _config("dream", 152064, 3584, 28, 28, 4, 18944, rope_theta=1e6, rms_norm_eps=1e-6,
                        max_length=131072, qkv_bias=True, shift_logits=True, mask_id=151666, eos_id=151643,
                        pad_id=151643, bos_id=151643),
    "llada-moe-7b-a1b": _config("llada_moe", 157184, 2048, 16, 16, 16, 8192, rope_theta=5e4, max_length=8192,
                                qk_norm=True, mask_id=156895, eos_id=156892, pad_id=156892,
                                **_experts(64, 8, 1024, "softmax", 0.01)),
    # causal
    "llama-3-8b": _llama(4096, 32, 32, 8, 14336, max_length=8192),
    "llama-3.2-1b": _llama(2048, 16, 32, 8, 8192, max_length=131072, rope_scaling=_LLAMA_32_ROPE,
                           tie_embeddings=True),
    "llama-3.2-3b": _llama(3072, 28, 24, 8, 8192, max_length=131072, rope_scaling=_LLAMA_32_ROPE,
                           tie_embeddings=True),
    "qwen2.5-0.5b": _qwen25(151936, 896, 24, 14, 2, 4864, max_length=32768, tie_embeddings=True),
    "qwen2.5-1.5b": _qwen25(151936, 1536, 28, 12, 2, 8960, max_length=131072, tie_embeddings=True),
    "qwen2.5-3b": _qwen25(151936, 2048, 36, 16, 2, 11008, max_length=32768, tie_embeddings=True),
    "qwen2.5-7b": _qwen25(152064, 3584, 28, 28, 4, 18944, max_length=131072),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 3072, tied=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 6144, tied=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 9728, tied=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 12288, tied=False),
    # Its release of July 2025; the first one had rope_theta 1e6 and a context of 40,960.
    "qwen3-30b-a3b": _config("qwen3_moe", 151936, 2048, 48, 32, 4, 6144, head_dim=128, rope_theta=1e7,
                             rms_norm_eps=1e-6, max_length=262144, causal=True, qk_norm=True, bos_id=151643,
                             eos_id=151645, **_experts(128, 8, 768, "softmax_renormalized", 0.001)),
    "mixtral-8x7b": _config("mixtral", 32000, 4096, 32, 32, 8, 14336, rope_theta=1e6, max_length=32768, causal=True,
                            bos_id=1, eos_id=2, **_experts(8, 2, 14336, "softmax_renormalized", 0.02)),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 1536),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 2560),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 8192, rope_theta=1.3e5),
    "pythia-160m": _pythia(768, 12, 12),
    "pythia-410m": _pythia(1024, 24, 16),
    "pythia-1b": _pythia(2048, 16, 8),
    "gemma-2-2b": _gemma2(2304, 26, 8, 4, 9216, head_dim=256, scalar=256),
    "gemma-2-27b": _gemma2(4608, 46, 32, 16, 36864, head_dim=128, scalar=144),
    # for tests and benchmarks: random weights unless trained
    "llada-tiny": _config("llada", 256, 64, 4, 4, 4, 192, rope_theta=5e5, max_length=256, mask_id=255,
                          eos_id=254, pad_id=254, **_FLOAT32),
    "llada-moe-tiny": _config("llada_moe", 256, 64, 4, 4, 4, 192, rope_theta=5e5, max_length=256, qk_norm=True,
                              mask_id=255, eos_id=254, pad_id=254, **_experts(8, 2, 64, "softmax", 0.01), **_FLOAT32),
    "llada-100m": _config("llada", 32768, 768, 12, 12, 12, 2048, rope_theta=5e5, max_length=4096,
                          tie_embeddings=True, mask_id=32767, eos_id=32766, pad_id=32766, **_FLOAT32),
}


def preset(name: str, **changes) -> ModelConfig:
    """The named preset, with `changes` to its fields.

    Raises:
      ConfigError: no such preset (names the nearest) or no such field.
    """
    if name not in PRESETS:
        raise ConfigError(f"model preset {name!r} is unknown; {nearest(name, PRESETS)}")
    fields = {f.name for f in dataclasses.fields(ModelConfig)}
    for key in changes:
        if key not in fields:
            raise ConfigError(f"model preset {name}: unknown field {key!r}; {nearest(key, fields)}")
    return dataclasses.replace(PRESETS[name], **changes)
