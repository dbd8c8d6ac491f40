"""Continuous batching: a fixed number of slots, decoded together, each refilled as soon as its request is finished.

The device does two things, each one program per shape: `admit` reads prompts and lays them into slots, `advance`
decodes until a number of steps is done or a slot is free that somebody waits for. The host only queues and collects.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from jaxllm.config import ConfigError, check
from jaxllm.generation.forward import next_logits, read_prompts
from jaxllm.generation.sampling import Rows, Sampling, sample
from jaxllm.models import LayerCache, ModelConfig, unstack
from jaxllm.models.layers import dtype_of


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Shape of an engine.

    Attributes:
      slots: requests decoded at a time, S.
      length: longest prompt and answer together, in tokens, N.
      chunk: most decode steps between two looks of the host: the grain of streaming, stop strings and new weights.
      prompt_bucket: prompts are padded to this length or twice, four times... as much; a program is compiled for each.
      stop_ids: tokens that end an answer (they belong to it).
      keep_routes: give back the experts that a mixture took for each token.
    """

    slots: int = 32
    length: int = 1024
    chunk: int = 32
    prompt_bucket: int = 64
    stop_ids: tuple[int, ...] = ()
    keep_routes: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "length", "chunk", "prompt_bucket"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Request:
    """One answer that is wanted.

    Attributes:
      id: chosen by the caller, unique among those in flight.
      prompt: token ids, at least one. Requests of equal prompts that are admitted together are read once.
      max_tokens: of the answer.
      sampling: how its tokens are drawn.
      seed: with the id of a token's place decides its draw, whatever else runs beside it.
      stop: texts that end the answer; looked for by the host after every chunk, so they need the engine's tokenizer.
      ignore_stop_ids: go on after the engine's stop tokens, for timing.
    """

    id: Any
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_stop_ids: bool = False


@dataclasses.dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
      id: the request's.
      prompt: its token ids.
      tokens: int32 `[A]`, the answer's, a stop token included.
      logprobs: float32 `[A]`, log-probability of each when it was drawn, at the request's temperature.
      versions: int32 `[A]`, version of the weights that drew each.
      reason: `stop` (stop token or text), `length` or `cancelled`.
      routes: int32 `[L, P + A - 1, k]`, experts of all tokens that were read; the last one never was. None if not kept.
    """

    id: Any
    prompt: tuple[int, ...]
    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    reason: str
    routes: np.ndarray | None = None


@struct.dataclass
class Slots:
    """State of S slots with caches of N columns. `ends` is the length at which a slot's row is full."""

    caches: tuple[LayerCache, ...]
    held: jax.Array  # bool [S, N]
    column: jax.Array  # int32
    tokens: jax.Array  # int32 [S, N], by position
    logprobs: jax.Array  # float32 [S, N]
    versions: jax.Array  # int32 [S, N]
    lengths: jax.Array  # int32 [S], tokens known
    ends: jax.Array  # int32 [S]
    running: jax.Array  # bool [S]
    stoppable: jax.Array  # bool [S]
    keys: jax.Array  # key [S]
    sampling: Rows
    routes: jax.Array | None  # int32 [L, S, N, k]


def empty_slots(model: ModelConfig, config: EngineConfig) -> Slots:
    """No slot running."""
    s, n = config.slots, config.length

    def cache() -> jax.Array:
        return jnp.zeros((s, model.num_kv_heads, n, model.head_dim), dtype_of(model.activation_dtype))

    def ints() -> jax.Array:
        return jnp.zeros(s, jnp.int32)

    routes = None
    if config.keep_routes:
        routes = jnp.full((model.num_layers, s, n, model.experts_per_token), -1, jnp.int32)
    return Slots(
        caches=tuple(LayerCache(cache(), cache()) for _ in range(model.num_layers)), held=jnp.zeros((s, n), bool),
        column=jnp.zeros((), jnp.int32), tokens=jnp.zeros((s, n), jnp.int32), logprobs=jnp.zeros((s, n), jnp.float32),
        versions=jnp.zeros((s, n), jnp.int32), lengths=ints(), ends=ints(), running=jnp.zeros(s, bool),
        stoppable=jnp.zeros(s, bool), keys=jax.random.split(jax.random.key(0), s),
        sampling=Rows(temperature=jnp.zeros(s), top_k=ints(), top_p=jnp.ones(s), min_p=jnp.zeros(s)), routes=routes)


@struct.dataclass
class Arrivals:
    """M requests for slots `slots` `[M]` (those outside 0..S-1 are padding), whose prompts are rows `source` `[M]`."""

    slots: jax.Array
    source: jax.Array
    ends: jax.Array
    stoppable: jax.Array
    seeds: jax.Array  # uint32 [M]
    sampling: Rows


