"""What all decoders share: the state of a generation, the commit rule, the stop rule, the record.

Dims: B rows, P prompt bucket, G generated masks, N = P + G slots a row, C candidates, S = G steps at
most, L layers. A row holds its prompt at 0..n-1, its G generated positions right after, then padding.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from jaxllm.diffusion.config import DecodeConfig
from jaxllm.models import ModelConfig
from jaxllm.models.masks import held_tokens


@struct.dataclass
class Record:
    """What every step did, each row as if it ran alone. Entries after a row's last step are unused.

    Attributes:
      steps: int32 `[B]`, forward evaluations (a guided step counts one).
      committed: int32 `[S, B]`, tokens committed.
      rows: int32 `[S, B]`, rows computed in layers that were not refreshed.
      refresh_from: int32 `[S, B]`, first layer computed for every row; L where none was.
      similarity: float32 `[S, L, B]`, the drift test; NaN where it was not made.
    """

    steps: jax.Array
    committed: jax.Array
    rows: jax.Array
    refresh_from: jax.Array
    similarity: jax.Array


@struct.dataclass
class Generation:
    """Tokens and status of a batch under way.

    Attributes:
      tokens: int32 `[B, N]`.
      lengths: int32 `[B]`, prompt lengths.
      left: bool `[B, N]`, generated positions still to decode.
      decoded: bool `[B, N]`, prompt and committed positions.
      committed_at: int32 `[B, N]`, step that committed a position, -1 for none.
      step: int32, steps made by the batch.
      keys: PRNG key of each row, `[B]`.
      record: the statistics so far.
    """

    tokens: jax.Array
    lengths: jax.Array
    left: jax.Array
    decoded: jax.Array
    committed_at: jax.Array
    step: jax.Array
    keys: jax.Array
    record: Record

    @property
    def active(self) -> jax.Array:
        """bool `[B]`, rows that are not finished."""
        return jnp.any(self.left, axis=1)


def start(model: ModelConfig, config: DecodeConfig, prompt: jax.Array, lengths: jax.Array,
          keys: jax.Array) -> Generation:
    """The generation before its first step, from right-padded prompts `[B, P]`."""
    b, p = prompt.shape
    n, s = p + config.gen_length, config.gen_length
    place = jnp.arange(n)
    left = (place >= lengths[:, None]) & (place < lengths[:, None] + config.gen_length)
    decoded = place < lengths[:, None]
    tokens = jnp.where(decoded, jnp.pad(prompt, ((0, 0), (0, config.gen_length))), model.mask)
    record = Record(steps=jnp.zeros(b, jnp.int32), committed=jnp.zeros((s, b), jnp.int32),
                    rows=jnp.zeros((s, b), jnp.int32), refresh_from=jnp.zeros((s, b), jnp.int32),
                    similarity=jnp.full((s, model.num_layers, b), jnp.nan, jnp.float32))
    return Generation(tokens=tokens.astype(jnp.int32), lengths=lengths, left=left, decoded=decoded,
                      committed_at=jnp.full((b, n), -1, jnp.int32), step=jnp.zeros((), jnp.int32), keys=keys,
                      record=record)


def valid_slots(state: Generation, config: DecodeConfig) -> jax.Array:
    """bool `[B, N]`, slots that are prompt or generation, not padding."""
    return jnp.arange(state.tokens.shape[1]) < state.lengths[:, None] + config.gen_length


def leftmost(flags: jax.Array, count: int) -> jax.Array:
    """Positions of the first `count` true entries of `[B, N]`, ascending, N where there are fewer: `[B, count]`."""
    seen = jnp.cumsum(flags, axis=1, dtype=jnp.int32)
    # The k-th true entry has as many entries before it as have seen fewer than k.
    return jnp.sum(seen[:, None, :] < jnp.arange(1, count + 1)[:, None], axis=2, dtype=jnp.int32)


def ranks(confidence: jax.Array) -> jax.Array:
    """Place of each entry of `[B, C]` in descending order, the earlier first among equals."""
    order = jnp.argsort(-confidence, axis=1, stable=True)
    return jnp.argsort(order, axis=1)


def choose(confidence: jax.Array, candidate: jax.Array, config: DecodeConfig, count: jax.Array | None) -> jax.Array:
    """The commit rule: which of `[B, C]` candidates to commit, at least one where there is any.

    Args:
      confidence: float32 `[B, C]`, probability of the chosen token.
      candidate: bool `[B, C]`; other entries are never chosen.
      config: threshold, factor, tokens_per_step or steps decides.
      count: int `[B]`, this step's tokens under the fixed schedule.
    """
    confidence = jnp.where(candidate, confidence, -jnp.inf)
    if config.threshold is not None:
        bar = jnp.minimum(config.threshold, jnp.max(confidence, axis=1, keepdims=True))
        return candidate & (confidence >= bar)
    rank = ranks(confidence)
    n = jnp.sum(candidate, axis=1, keepdims=True)
    if config.factor is not None:
        # Fast-dLLM: the i-th most confident must reach 1 - factor / (i + 2), the first always does; the
        # released loop also lets the last one through.
        bar = jnp.where(rank == 0, -1.0, 1 - config.factor / (rank + 2))
        fails = candidate & (confidence < bar)
        take = jnp.minimum(jnp.min(jnp.where(fails, rank, n), axis=1, keepdims=True), n - 1)
        take = take + ((take == 0) | (take == n - 1))
    elif config.tokens_per_step is not None:
        take = jnp.full_like(n, config.tokens_per_step)
    else:
        assert count is not None
        take = count[:, None]
    return candidate & (rank < take)


def commit(
    state: Generation, logits: jax.Array, positions: jax.Array, model: ModelConfig, config: DecodeConfig, *,
    rows: jax.Array, refresh_from: jax.Array, similarity: jax.Array | None = None, count: jax.Array | None = None,
) -> tuple[Generation, jax.Array]:
    """One step's end: choose tokens, write them, apply the EOS stop, add to the record.

    Args:
      state: generation before the step.
      logits: float32 `[B, C, V]`, row c predicts the token at `positions[:, c]`.
      positions: int32 `[B, C]`, candidates; N marks an unused entry. Entries not left are not candidates.
      model, config: their descriptions.
      rows, refresh_from: int32 `[B]`, for the record.
      similarity: float32 `[L, B]`, for the record.
      count: int32 `[B]`, tokens of this step under a fixed schedule.

    Returns:
      The new generation, and int32 `[B, C]` with the positions committed, N elsewhere.
    """
    b, n = state.tokens.shape
    candidate = (positions < n) & _take(state.left, positions)
    if config.once:
        logits = jnp.where(_said(state, config, logits.shape[-1])[:, None], -jnp.inf, logits)
    allowed = logits
    if config.suppress_mask:
        allowed = jnp.where(jnp.arange(logits.shape[-1]) == model.mask_id, -jnp.inf, allowed)
    if config.temperature > 0:
        def noise(key, step):
            return jax.random.gumbel(jax.random.fold_in(key, step), logits.shape[1:], jnp.float32)

        allowed = allowed + config.temperature * jax.vmap(noise)(state.keys, state.record.steps)
    token = jnp.argmax(allowed, axis=-1).astype(jnp.int32)
    score = jnp.max(logits, axis=-1) if config.order == "certainty" else \
        jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    strength = jnp.exp(score - jax.nn.logsumexp(logits, axis=-1))
    if config.order == "random":
        def chance(key, step):
            return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, step), 1), (positions.shape[1],))

        strength = jax.vmap(chance)(state.keys, state.record.steps)
    chosen = choose(strength, candidate, config, count)
    if config.once:
        chosen = _first_of_each(chosen, token, strength, config)

    where = jnp.where(chosen, positions, n)
    line = jnp.arange(b)[:, None]
    tokens = state.tokens.at[line, where].set(token, mode="drop")
    decoded = state.decoded.at[line, where].set(True, mode="drop")
    committed_at = state.committed_at.at[line, where].set(state.record.steps[:, None], mode="drop")
    place = jnp.arange(n)
    ends = decoded & (tokens == config.eos_id) & (place >= state.lengths[:, None])
    first_end = jnp.min(jnp.where(ends, place, n), axis=1, keepdims=True)
    left = state.left & ~decoded & (place < first_end)

    r, active = state.record, state.active
    at = jnp.where(active, r.steps, config.gen_length)  # a finished row writes past the end, which is dropped
    line = jnp.arange(b)
    record = Record(
        steps=r.steps + active,
        committed=r.committed.at[at, line].set(jnp.sum(chosen, axis=1, dtype=jnp.int32), mode="drop"),
        rows=r.rows.at[at, line].set(rows, mode="drop"),
        refresh_from=r.refresh_from.at[at, line].set(refresh_from, mode="drop"),
        similarity=r.similarity if similarity is None else
        r.similarity.at[at, :, line].set(similarity.T, mode="drop"))
    return dataclasses.replace(state, tokens=tokens, decoded=decoded, left=left, committed_at=committed_at,
                               step=state.step + 1, record=record), where


def _said(state: Generation, config: DecodeConfig, vocab: int) -> jax.Array:
    """Bool `[B, V]`, which tokens of `config.once` each answer holds."""
    answer = state.decoded & (jnp.arange(state.tokens.shape[1]) >= state.lengths[:, None])
    return held_tokens(state.tokens, answer, vocab) & jnp.zeros(vocab, bool).at[jnp.array(config.once)].set(True)


def _first_of_each(chosen: jax.Array, token: jax.Array, strength: jax.Array, config: DecodeConfig) -> jax.Array:
    """`chosen` `[B, C]` without those whose token of `config.once` another one takes in the same step with more
    strength; it is left for a later step."""
    place = ranks(jnp.where(chosen, strength, -jnp.inf))
    same = (token[:, :, None] == token[:, None, :]) & chosen[:, None, :]
    beaten = jnp.any(same & (place[:, None, :] < place[:, :, None]), axis=2)
    return chosen & ~(beaten & jnp.isin(token, jnp.array(config.once)))


def _take(values: jax.Array, index: jax.Array) -> jax.Array:
    """Entries `[B, C]` of `[B, N]` at `index`, clipped into range."""
    return jnp.take_along_axis(values, jnp.minimum(index, values.shape[1] - 1), axis=1)
