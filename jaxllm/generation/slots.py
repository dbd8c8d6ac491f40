"""What the device does: `admit` reads prompts and lays them into slots, `extend` reads on where a slot holds the
beginning of one, `advance` decodes all slots together."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh

from jaxllm.generation.forward import Decider, next_logits, read_along, read_prompts
from jaxllm.generation.sampling import Rows, sample
from jaxllm.models import LayerCache, ModelConfig, api
from jaxllm.models.layers import attend, dtype_of
from jaxllm.models.masks import held_tokens, layer_masks
from jaxllm.parallel import replicated, shardings


@struct.dataclass
class Slots:
    """State of S slots with caches of N columns. `ends` is the length at which a slot's row is full."""

    caches: tuple[LayerCache, ...]
    held: jax.Array  # bool [S, N]
    column: jax.Array  # int32
    written: jax.Array  # int32, columns written since the beginning, of which N are left
    first: jax.Array  # int32 [S], the one, counted as `written`, that holds the slot's first token
    tokens: jax.Array  # int32 [S, N], by position
    logprobs: jax.Array  # float32 [S, N]
    versions: jax.Array  # int32 [S, N]
    begins: jax.Array  # int32 [S], length of the prompt
    lengths: jax.Array  # int32 [S], tokens known
    ends: jax.Array  # int32 [S]
    running: jax.Array  # bool [S]
    stoppable: jax.Array  # bool [S]
    keys: jax.Array  # key [S]
    sampling: Rows
    routes: jax.Array | None  # int32 [L, S, N, k]
    counts: jax.Array | None = None  # int8 [S, L]


@functools.partial(jax.jit, static_argnames=("model", "slots", "length", "routes", "layer_routes", "mesh"))
def empty_slots(model: ModelConfig, slots: int, length: int, *, routes: bool = False, layer_routes: bool = False,
                mesh: Mesh | None = None) -> Slots:
    """No slot running; caches are zeros, and routes -1 where they are kept.

    Args:
      model: description.
      slots: S.
      length: N.
      routes: keep the experts that tokens took.
      layer_routes: each slot has executions of layers of its own, up to two with a cache each.
      mesh: where all of it lies; the default device without one.
    """
    def cache() -> jax.Array:
        return jnp.zeros((slots, model.num_kv_heads, length, model.head_dim), dtype_of(model.activation_dtype))

    caches = tuple(LayerCache(cache(), cache()) for _ in range(model.num_layers * (2 if layer_routes else 1)))
    counts = jnp.ones((slots, model.num_layers), jnp.int8) if layer_routes else None
    taken = jnp.full((model.num_layers, slots, length, model.experts_per_token), -1, jnp.int32) if routes else None
    return _lay(_nothing(slots, length, caches, taken, counts), mesh)


@functools.partial(jax.jit, static_argnames=("mesh",), donate_argnames=("state",))
def clear(state: Slots, *, mesh: Mesh | None = None) -> Slots:
    """All as in `empty_slots` but for caches and routes, of which `admit` writes a slot's whole rows anyway."""
    slots, length = state.tokens.shape
    return _lay(_nothing(slots, length, state.caches, state.routes, state.counts), mesh)