@functools.partial(jax.jit, static_argnames=("model",), donate_argnames=("state",))
def admit(params: Any, state: Slots, prompts: jax.Array, lengths: jax.Array, new: Arrivals, *,
          model: ModelConfig) -> Slots:
    """Slots with the arrivals in them; prompts `[R, P]` of `lengths` `[R]` are read up to their last token.

    That one is read by the first decode step, which draws the first token of the answer.
    """
    n = state.tokens.shape[1]
    read = lengths - 1
    caches, routes = read_prompts(params, model, prompts, read)
    rows, count = new.source, read[new.source]

    def by_column(x: jax.Array, fill: Any = 0) -> jax.Array:
        """`[M, ..., P, K]` in N columns such that the last row read lies just before the ring's next column."""
        wide = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, n - x.shape[-2]), (0, 0)], constant_values=fill)
        return jax.vmap(lambda row, shift: jnp.roll(row, shift, axis=-2))(wide, state.column - count)

    def put(buffer: jax.Array, values: jax.Array) -> jax.Array:
        return buffer.at[new.slots].set(values.astype(buffer.dtype), mode="drop")

    def place(old: LayerCache, fresh: LayerCache) -> LayerCache:
        return LayerCache(put(old.k, by_column(fresh.k[rows])), put(old.v, by_column(fresh.v[rows])))

    held = by_column((jnp.arange(prompts.shape[1]) < count[:, None])[..., None])[..., 0]
    tokens = jnp.pad(prompts, ((0, 0), (0, n - prompts.shape[1])))[rows]
    kept = state.routes
    if kept is not None and routes is not None:
        wide = jnp.pad(routes, ((0, 0), (0, 0), (0, n - routes.shape[2]), (0, 0)), constant_values=-1)
        kept = kept.at[:, new.slots].set(wide[:, rows], mode="drop")
    return dataclasses.replace(
        state, caches=tuple(place(old, fresh) for old, fresh in zip(state.caches, caches, strict=True)),
        held=put(state.held, held), tokens=put(state.tokens, tokens), lengths=put(state.lengths, lengths[rows]),
        ends=put(state.ends, new.ends), running=put(state.running, jnp.ones_like(new.stoppable)),
        stoppable=put(state.stoppable, new.stoppable),
        keys=state.keys.at[new.slots].set(jax.vmap(jax.random.key)(new.seeds), mode="drop"),
        sampling=jax.tree.map(put, state.sampling, new.sampling), routes=kept)


@functools.partial(jax.jit, static_argnames=("model", "stop_ids"), donate_argnames=("state",))
def advance(params: Any, state: Slots, steps: jax.Array, awaited: jax.Array, version: jax.Array, *,
            model: ModelConfig, stop_ids: tuple[int, ...]) -> Slots:
    """Decode up to `steps` tokens of every running slot, on the device.

    Ends before that when none is left, and when one has finished although `awaited` says that requests wait.
    """
    n, index = state.tokens.shape[1], jnp.arange(state.tokens.shape[0])
    begun = state.running

    def go_on(carry: tuple[jax.Array, Slots]) -> jax.Array:
        step, slots = carry
        finished = jnp.any(begun & ~slots.running)
        return (step < steps) & jnp.any(slots.running) & ~(awaited & finished)

    def step(carry: tuple[jax.Array, Slots]) -> tuple[jax.Array, Slots]:
        done, s = carry
        last = jnp.maximum(s.lengths - 1, 0)
        held = lax.dynamic_update_slice_in_dim(s.held, s.running[:, None], s.column, 1)
        logits, caches, ids = next_logits(params, model, s.tokens[index, last], last, s.caches, held, s.column,
                                          s.running)
        drawn, logprob = sample(logits, jax.vmap(jax.random.fold_in)(s.keys, s.lengths), s.sampling)
        place = jnp.where(s.running, s.lengths, n)  # past the end, where `drop` applies

        def put(buffer: jax.Array, values: jax.Array) -> jax.Array:
            return buffer.at[index, place].set(values, mode="drop")

        lengths = s.lengths + s.running
        stopped = s.stoppable & jnp.isin(drawn, jnp.array(stop_ids, jnp.int32))
        routes = s.routes
        if routes is not None and ids is not None:
            routes = routes.at[:, index, jnp.where(s.running, last, n)].set(ids, mode="drop")
        return done + 1, dataclasses.replace(
            s, caches=caches, held=held, column=(s.column + 1) % n, tokens=put(s.tokens, drawn),
            logprobs=put(s.logprobs, logprob), versions=put(s.versions, jnp.broadcast_to(version, index.shape)),
            lengths=lengths, running=s.running & ~stopped & (lengths < s.ends), routes=routes)

    return lax.while_loop(go_on, step, (jnp.zeros((), jnp.int32), state))[1]


