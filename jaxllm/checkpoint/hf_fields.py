"""Parts of a Hugging Face `config.json` that families share: dtypes, token ids, rotary stretches, score heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllm.config import ConfigError, check
from jaxllm.models import ModelConfig
from jaxllm.models.config import RopeScaling

# Families that transformers has a ...ForSequenceClassification of, which with one label is a reward model.
SCORER = "ForSequenceClassification"
SCORED = ("llama", "qwen2", "qwen3", "gpt_neox", "gemma2", "mixtral", "qwen3_moe")


def dtypes(data: Mapping[str, Any]) -> dict[str, Any]:
    """The stated dtype, of weights and activations."""
    name = str(data.get("dtype") or data.get("torch_dtype") or "float32").removeprefix("torch.")
    name = name if name in ("float32", "bfloat16", "float16") else "float32"
    return {"weight_dtype": name, "activation_dtype": name}


def token_ids(data: Mapping[str, Any]) -> dict[str, Any]:
    """Special tokens under our names."""
    ids = {}
    for ours, theirs in (("mask_id", "mask_token_id"), ("eos_id", "eos_token_id"), ("pad_id", "pad_token_id"),
                         ("bos_id", "bos_token_id")):
        value = data.get(theirs)
        if isinstance(value, list):  # instruct models list several ends
            value = value[0] if value else None
        ids[ours] = value
    return ids


def is_scored(data: Mapping[str, Any], family: str, source: str) -> bool:
    """Whether the model is a reward model: `transformers`' classifier with a single label."""
    if family not in SCORED or not any(str(a).endswith(SCORER) for a in data.get("architectures") or ()):
        return False
    # Files that say nothing of labels are told by the shape of their head.
    labels = data.get("num_labels") or len(data.get("id2label") or (0,))
    check(labels == 1, f"{source}: num_labels", labels, "a classifier of several labels is not supported; only 1, a "
          "reward model")
    return True


def rotary_settings(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """What transformers 5 gathers under `rope_parameters`; empty in older files."""
    return data.get("rope_parameters") or {}


def read_rope_scaling(data: Mapping[str, Any], source: str) -> RopeScaling | None:
    """The stretch of the rotary wavelengths, None for none.

    transformers stretches `dynamic` ones in rows longer than `max_position_embeddings`, which is ours too then.
    """
    scaling = data.get("rope_scaling") or rotary_settings(data)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(float(scaling["factor"]), kind="linear")
    if kind == "dynamic":
        return RopeScaling(float(scaling["factor"]), original_max_length=data["max_position_embeddings"],
                           kind="dynamic")
    if kind == "llama3":
        return RopeScaling(scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"],
                           scaling["original_max_position_embeddings"])
    raise ConfigError(f"{source}: rope_type={kind!r} is not supported; supported: default, llama3, linear, dynamic")


def rope_scaling_contents(config: ModelConfig) -> dict[str, Any]:
    """`rope_scaling` as every version of transformers reads it; nothing for plain RoPE."""
    scaling = config.rope_scaling
    if scaling is None:
        return {}
    out: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        out |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_max_length}
    return {"rope_scaling": out}


def read_direction(data: Mapping[str, Any]) -> dict[str, Any]:
    """`causal`, from the switch by which transformers makes its decoders bidirectional, and our `shift_logits`."""
    return {"causal": bool(data.get("is_causal", True)), "shift_logits": bool(data.get("shift_logits", False))}


def direction_contents(config: ModelConfig) -> dict[str, Any]:
    """What `read_direction` reads; nothing for a causal model."""
    shifted = {"shift_logits": True} if config.shift_logits else {}
    return shifted if config.causal else {"is_causal": False, **shifted}
