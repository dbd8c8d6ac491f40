"""The table from logical axis names to mesh axes. Every sharding in the project is read off it."""

from __future__ import annotations

Rules = dict[str, str | tuple[str, ...] | None]

RULES: Rules = {
    # activations
    "batch": ("data", "fsdp", "expert"),
    "length": "sequence",
    "act_embed": None,
    # parameters
    "layers": None,
    "vocab": "tensor",
    "embed": "fsdp",
    "norm": None,
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "mlp": "tensor",
    "lora_rank": None,
    "expert": "expert",
    "router": None,
}
