"""Opening a model to decode with: weights laid out for decoders, description, tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from tokenizers import Tokenizer

from jaxllm.checkpoint import load_pretrained
from jaxllm.data import load_tokenizer
from jaxllm.models import ModelConfig, unstack
from jaxllm.parallel import make_mesh


def open_model(directory: str | Path, dtype: str | None = None, tensor: int = 1) -> tuple[Any, ModelConfig, Tokenizer]:
    """Parameters with unstacked layers, description and tokenizer of a Hugging Face directory.

    Args:
      directory: as for `load_pretrained`, with a tokenizer.
      dtype: of weights and activations; the checkpoint's by default, float32 on a CPU.
      tensor: devices to split heads, MLP and vocabulary over.
    """
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"  # CPUs emulate half precision
    mesh = make_mesh(1, 1, tensor, devices=jax.devices()[:tensor])
    params, model = load_pretrained(directory, mesh=mesh, dtype=dtype)
    return unstack(params, model, donate=True), model, load_tokenizer(directory)
