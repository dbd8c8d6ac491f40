"""Masked-diffusion language models: the objective, and decoders from full recomputation to Elastic-Cache.

Entry points: `open_model`, `decode`, `decode_prompts`, `DecodeConfig`, `METHODS`, `masked_diffusion_loss`, `elbo`.
Papers: LLaDA (arXiv 2502.09992), Dream (2508.15487), Fast-dLLM (2505.22618), Elastic-Cache (2510.14973).
Not here: block-diffusion models (LLaDA2), whose prefix cache is exact.
"""

from jaxllm.diffusion.config import METHODS, DecodeConfig
from jaxllm.diffusion.decode import Result, advance, decode, decode_prompts, finish, pad_prompts, prepare
from jaxllm.diffusion.loading import shipped_model
from jaxllm.diffusion.objective import MaskedDiffusionConfig, corrupt, elbo, masked_diffusion_loss
from jaxllm.diffusion.statistics import forward_flops, layer_rows
from jaxllm.diffusion.train import DiffusionTrainConfig, diffusion_objective
from jaxllm.generation.loading import open_model
from jaxllm.models import unstack

__all__ = ["METHODS", "DecodeConfig", "DiffusionTrainConfig", "MaskedDiffusionConfig", "Result", "advance", "corrupt",
           "decode", "decode_prompts", "diffusion_objective", "elbo", "finish", "forward_flops", "layer_rows",
           "masked_diffusion_loss", "open_model", "pad_prompts", "prepare", "shipped_model", "unstack"]
