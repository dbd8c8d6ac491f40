"""Hugging Face tensor names of our parameters, and how the layouts map onto each other.

Their linear weights are `[out, in]`; ours are `[in..., out...]` with heads and head width apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from jaxllm.models import ModelConfig

Layout = Literal["same", "matrix", "heads_out", "heads_in", "head_bias"]

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
    "head.kernel": "lm_head.weight",
    "layers": "model.layers.{i}.",
    "attn_norm.scale": "input_layernorm.weight", "mlp_norm.scale": "post_attention_layernorm.weight",
    "q.kernel": "self_attn.q_proj.weight", "k.kernel": "self_attn.k_proj.weight",
    "v.kernel": "self_attn.v_proj.weight", "o.kernel": "self_attn.o_proj.weight",
    "q.bias": "self_attn.q_proj.bias", "k.bias": "self_attn.k_proj.bias", "v.bias": "self_attn.v_proj.bias",
    "q_norm.scale": "self_attn.q_norm.weight", "k_norm.scale": "self_attn.k_norm.weight",
    "gate.kernel": "mlp.gate_proj.weight", "up.kernel": "mlp.up_proj.weight", "down.kernel": "mlp.down_proj.weight",
}
_LAYOUTS: dict[str, Layout] = {
    "head.kernel": "matrix", "gate.kernel": "matrix", "up.kernel": "matrix", "down.kernel": "matrix",
    "q.kernel": "heads_out", "k.kernel": "heads_out", "v.kernel": "heads_out", "o.kernel": "heads_in",
    "q.bias": "head_bias", "k.bias": "head_bias", "v.bias": "head_bias",
}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one of our leaves lives in a checkpoint.

    Attributes:
      names: their tensor names; one a layer for stacked leaves.
      stacked: our leaf has a leading layer axis.
      layout: how their axes become ours.
      head_dim: width K of one head.
      shape: shape of each of their tensors.
    """

    names: tuple[str, ...]
    stacked: bool
    layout: Layout
    head_dim: int
    shape: tuple[int, ...]

    def read(self, get: Callable[[str], Any], index: tuple[slice, ...]) -> np.ndarray:
        """Our slice `index` of the leaf; `get(name)` gives something that slices like an array."""
        if not self.stacked:
            return self._part(get(self.names[0]), index)
        layers = range(len(self.names))[index[0]]
        return np.stack([self._part(get(self.names[i]), index[1:]) for i in layers])

    def _part(self, tensor: Any, index: tuple[slice, ...]) -> np.ndarray:
        k = self.head_dim
        if self.layout == "same":
            return np.asarray(tensor[index])
        if self.layout == "matrix":
            return np.asarray(tensor[index[1], index[0]]).T
        if self.layout == "heads_out":  # [H K, D] -> [D, H, K]
            part = np.asarray(tensor[_times(index[1], k), index[0]])
            return part.reshape(-1, k, part.shape[1]).transpose(2, 0, 1)[:, :, index[2]]
        if self.layout == "heads_in":  # [D, H K] -> [H, K, D]
            part = np.asarray(tensor[index[2], _times(index[0], k)])
            return part.reshape(part.shape[0], -1, k).transpose(1, 2, 0)[:, index[1]]
        part = np.asarray(tensor[_times(index[0], k)])
        return part.reshape(-1, k)[:, index[1]]

    def write(self, leaf: np.ndarray) -> np.ndarray:
        """Their tensor of our leaf (one layer of it if stacked)."""
        if self.layout == "matrix":
            leaf = leaf.T
        elif self.layout == "heads_out":
            leaf = leaf.transpose(1, 2, 0)
        elif self.layout == "heads_in":
            leaf = leaf.transpose(2, 0, 1)
        return np.ascontiguousarray(leaf.reshape(self.shape))


def stored(config: ModelConfig, path: tuple[str, ...], shape: tuple[int, ...]) -> Stored:
    """Where leaf `path` of our parameter tree, of `shape`, is found in a checkpoint of the config's family."""
    names = _LLADA if config.family == "llada" else _LLAMA
    stacked = path[0] == "layers"
    part = ".".join(path[1:] if stacked else path)
    layout = _LAYOUTS.get(part, "same")
    one = shape[1:] if stacked else shape
    theirs = {"same": one, "matrix": one[::-1], "heads_out": (int(np.prod(one[1:])), one[0]),
              "heads_in": (one[-1], int(np.prod(one[:-1]))), "head_bias": (int(np.prod(one)),)}[layout]
    if stacked:
        found = tuple(names["layers"].format(i=i) + names[part] for i in range(shape[0]))
    else:
        found = (names[part],)
    return Stored(found, stacked, layout, config.head_dim, tuple(theirs))


def _times(part: slice, k: int) -> slice:
    """Rows of whole heads."""
    return slice(None if part.start is None else part.start * k, None if part.stop is None else part.stop * k)
