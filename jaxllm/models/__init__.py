"""One decoder-only transformer in Flax Linen, causal or bidirectional, behind pure functions.

Entry points: `ModelConfig`, `preset`, `init`, `abstract`, `logical_axes`, `apply`, and for decoders
that cache between a layer's halves `embed`, `project`, `finish`, `logits`. Architectures: LLaDA
(arXiv 2502.09992), Dream (2508.15487), Llama 3, Qwen2.5, Qwen3, SmolLM2; mixtures of experts (`moe.py`): Mixtral,
Qwen3-MoE, LLaDA-MoE. Not here: dropout, layers of different kinds in one model.
"""

from jaxllm.models.api import abstract, apply, init, logical_axes
from jaxllm.models.cache import KVCache, empty_cache
from jaxllm.models.config import ModelConfig
from jaxllm.models.moe import RouterStats
from jaxllm.models.transformer import Output

__all__ = ["KVCache", "ModelConfig", "Output", "RouterStats", "abstract", "apply", "empty_cache", "init",
           "logical_axes"]
