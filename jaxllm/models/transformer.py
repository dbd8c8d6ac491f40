"""The one decoder-only transformer: scanned blocks, causal or bidirectional, with or without a cache."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from flax.linen.spmd import with_logical_constraint

from jaxllm.models.cache import KVCache, write_rows
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import Block, attend, attend_over_mesh, dtype_of, rotary_tables, unembed
from jaxllm.models.masks import choose_mask, mixed_windows
from jaxllm.models.moe import RouterStats
from jaxllm.models.norms import make_norm


@struct.dataclass
class Output:
    """Result of a forward pass.

    Attributes:
      logits: `[B, T, V]` float32, `[B, T, 1]` of a score head, or None when the head was not asked for.
      hidden: `[B, T, D]` after the final norm, activation dtype.
      cache: the updated cache, or None when none was given.
      aux: what routing did in each layer of a mixture of experts: load `[L, E]`, balance `[L]`, z `[L]`, ids
        `[L, N, k]` of the N = B * T tokens in row-major order; None for a dense model.
    """

    logits: Any
    hidden: jax.Array
    cache: KVCache | None
    aux: RouterStats | None = None


class ScanBlock(Block):
    """`Block` as the body of a scan over layers, with the layer's cache as scanned input and output."""

    def __call__(self, x, layer_cache, forced, windowed, tables, mask, near, slots, valid, segments):
        """Carry `[B, T, D]`; returns the carry, and the layer's new (k, v) and router statistics, None without."""
        q, k, v = self.project(x, tables)
        mask = choose_mask(mask, near, windowed)
        if layer_cache is not None:
            k = write_rows(layer_cache[0], k, slots)
            v = write_rows(layer_cache[1], v, slots)
            layer_cache = (k, v)
        if layer_cache is None:
            attended = attend_over_mesh(q, k, v, mask, self.config, segments)
        else:
            attended = attend(q, k, v, mask, cap=self.config.attention_cap)
        x, stats = self.finish(x, attended, valid, forced)
        return with_logical_constraint(x, ("batch", "length", "act_embed")), (layer_cache, stats)


def block_class(config: ModelConfig) -> Any:
    """The scanned block, recomputed in the backward pass as the config says."""
    if config.remat == "none":
        return ScanBlock
    # Without the batched products of attention, whose [T, S] would outgrow everything else.
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
    return nn.remat(ScanBlock, prevent_cse=False, policy=policy)


class Transformer(nn.Module):
    """Embedding, L scanned blocks, final norm and head."""

    config: ModelConfig

    def setup(self) -> None:
        """Declare embedding, stacked layers, final norm and, when untied, the head."""
        c = self.config
        w = dtype_of(c.weight_dtype)
        # Normal(1/sqrt(D)) keeps tied logits of order one; the untied table starts at the same scale.
        embed_init = nn.initializers.normal(stddev=c.d_model**-0.5 if c.tie_embeddings else 1.0)
        self.embed = _Table((c.vocab_size, c.d_model), ("vocab", "embed"), embed_init, w)
        scan = nn.scan(block_class(c), variable_axes={"params": 0}, split_rngs={"params": True}, length=c.num_layers,
                       in_axes=(0, 0, 0, *(nn.broadcast,) * 6),  # pyright: ignore[reportArgumentType]
                       out_axes=0,
                       metadata_params={nn.PARTITION_NAME: "layers"})
        self.layers = scan(c)
        self.final_norm = make_norm(c, c.d_model, "norm", w)
        if c.score_head:
            self.head = _Table((c.d_model, 1), ("embed", None), nn.initializers.zeros, w, leaf="kernel")
        elif not c.tie_embeddings:
            self.head = _Table((c.d_model, c.vocab_size), ("embed", "vocab"),
                               nn.initializers.normal(stddev=c.d_model**-0.5), w, leaf="kernel")

    def embed_tokens(self, tokens: jax.Array) -> jax.Array:
        """Embedding rows `[B, T, D]` of token ids `[B, T]`, in the activation dtype."""
        # One gather of a table that fsdp has cut along D would make XLA replicate the whole result.
        table = with_logical_constraint(self.embed(), ("vocab", None))
        x = jnp.take(table, tokens, axis=0).astype(dtype_of(self.config.activation_dtype))
        if self.config.scale_embeddings:
            x = x * jnp.asarray(self.config.d_model**0.5, x.dtype)
        return with_logical_constraint(x, ("batch", "length", "act_embed"))

    def normalize(self, x: jax.Array) -> jax.Array:
        """The final norm, `[..., D]`."""
        return self.final_norm(x)

    def unembed(self, hidden: jax.Array) -> jax.Array:
        """Float32 logits `[..., V]` of normalised hidden states `[..., D]`."""
        return unembed(self.config, hidden, self.embed().T if self.config.tied_head else self.head())

    def __call__(
        self, tokens: jax.Array, positions: jax.Array, mask: jax.Array | None, cache: KVCache | None,
        slots: jax.Array | None, head: bool, valid: jax.Array | None = None, routes: jax.Array | None = None,
        segments: jax.Array | None = None, near: jax.Array | None = None,
    ) -> Output:
        """Forward pass; `models.api.apply` documents the arguments, `masks.near_mask` the last."""
        x = self.embed_tokens(tokens)
        tables = rotary_tables(self.config, positions)
        layer_caches: Any = None if cache is None else (cache.k, cache.v)
        x, (layer_caches, stats) = self.layers(x, layer_caches, routes, mixed_windows(self.config), tables, mask, near,
                                               slots, valid, segments)
        hidden = self.normalize(x)
        if cache is not None and slots is not None:
            rows = jnp.arange(tokens.shape[0])[:, None]
            where = jnp.where(slots < 0, cache.positions.shape[1], slots)
            cache = KVCache(*layer_caches, positions=cache.positions.at[rows, where].set(positions, mode="drop"))
        return Output(logits=self.unembed(hidden) if head else None, hidden=hidden, cache=cache, aux=stats)


class _Table(nn.Module):
    """A bare matrix parameter, one declaration for shape, axes and init."""

    shape: tuple[int, int]
    axes: tuple[str | None, ...]
    initializer: nn.initializers.Initializer
    weight_dtype: jnp.dtype
    leaf: str = "embedding"

    @nn.compact
    def __call__(self) -> jax.Array:
        table: Any = self.param(self.leaf, nn.with_logical_partitioning(self.initializer, self.axes), self.shape,
                                self.weight_dtype)
        return table
