"""Checkpoints: training state by orbax, Hugging Face directories, GGUF files, LoRA adapters.

Entry points: `load_pretrained`, `save_pretrained`, `load_gguf`, `Checkpointer`. Loading runs no remote
code and unpickles nothing; a training checkpoint is compared with its manifest before it is restored.
"""

from jaxllm.checkpoint.adapters import merge_directory, save_adapters
from jaxllm.checkpoint.gguf import load_gguf, smollm2_path
from jaxllm.checkpoint.hf_config import config_from_huggingface, config_to_huggingface, read_config
from jaxllm.checkpoint.huggingface import load_pretrained, save_pretrained
from jaxllm.checkpoint.manager import Checkpointer, CheckpointError

__all__ = ["CheckpointError", "Checkpointer", "config_from_huggingface", "config_to_huggingface", "load_gguf",
           "load_pretrained", "merge_directory", "read_config", "save_adapters", "save_pretrained", "smollm2_path"]