def _nothing(s: int, n: int, caches: tuple[LayerCache, ...], routes: jax.Array | None,
             counts: jax.Array | None) -> Slots:
    def ints(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    return Slots(
        caches=caches, held=jnp.zeros((s, n), bool), column=ints(), written=ints(), first=ints(s), tokens=ints(s, n),
        logprobs=jnp.zeros((s, n)), versions=ints(s, n), begins=ints(s), lengths=ints(s), ends=ints(s),
        running=jnp.zeros(s, bool), stoppable=jnp.zeros(s, bool), keys=jax.random.split(jax.random.key(0), s),
        sampling=Rows(temperature=jnp.zeros(s), top_k=ints(s), top_p=jnp.ones(s), min_p=jnp.zeros(s)),
        routes=routes, counts=counts)


def _lay(state: Slots, mesh: Mesh | None) -> Slots:
    """Within a program: caches by their heads over `mesh`, the rest on all its devices. Nothing without a mesh."""
    if mesh is None:
        return state
    heads, whole = shardings((None, "kv_heads", None, None), mesh), replicated(mesh)
    layout = jax.tree.map(lambda _: whole, state)
    layout = dataclasses.replace(layout, caches=jax.tree.map(lambda _: heads, state.caches))
    return lax.with_sharding_constraint(state, layout)


@struct.dataclass
class Arrivals:
    """M requests for slots `slots` `[M]` (those outside 0..S-1 are padding), whose prompts are rows `source` `[M]`."""

    slots: jax.Array
    source: jax.Array
    ends: jax.Array
    stoppable: jax.Array
    seeds: jax.Array  # uint32 [M]
    sampling: Rows


@functools.partial(jax.jit, static_argnames=("model", "mesh"), donate_argnames=("state",))
def admit(params: Any, state: Slots, prompts: jax.Array, lengths: jax.Array, new: Arrivals, *,
          model: ModelConfig, mesh: Mesh | None = None, counts: jax.Array | None = None,
          decider: Decider | None = None) -> Slots:
    """Slots with the arrivals in them; prompts `[R, P]` of `lengths` `[R]` are read up to their last token.

    That one is read by the first decode step, which draws the first token of the answer. With `counts` `[R, L]` and
    `decider` as in `read_along`, along the route of each.
    """
    n = state.tokens.shape[1]
    read = lengths - 1
    routes = None
    if counts is None:
        caches, routes = read_prompts(params, model, prompts, read)
    else:
        caches, counts = read_along(params, model, prompts, read, counts, decider)
    rows, count, put = new.source, read[new.source], functools.partial(_put, new.slots)

    def by_column(x: jax.Array, fill: Any = 0) -> jax.Array:
        """`[M, ..., P, K]` in N columns such that the last row read lies just before the ring's next column."""
        wide = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, n - x.shape[-2]), (0, 0)], constant_values=fill)
        return jax.vmap(lambda row, shift: jnp.roll(row, shift, axis=-2))(wide, state.column - count)

    def place(old: LayerCache, fresh: LayerCache) -> LayerCache:
        return LayerCache(put(old.k, by_column(fresh.k[rows])), put(old.v, by_column(fresh.v[rows])))

    held = by_column((jnp.arange(prompts.shape[1]) < count[:, None])[..., None])[..., 0]
    tokens = jnp.pad(prompts, ((0, 0), (0, n - prompts.shape[1])))[rows]
    kept = state.routes
    if kept is not None and routes is not None:
        wide = jnp.pad(routes, ((0, 0), (0, 0), (0, n - routes.shape[2]), (0, 0)), constant_values=-1)
        kept = kept.at[:, new.slots].set(wide[:, rows], mode="drop")
    return _lay(dataclasses.replace(
        state, caches=tuple(place(old, fresh) for old, fresh in zip(state.caches, caches, strict=True)),
        held=put(state.held, held), first=put(state.first, state.written - count), tokens=put(state.tokens, tokens),
        begins=put(state.begins, lengths[rows]), lengths=put(state.lengths, lengths[rows]), routes=kept,
        counts=state.counts if counts is None or state.counts is None else put(state.counts, counts[rows]),
        **_arrived(state, new)), mesh)


def _put(slots: jax.Array, buffer: jax.Array, values: jax.Array) -> jax.Array:
    """Rows of `buffer` `[S, ...]` replaced by `values` `[M, ...]`."""
    return buffer.at[slots].set(values.astype(buffer.dtype), mode="drop")


def _arrived(state: Slots, new: Arrivals) -> dict[str, Any]:
    """Fields of slots that take over what arrivals say of themselves."""
    put = functools.partial(_put, new.slots)
    return {"ends": put(state.ends, new.ends), "running": put(state.running, jnp.ones_like(new.stoppable)),
            "stoppable": put(state.stoppable, new.stoppable),
            "keys": state.keys.at[new.slots].set(jax.vmap(jax.random.key)(new.seeds), mode="drop"),
            "sampling": jax.tree.map(put, state.sampling, new.sampling)}