class Engine:
    """Requests in, completions out.

    A loop of `step` calls drives it; `run` is that loop for a list of requests. One thread at a time.
    """

    def __init__(self, params: Any, model: ModelConfig, config: EngineConfig, *, tokenizer: Any = None,
                 version: int = 0) -> None:
        """An empty engine.

        Args:
          params: as for `update`.
          model: causal description.
          config: shape.
          tokenizer: for requests with stop texts.
          version: of the weights.
        """
        check(model.causal, "model.causal", model.causal, "token after token needs a causal model; decode others with "
              "jaxllm decode")
        check(config.length <= model.max_length, "length", config.length, f"the model reads {model.max_length} tokens")
        check(not config.keep_routes or model.num_experts > 0, "keep_routes", True, "a dense model has no experts")
        self.model, self.config, self._tokenizer = model, config, tokenizer
        self._waiting: collections.deque[Request] = collections.deque()
        self._active: dict[int, Request] = {}
        self._checked: dict[int, int] = {}  # answer tokens already searched for stop texts
        self._state = empty_slots(model, config)
        self.update(params, version)

    def update(self, params: Any, version: int) -> None:
        """Draw from these weights from the next step on; caches stay as they are.

        Stacked parameters, as a trainer has them, are copied: its next step may donate them. Unstacked ones are not.
        """
        if not isinstance(params["layers"], tuple):
            rest = {name: part for name, part in params.items() if name != "layers"}
            params = {**unstack(params, self.model), **jax.tree.map(jnp.copy, rest)}
        self._params, self.version = params, version

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
          ConfigError: empty prompt, ids outside the vocabulary, no room for one token, or stop texts without tokenizer.
        """
        n = len(request.prompt)
        name = f"request {request.id!r}"
        if n == 0:
            raise ConfigError(f"{name}: empty prompt; give it at least one token")
        if not all(0 <= t < self.model.vocab_size for t in request.prompt):
            raise ConfigError(f"{name}: token ids must lie in 0..{self.model.vocab_size - 1}")
        if n >= self.config.length:
            raise ConfigError(f"{name}: a prompt of {n} tokens leaves no room in length={self.config.length}")
        if request.max_tokens < 1:
            raise ConfigError(f"{name}: max_tokens={request.max_tokens} must be at least 1")
        if request.stop and self._tokenizer is None:
            raise ConfigError(f"{name}: stop texts need the engine's tokenizer")
        self._waiting.append(request)

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._active

    @property
    def free_slots(self) -> int:
        """Slots that neither run nor are spoken for by waiting requests."""
        return self.config.slots - len(self._active) - len(self._waiting)

    def cancel(self, request_id: Any) -> Completion | None:
        """Drop a request; what it had so far if it was running, None if it was not known or still waited."""
        kept = collections.deque(r for r in self._waiting if r.id != request_id)
        self._waiting = kept
        for slot, request in self._active.items():
            if request.id == request_id:
                return self._collect({slot: "cancelled"})[0]
        return None

    def partial(self) -> dict[Any, np.ndarray]:
        """Answer tokens so far of each running request, by id."""
        tokens, lengths = np.asarray(self._state.tokens), np.asarray(self._state.lengths)
        return {r.id: tokens[slot, len(r.prompt):lengths[slot]] for slot, r in self._active.items()}

    def step(self, steps: int | None = None) -> list[Completion]:
        """Admit what waits, decode at most `steps` (the config's chunk by default) tokens a slot, collect."""
        self._admit()
        if not self._active:
            return []
        self._state = advance(self._params, self._state, jnp.int32(steps or self.config.chunk),
                              jnp.asarray(bool(self._waiting)), jnp.int32(self.version), model=self.model,
                              stop_ids=self.config.stop_ids)
        running, lengths, tokens = (np.asarray(x) for x in (self._state.running, self._state.lengths,
                                                           self._state.tokens))
        ended = {}
        for slot, request in self._active.items():
            if not running[slot]:
                full = lengths[slot] >= self._end(request)
                last = tokens[slot, lengths[slot] - 1]
                stop = not full or (last in self.config.stop_ids and not request.ignore_stop_ids)
                ended[slot] = "stop" if stop else "length"
        cut = self._find_stop_texts(tokens, lengths)
        return self._collect({**ended, **dict.fromkeys(cut, "stop")}, cut)

    def run(self, requests: Iterable[Request]) -> list[Completion]:
        """Completions of `requests` in their order."""
        requests = list(requests)
        for request in requests:
            self.submit(request)
        found: dict[Any, Completion] = {}
        while len(found) < len(requests):
            found.update({c.id: c for c in self.step()})
        return [found[r.id] for r in requests]

    def _end(self, request: Request) -> int:
        return min(len(request.prompt) + request.max_tokens, self.config.length)

    def _admit(self) -> None:
        free = [slot for slot in range(self.config.slots) if slot not in self._active]
        taken = [self._waiting.popleft() for _ in range(min(len(free), len(self._waiting)))]
        # Prompts of like length together: one of 1,000 tokens must not stretch all others.
        groups: dict[int, list[tuple[int, Request]]] = {}
        for slot, request in zip(free, taken, strict=False):
            groups.setdefault(self._bucket(len(request.prompt)), []).append((slot, request))
        for width, group in sorted(groups.items()):
            self._admit_group(width, group)

    def _bucket(self, length: int) -> int:
        width = self.config.prompt_bucket
        while width < length:
            width *= 2
        return min(width, self.config.length)

    def _admit_group(self, width: int, group: list[tuple[int, Request]]) -> None:
        distinct: dict[tuple[int, ...], int] = {}
        source = [distinct.setdefault(tuple(r.prompt), len(distinct)) for _, r in group]
        rows, count = _round_up(len(distinct)), _round_up(len(group))
        prompts, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for prompt, row in distinct.items():
            prompts[row, :len(prompt)], lengths[row] = prompt, len(prompt)
        pad = count - len(group)

        def column(values: Iterable[Any], fill: Any, dtype: Any) -> np.ndarray:
            return np.array([*values, *[fill] * pad], dtype)

        rules = [r.sampling for _, r in group]
        arrivals = Arrivals(
            slots=column((slot for slot, _ in group), self.config.slots, np.int32),  # type: ignore[arg-type]
            source=column(source, 0, np.int32),  # type: ignore[arg-type]
            ends=column((self._end(r) for _, r in group), 0, np.int32),  # type: ignore[arg-type]
            stoppable=column((not r.ignore_stop_ids for _, r in group), False, bool),  # type: ignore[arg-type]
            seeds=column((r.seed & 0xFFFFFFFF for _, r in group), 0, np.uint32),  # type: ignore[arg-type]
            sampling=Rows(temperature=column((s.temperature for s in rules), 0, np.float32),  # type: ignore[arg-type]
                          top_k=column((s.top_k for s in rules), 0, np.int32),  # type: ignore[arg-type]
                          top_p=column((s.top_p for s in rules), 1, np.float32),  # type: ignore[arg-type]
                          min_p=column((s.min_p for s in rules), 0, np.float32)))  # type: ignore[arg-type]
        self._state = admit(self._params, self._state, prompts, lengths, arrivals, model=self.model)
        self._active.update(dict(group))

    def _find_stop_texts(self, tokens: np.ndarray, lengths: np.ndarray) -> dict[int, int]:
        """Slots whose answer holds a stop text, and the fewest answer tokens that hold it."""
        cut = {}
        for slot, request in self._active.items():
            if not request.stop:
                continue
            n = len(request.prompt)
            answer = tokens[slot, n:lengths[slot]].tolist()
            if not any(text in self._tokenizer.decode(answer) for text in request.stop):
                self._checked[slot] = len(answer)
                continue
            count = self._checked.get(slot, 0) + 1
            while not any(text in self._tokenizer.decode(answer[:count]) for text in request.stop):
                count += 1
            cut[slot] = count
        return cut

    def _collect(self, ended: dict[int, str], cut: dict[int, int] | None = None) -> list[Completion]:
        if not ended:
            return []
        s, out = self._state, []
        tokens, logprobs, versions, lengths = (np.asarray(x) for x in (s.tokens, s.logprobs, s.versions, s.lengths))
        for slot, reason in ended.items():
            request = self._active.pop(slot)
            self._checked.pop(slot, None)
            n = len(request.prompt)
            end = int(lengths[slot]) if cut is None or slot not in cut else n + cut[slot]
            routes = None if s.routes is None else np.asarray(s.routes[:, slot, :end - 1])
            out.append(Completion(request.id, tuple(request.prompt), tokens[slot, n:end].copy(),
                                  logprobs[slot, n:end].copy(), versions[slot, n:end].copy(), reason, routes))
        stopped = np.asarray(s.running).copy()
        stopped[list(ended)] = False
        self._state = dataclasses.replace(s, running=jnp.asarray(stopped))
        return out


def _round_up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
