"""The decoders' face: one pure function for all methods, a resumable form of it, and a batch helper."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxllm.config import check
from jaxllm.diffusion import blocks, elastic
from jaxllm.diffusion.commit import Generation, Record, start
from jaxllm.diffusion.config import BLOCK_METHODS, DecodeConfig, check_prompts, resolve
from jaxllm.models import ModelConfig, unstack

State = blocks.BlockState | elastic.ElasticState
PROMPT_BUCKET = 64


@struct.dataclass
class Result:
    """A finished batch.

    Attributes:
      tokens: int32 `[B, G]`, the generated part.
      answer_lengths: int32 `[B]`, tokens up to and including the first EOS, G without one.
      committed_at: int32 `[B, G]`, step that committed each token, -1 for none.
      record: statistics per step.
    """

    tokens: Any
    answer_lengths: Any
    committed_at: Any
    record: Record


def prepare(params: Any, prompt: jax.Array, lengths: jax.Array, key: jax.Array, *, model: ModelConfig,
            config: DecodeConfig) -> State:
    """The state from which `advance` goes on; arguments as for `decode`."""
    params, config = unstack(params, model), resolve(model, config)
    b = prompt.shape[0]
    # A row's key must not depend on its neighbours: a batch of keys is taken as it is.
    keys = key if key.ndim == 1 else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(b))
    generation = start(model, config, prompt, lengths, keys)
    if config.method in BLOCK_METHODS:
        return blocks.begin(params, model, config, generation)
    if config.method == "elastic":
        return elastic.begin(params, model, config, generation)
    return elastic.begin_recompute(params, model, config, generation)


def advance(params: Any, state: State, until: jax.Array | int, *, model: ModelConfig, config: DecodeConfig) -> State:
    """Step until every row is finished or the batch has made `until` steps; one loop on the device."""
    params, config = unstack(params, model), resolve(model, config)
    step = blocks.step if config.method in BLOCK_METHODS else (
        elastic.step if config.method == "elastic" else elastic.step_recompute)

    def go_on(state: State) -> jax.Array:
        return jnp.any(state.generation.left) & (state.generation.step < until)

    return lax.while_loop(go_on, lambda s: step(params, model, config, s), state)  # type: ignore[arg-type]


def finish(generation: Generation, *, model: ModelConfig, config: DecodeConfig) -> Result:
    """The result of a generation, also of one cut short."""
    config = resolve(model, config)
    at = generation.lengths[:, None] + jnp.arange(config.gen_length)
    tokens = jnp.take_along_axis(generation.tokens, at, axis=1)
    committed_at = jnp.take_along_axis(generation.committed_at, at, axis=1)
    place = jnp.arange(config.gen_length)
    eos = config.eos_id
    assert eos is not None  # resolve fills it in
    ends = (committed_at >= 0) & (tokens == eos)
    first = jnp.min(jnp.where(ends, place, config.gen_length), axis=1)
    if config.fill_eos:
        tokens = jnp.where(place > first[:, None], eos, tokens)
    return Result(tokens=tokens, answer_lengths=jnp.minimum(first + 1, config.gen_length), committed_at=committed_at,
                  record=generation.record)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def decode(params: Any, prompt: jax.Array, lengths: jax.Array, key: jax.Array, *, model: ModelConfig,
           config: DecodeConfig) -> Result:
    """Decode a batch of right-padded prompts. Each row gets the tokens it gets alone.

    Compiles once per (batch, prompt bucket, config).

    Args:
      params: parameters of `models.init`, or of `unstack`, which saves a copy.
      prompt: int32 `[B, P]`; entries at and after a row's length are ignored.
      lengths: int32 `[B]`, each in 1..P.
      key: one PRNG key, or one a row `[B]`; used only when `temperature` > 0.
      model: the model's description.
      config: method and settings.

    Returns:
      Tokens and statistics.
    """
    state = prepare(params, prompt, lengths, key, model=model, config=config)
    state = advance(params, state, config.gen_length + 1, model=model, config=config)
    return finish(state.generation, model=model, config=config)


def pad_prompts(prompts: Sequence[Sequence[int]], pad_id: int = 0, bucket: int = PROMPT_BUCKET,
                limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Right-pad prompts to the next multiple of `bucket`, at most `limit`: int32 `[B, P]` and lengths `[B]`."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    width = -(-int(lengths.max()) // bucket) * bucket
    width = max(int(lengths.max()), width if limit is None else min(width, limit))
    out = np.full((len(prompts), width), pad_id, np.int32)
    for row, prompt in zip(out, prompts, strict=True):
        row[:len(prompt)] = prompt
    return out, lengths


def decode_prompts(params: Any, prompts: Sequence[Sequence[int]], *, model: ModelConfig, config: DecodeConfig,
                   key: jax.Array | None = None, bucket: int = PROMPT_BUCKET) -> Result:
    """`decode` of token-id lists, checked and padded.

    Raises:
      ConfigError: a prompt is empty, too long or outside the vocabulary, or model and config disagree.
    """
    check(bucket >= 1, "bucket", bucket, "must be at least 1")
    resolve(model, config)
    check_prompts(model, config, prompts)
    prompt, lengths = pad_prompts(prompts, bucket=bucket, limit=model.max_length - config.gen_length)
    key = jax.random.key(0) if key is None else key
    return decode(params, jnp.asarray(prompt), jnp.asarray(lengths), key, model=model, config=config)
