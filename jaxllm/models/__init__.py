"""One decoder-only transformer in Flax Linen, causal or bidirectional, behind pure functions.

Entry points: `ModelConfig`, `preset`, `init`, `abstract`, `logical_axes`, `apply`, and for decoders
that cache between a layer's halves `embed`, `project`, `finish`, `logits`. Architectures: LLaDA
(arXiv 2502.09992), Dream (2508.15487), Llama 3, Qwen2.5, Qwen3, SmolLM2, GPT-NeoX (Pythia, 2304.01373), Gemma-2
(2408.00118); mixtures of experts (`moe.py`): Mixtral, Qwen3-MoE, LLaDA-MoE. Layers of a model differ in their sliding
windows alone (`masks.py`). Layers may be left out and repeated (`paths.py`). Not here: dropout.
"""

from jaxllm.models.api import abstract, apply, init, logical_axes
from jaxllm.models.cache import KVCache, empty_cache
from jaxllm.models.config import ModelConfig, with_lora, with_score_head
from jaxllm.models.lora import TARGETS as LORA_TARGETS
from jaxllm.models.lora import LoraConfig, join_adapters, merge_adapters, split_adapters
from jaxllm.models.moe import RouterStats
from jaxllm.models.paths import check_path, follow
from jaxllm.models.transformer import Output
from jaxllm.models.unrolled import LayerCache, unstack

__all__ = ["LORA_TARGETS", "KVCache", "LayerCache", "LoraConfig", "ModelConfig", "Output", "RouterStats", "abstract",
           "apply", "check_path", "empty_cache", "follow", "init", "join_adapters", "logical_axes", "merge_adapters",
           "split_adapters", "unstack", "with_lora", "with_score_head"]
