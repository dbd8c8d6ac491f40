"""The peer of `jaxllm bench decode`: Fast-dLLM's dual cache for LLaDA checkpoints, in PyTorch.

Written from the description of the method, as fast as plain PyTorch is: weights prepared once, caches
allocated once and overwritten in place, fused attention, no gradient. Needs the `parity` extra.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class DualResult:
    """One finished prompt: the generated tokens, G of them, and the forward passes they took."""

    tokens: list[int]
    forward_passes: int


class TorchDual:
    """A LLaDA checkpoint held as float32 torch tensors, decoding one prompt at a time."""

    def __init__(self, directory: str | Path) -> None:
        """Read `config.json` and `model.safetensors` of `directory`.

        Raises:
          ConfigError: torch is missing, or the checkpoint is not LLaDA's.
        """
        try:
            import torch  # pyright: ignore[reportMissingImports]
            from safetensors.torch import load_file
        except ImportError:
            raise ConfigError("torch is missing; install it with launch/setup.sh --extra parity") from None
        self._torch = torch
        directory = Path(directory)
        c = json.loads((directory / "config.json").read_text())
        if c.get("model_type") != "llada":
            raise ConfigError(f"{directory}/config.json: model_type={c.get('model_type')!r}; use a llada checkpoint")
        w = {name.removeprefix("model.transformer."): value.float()
             for name, value in load_file(str(directory / "model.safetensors")).items()}
        self.mask_id: int = c["mask_token_id"]
        self.eos_id: int = c["eos_token_id"]
        self._heads, self._kv_heads = c["n_heads"], c.get("n_kv_heads") or c["n_heads"]
        self._width = c["d_model"] // self._heads
        self._eps, self._theta = c.get("rms_norm_eps", 1e-5), c.get("rope_theta", 10000.0)
        self._embedding, self._norm = w["wte.weight"], w["ln_f.weight"]
        self._head = w.get("ff_out.weight", self._embedding)
        self._layers = []
        for i in range(c["n_layers"]):
            prefix = f"blocks.{i}."
            p = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
            self._layers.append({
                "attn_norm": p["attn_norm.weight"], "ff_norm": p["ff_norm.weight"],
                "qkv": torch.cat([p["q_proj.weight"], p["k_proj.weight"], p["v_proj.weight"]]).contiguous(),
                "out": p["attn_out.weight"],
                "up": torch.cat([p["ff_proj.weight"], p["up_proj.weight"]]).contiguous(), "down": p["ff_out.weight"]})

    def decode(self, prompt: Sequence[int], gen_length: int, block_length: int = 32, threshold: float = 0.9,
               eos_id: int = -1, suppress_mask: bool = True) -> DualResult:
        """Blocks left to right; the first forward of each computes all rows, later ones the block's alone.

        Args:
          prompt: token ids.
          gen_length, block_length: tokens.
          threshold: commit every candidate that reaches min(threshold, best).
          eos_id: stop once this token and all left of it are committed; negative for no stop.
          suppress_mask: never commit the mask token.
        """
        torch = self._torch
        with torch.inference_mode():
            n = len(prompt) + gen_length
            x = torch.full((n,), self.mask_id, dtype=torch.long)
            x[:len(prompt)] = torch.tensor(list(prompt), dtype=torch.long)
            left = torch.zeros(n, dtype=torch.bool)
            left[len(prompt):] = True
            shape = (1, self._kv_heads, n, self._width)
            caches = [(torch.empty(shape), torch.empty(shape)) for _ in self._layers]
            angle = torch.arange(n)[:, None] * self._theta ** (-torch.arange(0, self._width, 2) / self._width)[None]
            tables = torch.cat([angle.sin()] * 2, 1), torch.cat([angle.cos()] * 2, 1)
            passes = 0
            for start in range(len(prompt), n, block_length):
                whole = True
                end = start + block_length
                while bool(left[start:end].any()):
                    logits = self._forward(x, slice(0, n) if whole else slice(start, end), caches, tables)
                    passes += 1
                    logits = logits[start:end] if whole else logits
                    whole = False
                    allowed = logits
                    if suppress_mask:
                        allowed = logits.clone()
                        allowed[:, self.mask_id] = -torch.inf
                    token = allowed.argmax(-1)
                    confidence = (logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)).exp()
                    confidence = torch.where(left[start:end], confidence, -torch.inf)
                    chosen = left[start:end] & (confidence >= min(threshold, float(confidence.max())))
                    x[start:end] = torch.where(chosen, token, x[start:end])
                    left[start:end] &= ~chosen
                    if eos_id >= 0:
                        ends = ((x[len(prompt):] == eos_id) & ~left[len(prompt):]).nonzero()
                        if len(ends):
                            left[len(prompt) + int(ends[0]):] = False
            return DualResult(x[len(prompt):].tolist(), passes)

    def _forward(self, tokens: Any, rows: slice, caches: Any, tables: Any) -> Any:
        """Logits `[R, V]` of `rows`, whose keys and values replace those in `caches`."""
        functional = self._torch.nn.functional
        sin, cos = tables[0][rows], tables[1][rows]
        x = functional.embedding(tokens[rows], self._embedding)
        h, g, k = self._heads, self._kv_heads, self._width

        def heads(y: Any, count: int) -> Any:
            return y.view(-1, count, k).transpose(0, 1)

        def rotated(y: Any) -> Any:
            a, b = y.chunk(2, -1)
            return y * cos + self._torch.cat([-b, a], -1) * sin

        for layer, (keys, values) in zip(self._layers, caches, strict=True):
            y = functional.rms_norm(x, x.shape[-1:], layer["attn_norm"], self._eps)
            query, key, value = functional.linear(y, layer["qkv"]).split([h * k, g * k, g * k], -1)
            keys[0, :, rows] = rotated(heads(key, g))
            values[0, :, rows] = heads(value, g)
            y = functional.scaled_dot_product_attention(rotated(heads(query, h))[None], keys, values, enable_gqa=h != g)
            x = x + functional.linear(y[0].transpose(0, 1).reshape(-1, h * k), layer["out"])
            gate, up = functional.linear(functional.rms_norm(x, x.shape[-1:], layer["ff_norm"], self._eps),
                                         layer["up"]).chunk(2, -1)
            x = x + functional.linear(functional.silu(gate) * up, layer["down"])
        return functional.linear(functional.rms_norm(x, x.shape[-1:], self._norm, self._eps), self._head)