@functools.partial(jax.jit, static_argnames=("model", "mesh"), donate_argnames=("state",))
def extend(params: Any, state: Slots, rest: jax.Array, known: jax.Array, lengths: jax.Array, new: Arrivals, *,
           model: ModelConfig, mesh: Mesh | None = None) -> Slots:
    """Slots with the arrivals in them, whose prompts begin as what their slots still hold.

    The slots' own rows are turned to where the ring stands, and `rest` is read against them. Without executions of
    layers.

    Args:
      params, state, model, mesh: as for `admit`.
      rest: int32 `[M, P]`, the prompts from their token `known` on, padded.
      known: int32 `[M]`, tokens at the beginning whose keys the slots hold.
      lengths: int32 `[M]`, of the prompts.
      new: M arrivals; `source` is not read.
    """
    count, n = state.tokens.shape
    own, rows = jnp.minimum(new.slots, count - 1), jnp.arange(len(rest))[:, None]
    read = lengths - 1
    first = state.written - read
    positions = known[:, None] + jnp.arange(rest.shape[1], dtype=jnp.int32)
    valid = positions < read[:, None]
    places = jnp.where(valid, (state.column - read[:, None] + positions) % n, n)  # past the end, where `drop` applies
    key_positions = (jnp.arange(n) - (state.column - read)[:, None]) % n
    masks = layer_masks(model, (key_positions[:, None, :] <= positions[:, :, None])[:, None], positions, key_positions)
    put = functools.partial(_put, new.slots)

    def turned(buffer: jax.Array, fresh: jax.Array) -> jax.Array:
        moved = jax.vmap(lambda row, shift: jnp.roll(row, shift, axis=-2))(buffer[own], first - state.first[own])
        return moved.at[rows, :, places].set(fresh.astype(buffer.dtype).transpose(0, 2, 1, 3), mode="drop")

    x, tables = api.embed(params, model, rest), api.tables(model, positions)
    caches, routes = [], state.routes
    for i, (layer, old, seen) in enumerate(zip(params["layers"], state.caches, masks, strict=True)):
        q, k, v = api.project(layer, model, x, tables)
        mine = LayerCache(turned(old.k, k), turned(old.v, v))
        x, ids = api.finish_routed(layer, model, x, attend(q, mine.k, mine.v, seen, cap=model.attention_cap), valid)
        caches.append(LayerCache(put(old.k, mine.k), put(old.v, mine.v)))
        if routes is not None and ids is not None:
            routes = routes.at[i, new.slots[:, None], jnp.where(valid, positions, n)].set(ids, mode="drop")
    inside = jnp.where(positions < lengths[:, None], positions, n)
    return _lay(dataclasses.replace(
        state, caches=tuple(caches), held=put(state.held, key_positions < read[:, None]), first=put(state.first, first),
        tokens=put(state.tokens, state.tokens[own].at[rows, inside].set(rest, mode="drop")),
        begins=put(state.begins, lengths), lengths=put(state.lengths, lengths), routes=routes,
        **_arrived(state, new)), mesh)


@functools.partial(jax.jit, static_argnames=("model", "stop_ids", "mesh"), donate_argnames=("state",))
def advance(params: Any, state: Slots, steps: jax.Array, finished: jax.Array, version: jax.Array, *,
            model: ModelConfig, stop_ids: tuple[int, ...], once: jax.Array | None = None,
            mesh: Mesh | None = None) -> Slots:
    """Decode up to `steps` tokens of every running slot, on the device.

    Ends before that when none is left, or `finished` of those that ran have finished. Tokens of `once`, bool `[V]`, are
    not drawn again in an answer that has them.
    """
    n, index = state.tokens.shape[1], jnp.arange(state.tokens.shape[0])
    begun = state.running

    def go_on(carry: tuple[jax.Array, Slots]) -> jax.Array:
        step, slots = carry
        return (step < steps) & jnp.any(slots.running) & (jnp.sum(begun & ~slots.running) < finished)

    def step(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        done, s = carry
        last = jnp.maximum(s.lengths - 1, 0)
        held = lax.dynamic_update_slice_in_dim(s.held, s.running[:, None], s.column, 1)
        logits, caches, ids = next_logits(params, model, s.tokens[index, last], last, s.caches, held, s.column,
                                          s.running, s.counts)
        barred = None if once is None else _said(s, model.vocab_size) & once
        drawn, logprob = sample(logits, jax.vmap(jax.random.fold_in)(s.keys, s.lengths), s.sampling, barred)
        place = jnp.where(s.running, s.lengths, n)  # past the end, where `drop` applies

        def put(buffer: jax.Array, values: jax.Array) -> jax.Array:
            return buffer.at[index, place].set(values, mode="drop")

        lengths = s.lengths + s.running
        stopped = s.stoppable & jnp.isin(drawn, jnp.array(stop_ids, jnp.int32))
        routes = s.routes
        if routes is not None and ids is not None:
            routes = routes.at[:, index, jnp.where(s.running, last, n)].set(ids, mode="drop")
        return done + 1, dataclasses.replace(
            s, caches=caches, held=held, column=(s.column + 1) % n, written=s.written + 1, tokens=put(s.tokens, drawn),
            logprobs=put(s.logprobs, logprob), versions=put(s.versions, jnp.broadcast_to(version, index.shape)),
            lengths=lengths, running=s.running & ~stopped & (lengths < s.ends), routes=routes)

    return _lay(lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), state))[1], mesh)


def _said(s: Slots, vocab: int) -> jax.Array:
    """Bool `[S, V]`, tokens that each slot's answer holds so far."""
    place = jnp.arange(s.tokens.shape[1])
    return held_tokens(s.tokens, (place >= s.begins[:, None]) & (place < s.lengths[:, None]), vocab)
