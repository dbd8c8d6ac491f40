"""Hugging Face tensor names of our parameters, and how the layouts map onto each other.

Their linear weights are `[out, in]`; ours are `[in..., out...]` with heads and head width apart. Experts are one
tensor each there and stacked here; files that hold a layer's experts in one tensor are read through `split_fused`.
GPT-NeoX's q, k and v are rows of one tensor, head by head.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig

Layout = Literal["same", "matrix", "heads_out", "heads_in", "head_bias"]

# The heads of transformers' ...ForCausalLM and ...ForSequenceClassification, and what GPT-NeoX calls the former.
LANGUAGE_HEAD, SCORE, NEOX_HEAD = "lm_head.weight", "score.weight", "embed_out.weight"
_LLADA = {
    "embed.embedding": "model.transformer.wte.weight",
    "final_norm.scale": "model.transformer.ln_f.weight",
    "head.kernel": "model.transformer.ff_out.weight",  # not to be confused with a block's ff_out, its MLP's last
    "layers": "model.transformer.blocks.{i}.",
    "attn_norm.scale": "attn_norm.weight", "mlp_norm.scale": "ff_norm.weight",
    "q.kernel": "q_proj.weight", "k.kernel": "k_proj.weight", "v.kernel": "v_proj.weight",
    "o.kernel": "attn_out.weight",
    "gate.kernel": "ff_proj.weight", "up.kernel": "up_proj.weight", "down.kernel": "ff_out.weight",
}
_LLAMA = {
    "embed.embedding": "model.embed_tokens.weight",
    "final_norm.scale": "model.norm.weight",
    "head.kernel": LANGUAGE_HEAD,
    "layers": "model.layers.{i}.",
    "attn_norm.scale": "input_layernorm.weight", "mlp_norm.scale": "post_attention_layernorm.weight",
    "q.kernel": "self_attn.q_proj.weight", "k.kernel": "self_attn.k_proj.weight",
    "v.kernel": "self_attn.v_proj.weight", "o.kernel": "self_attn.o_proj.weight",
    "q.bias": "self_attn.q_proj.bias", "k.bias": "self_attn.k_proj.bias", "v.bias": "self_attn.v_proj.bias",
    "q_norm.scale": "self_attn.q_norm.weight", "k_norm.scale": "self_attn.k_norm.weight",
    "gate.kernel": "mlp.gate_proj.weight", "up.kernel": "mlp.up_proj.weight", "down.kernel": "mlp.down_proj.weight",
}
_QKV = "attention.query_key_value"
_GPT_NEOX = {
    "embed.embedding": "gpt_neox.embed_in.weight",
    "final_norm.scale": "gpt_neox.final_layer_norm.weight", "final_norm.bias": "gpt_neox.final_layer_norm.bias",
    "head.kernel": NEOX_HEAD,
    "layers": "gpt_neox.layers.{i}.",
    "attn_norm.scale": "input_layernorm.weight", "attn_norm.bias": "input_layernorm.bias",
    "mlp_norm.scale": "post_attention_layernorm.weight", "mlp_norm.bias": "post_attention_layernorm.bias",
    **{f"{part}.kernel": f"{_QKV}.weight" for part in "qkv"}, **{f"{part}.bias": f"{_QKV}.bias" for part in "qkv"},
    "o.kernel": "attention.dense.weight", "o.bias": "attention.dense.bias",
    "up.kernel": "mlp.dense_h_to_4h.weight", "up.bias": "mlp.dense_h_to_4h.bias",
    "down.kernel": "mlp.dense_4h_to_h.weight", "down.bias": "mlp.dense_4h_to_h.bias",
}
_GEMMA2 = {
    **_LLAMA,
    "o.bias": "self_attn.o_proj.bias",
    "attn_post_norm.scale": "post_attention_layernorm.weight", "mlp_norm.scale": "pre_feedforward_layernorm.weight",
    "mlp_post_norm.scale": "post_feedforward_layernorm.weight",
}
_QWEN_MOE = {
    **_LLAMA,
    "moe.router.kernel": "mlp.gate.weight",
    "moe.gate.kernel": "mlp.experts.{j}.gate_proj.weight", "moe.up.kernel": "mlp.experts.{j}.up_proj.weight",
    "moe.down.kernel": "mlp.experts.{j}.down_proj.weight",
    "moe.shared.gate.kernel": "mlp.shared_expert.gate_proj.weight",
    "moe.shared.up.kernel": "mlp.shared_expert.up_proj.weight",
    "moe.shared.down.kernel": "mlp.shared_expert.down_proj.weight",
}
_MIXTRAL = {
    **_LLAMA,
    "moe.router.kernel": "block_sparse_moe.gate.weight",
    "moe.gate.kernel": "block_sparse_moe.experts.{j}.w1.weight",
    "moe.up.kernel": "block_sparse_moe.experts.{j}.w3.weight",
    "moe.down.kernel": "block_sparse_moe.experts.{j}.w2.weight",
}
_NAMES = {"llada": _LLADA, "gpt_neox": _GPT_NEOX, "gemma2": _GEMMA2, "qwen3_moe": _QWEN_MOE, "llada_moe": _QWEN_MOE,
          "mixtral": _MIXTRAL}
_EXPERTS = ("moe.gate.kernel", "moe.up.kernel", "moe.down.kernel")
_LAYOUTS: dict[str, Layout] = {
    "head.kernel": "matrix", "gate.kernel": "matrix", "up.kernel": "matrix", "down.kernel": "matrix",
    "q.kernel": "heads_out", "k.kernel": "heads_out", "v.kernel": "heads_out", "o.kernel": "heads_in",
    "q.bias": "head_bias", "k.bias": "head_bias", "v.bias": "head_bias",
    "moe.router.kernel": "matrix", **dict.fromkeys(_EXPERTS, "matrix"),
    **dict.fromkeys(("moe.shared.gate.kernel", "moe.shared.up.kernel", "moe.shared.down.kernel"), "matrix"),
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one of our leaves lives in a checkpoint.

    Attributes:
      names: their tensor names; one a layer for stacked leaves, or one an expert, layer by layer.
      stacked: our leaf has a leading layer axis.
      experts: size of the expert axis behind it, 0 without one.
      layout: how their axes become ours.
      head_dim: width K of one head.
      shape: shape of each of their tensors.
      share: place among the `shares` leaves whose heads take turns in their tensors' rows: q, k and v of head 0, of
        head 1 and so on.
      shares: 1 where their tensors hold this leaf alone.
    """

    names: tuple[str, ...]
    stacked: bool
    experts: int
    layout: Layout
    head_dim: int
    shape: tuple[int, ...]
    share: int = 0
    shares: int = 1

    def read(self, get: Callable[[str], Any], index: tuple[slice, ...]) -> np.ndarray:
        """Our slice `index` of the leaf; `get(name)` gives something that slices like an array."""
        if not self.stacked:
            return self._part(get(self.names[0]), index)
        each = self.experts or 1
        layers = range(len(self.names) // each)[index[0]]
        if not self.experts:
            return np.stack([self._part(get(self.names[i]), index[1:]) for i in layers])
        own = range(each)[index[1]]
        return np.stack([np.stack([self._part(get(self.names[i * each + j]), index[2:]) for j in own])
                         for i in layers])

    def _part(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        k = self.head_dim
        if self.layout == "same":
            return np.asarray(tensor[index])
        if self.layout == "matrix":
            return np.asarray(tensor[index[1], index[0]]).T
        if self.layout == "heads_out":  # [H K, D] -> [D, H, K]
            part = np.asarray(tensor[_times(index[1], self.shares * k), index[0]])
            part = part.reshape(-1, self.shares, k, part.shape[1])[:, self.share]
            return part.transpose(2, 0, 1)[:, :, index[2]]
        if self.layout == "heads_in":  # [D, H K] -> [H, K, D]
            part = np.asarray(tensor[index[2], _times(index[0], k)])
            return part.reshape(part.shape[0], -1, k).transpose(1, 2, 0)[:, index[1]]
        part = np.asarray(tensor[_times(index[0], self.shares * k)])
        return part.reshape(-1, self.shares, k)[:, self.share, index[1]]

    def pieces(self, leaf: Any, host: Callable[[Any], np.ndarray] = np.asarray) -> Iterator[tuple[str, np.ndarray]]:
        """Their tensors of our leaf by name, one layer in memory at a time, brought there by `host`.

        Of tensors that it shares with other leaves, its part alone: `joined` makes the whole.
        """
        if not self.stacked:
            yield self.names[0], self.write(host(leaf))
            return
        each = self.experts or 1
        for i in range(leaf.shape[0]):
            layer = host(leaf[i])
            for j in range(each):
                yield self.names[i * each + j], self.write(layer[j] if self.experts else layer)

    def write(self, leaf: np.ndarray) -> np.ndarray:
        """Their tensor of one layer of our leaf, one expert of it."""
        if self.layout == "matrix":
            leaf = leaf.T
        elif self.layout == "heads_out":
            leaf = leaf.transpose(1, 2, 0)
        elif self.layout == "heads_in":
            leaf = leaf.transpose(2, 0, 1)
        if self.shares > 1:
            return np.ascontiguousarray(leaf.reshape(-1, self.head_dim, *self.shape[1:]))
        return np.ascontiguousarray(leaf.reshape(self.shape))


def stored(config: ModelConfig, path: tuple[str, ...], shape: tuple[int, ...]) -> Stored:
    """Where leaf `path` of our parameter tree, of `shape`, is found in a checkpoint of the config's family."""
    names = _NAMES.get(config.family, _LLAMA)
    stacked = path[0] == "layers"
    part = ".".join(path[1:] if stacked else path)
    layout, experts = _LAYOUTS.get(part, "same"), part in _EXPERTS
    one = shape[1 + experts:] if stacked else shape
    if part not in names:
        raise ConfigError(f"model.family={config.family!r}: its checkpoints have no place for {part}; choose another "
                          f"family")
    share, shares = _share(config, part, names)
    theirs = {"same": one, "matrix": one[::-1], "heads_out": (shares * int(np.prod(one[1:])), one[0]),
              "heads_in": (one[-1], int(np.prod(one[:-1]))), "head_bias": (shares * int(np.prod(one)),)}[layout]
    if stacked:
        count = shape[1] if experts else 1
        found = tuple(names["layers"].format(i=i) + names[part].format(j=j)
                      for i in range(shape[0]) for j in range(count))
    else:
        found = (names[part],)
    if part == "head.kernel" and config.score_head:
        found = (SCORE,)
    return Stored(found, stacked, shape[1] if experts else 0, layout, config.head_dim, tuple(theirs), share, shares)


def _share(config: ModelConfig, part: str, names: Mapping[str, str]) -> tuple[int, int]:
    """`Stored.share` and `Stored.shares` of a part."""
    if not names[part].startswith(_QKV):
        return 0, 1
    if config.num_kv_heads != config.num_heads:
        raise ConfigError(f"model.num_kv_heads={config.num_kv_heads}: checkpoints of family {config.family!r} have as "
                          f"many as num_heads={config.num_heads}; choose another family")
    return "qkv".index(part[0]), 3


def joined(parts: Iterable[tuple[Stored, Any]],
           host: Callable[[Any], np.ndarray] = np.asarray) -> Iterator[tuple[str, np.ndarray]]:
    """Their tensors by name of leaves and where each is stored; shared ones once all that share them have come."""
    waiting: dict[tuple[str, ...], dict[int, tuple[Stored, Any]]] = {}
    for at, leaf in parts:
        if at.shares == 1:
            yield from at.pieces(leaf, host)
            continue
        group = waiting.setdefault(at.names, {})
        group[at.share] = at, leaf
        if len(group) == at.shares:
            each = [one.pieces(own, host) for one, own in (group[i] for i in range(at.shares))]
            for pieces in zip(*each, strict=True):
                yield pieces[0][0], np.stack([piece for _, piece in pieces], axis=1).reshape(at.shape)


def under_our_names(tensors: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
    """`tensors` with GPT-NeoX's head, which transformers 5 may call as other families do, under its published name."""
    if config.family != "gpt_neox" or LANGUAGE_HEAD not in tensors or NEOX_HEAD in tensors:
        return tensors
    return {NEOX_HEAD if name == LANGUAGE_HEAD else name: tensor for name, tensor in tensors.items()}


_FUSED = re.compile(r"(?P<layer>.*\.)(mlp|block_sparse_moe)\.experts\."
                    r"(?P<part>gate_up_proj|gate_proj|up_proj|down_proj)(\.weight)?")
_FUSED_ROUTER = re.compile(r"(?P<layer>.*\.)mlp\.gate\.weight")


def split_fused(tensors: Mapping[str, Any], config: ModelConfig) -> Mapping[str, Any]:
    """`tensors` in which those that hold all experts of a layer appear as one tensor an expert.

    Known by name: `experts.gate_up_proj`, gate above up, `experts.gate_proj`, `up_proj`, `down_proj`; matrices may be
    `[E, out, in]` (transformers 5) or `[E, in, out]` (Llama 4). Where both fit, the first is taken. Nothing is read.
    """
    if not config.num_experts:
        return tensors
    names, d, f = _NAMES[config.family], config.d_model, config.d_expert
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if config.family == "mixtral" and (router := _FUSED_ROUTER.fullmatch(name)):
            out[router["layer"] + names["moe.router.kernel"]] = tensor
            continue
        match = _FUSED.fullmatch(name)
        if match is None:
            out[name] = tensor
            continue
        kinds = {"gate_up_proj": ("gate", "up"), "gate_proj": ("gate",), "up_proj": ("up",), "down_proj": ("down",)}
        parts, shape = kinds[match["part"]], shape_of(tensor)
        rows, columns = (d, f) if parts == ("down",) else (len(parts) * f, d)
        if shape not in ((config.num_experts, rows, columns), (config.num_experts, columns, rows)):
            raise ConfigError(f"tensor {name!r} has shape {list(shape)}, the config asks for "
                              f"{[config.num_experts, rows, columns]} or its transpose")
        turned = shape[1:] != (rows, columns)
        for number, part in enumerate(parts):
            for j in range(config.num_experts):
                theirs = match["layer"] + names[f"moe.{part}.kernel"].format(j=j)
                out[theirs] = _Expert(tensor, j, number * f if len(parts) > 1 else 0,
                                      (rows // len(parts), columns), turned)
    return out


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Shape of an array or of a lazily sliced tensor of a file."""
    return tuple(tensor.get_shape() if hasattr(tensor, "get_shape") else tensor.shape)


@dataclasses.dataclass(frozen=True)
class _Expert:
    """One expert's `[out, in]` matrix inside a tensor of all: rows from `first` on, sliced when asked for."""

    tensor: Any
    index: int
    first: int
    shape: tuple[int, int]
    turned: bool

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        start, stop, _ = where[0].indices(self.shape[0])
        rows, columns = slice(start + self.first, stop + self.first), slice(*where[1].indices(self.shape[1])[:2])
        own = slice(self.index, self.index + 1)
        if self.turned:
            return np.asarray(self.tensor[own, columns, rows])[0].T
        return np.asarray(self.tensor[own, rows, columns])[0]


def _times(part: slice, k: int) -> slice:
    """Rows of whole heads."""
    return slice(None if part.start is None else part.start * k, None if part.stop is None else part.stop * k)
