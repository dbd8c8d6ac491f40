"""Continuous batching: a fixed number of slots, decoded together, refilled as requests finish.

The device does three things, each one program per shape (`slots.py`): `admit` reads prompts and lays them into slots,
`extend` reads the rest of prompts whose beginning a free slot still holds, `advance` decodes until a number of steps is
done or enough slots are free for those that wait. The host only queues and collects.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.config import ConfigError, check
from jaxllm.generation.forward import Decider
from jaxllm.generation.loading import place_weights
from jaxllm.generation.sampling import Rows, Sampling
from jaxllm.generation.slots import Arrivals, admit, advance, clear, empty_slots, extend
from jaxllm.models import ModelConfig, unstack
from jaxllm.models.paths import DECIDE, check_counts
from jaxllm.parallel import on_mesh, replicated


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Shape of an engine.

    Attributes:
      slots: requests decoded at a time, S.
      length: longest prompt and answer together, in tokens, N.
      chunk: most decode steps between two looks of the host: the grain of streaming, stop strings and new weights, and
        the longest that a request waits while a slot is free.
      refill: where requests wait and slots run, decoding goes on until this many have finished, or a chunk is over, and
        the waiting are let in together: reading prompts holds up all slots, and reading few costs a pass over the
        weights as reading many does. None for an eighth of the slots.
      prompt_bucket: prompts are padded to this length or twice, four times... as much; a program is compiled for each.
      read_tokens: most prompt tokens read in one pass, padding included, which bounds its memory; a longer prompt is
        read alone.
      stop_ids: tokens that end an answer (they belong to it).
      once: tokens that an answer holds at most once, such as the items of a ranking; the prompt's do not count.
      keep_routes: give back the experts that a mixture took for each token.
      layer_routes: requests skip and repeat layers, by counts of their own or by those that the engine's decider reads
        off the prompt; needs twice the caches.
      reuse: of a prompt that begins as what a free slot has read or written, only the rest is read, as in the next turn
        of a conversation. Sums are then formed in another order: results are the same but for rounding.
    """

    slots: int = 32
    length: int = 1024
    chunk: int = 32
    refill: int | None = None
    prompt_bucket: int = 64
    read_tokens: int = 4096
    stop_ids: tuple[int, ...] = ()
    once: tuple[int, ...] = ()
    keep_routes: bool = False
    layer_routes: bool = False
    reuse: bool = False

    def __post_init__(self) -> None:
        for name in ("slots", "length", "chunk", "prompt_bucket", "read_tokens"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.refill is None or 1 <= self.refill <= self.slots, "refill", self.refill,
              f"must lie in 1..slots={self.slots}")
        check(not (self.keep_routes and self.layer_routes), "layer_routes", True, "gives no experts back; without "
              "keep_routes")
        check(not (self.reuse and self.layer_routes), "reuse", True, "left out with layer_routes")


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
      counts: executions of each layer, L of 0, 1, 2, in an engine with `layer_routes`. None for the decider's, or all
        layers once without one.
    """

    id: Any
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling = Sampling()
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_stop_ids: bool = False
    counts: tuple[int, ...] | None = None


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
      counts: int8 `[L]`, executions of each layer; None without `layer_routes`.
    """

    id: Any
    prompt: tuple[int, ...]
    tokens: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    reason: str
    routes: np.ndarray | None = None
    counts: np.ndarray | None = None


class Engine:
    """Requests in, completions out.

    A loop of `step` calls drives it; `run` is that loop for a list of requests. One thread at a time.
    """

    def __init__(self, params: Any, model: ModelConfig, config: EngineConfig, *, tokenizer: Any = None,
                 version: int = 0, mesh: Mesh | None = None, decider: Decider | None = None) -> None:
        """An empty engine.

        Args:
          params: as for `update`.
          model: causal description.
          config: shape.
          tokenizer: for requests with stop texts.
          version: of the weights.
          mesh: devices that the weights are brought to and that everything runs on, split over its `tensor` axis. Then
            no others are used but to read the weights given to `update`. By default the engine runs where its weights
            lie.
          decider: chooses each prompt's executions of layers, with `layer_routes`.

        Raises:
          ConfigError: a bidirectional model, a length beyond the model's, or a mesh that splits anything but `tensor`.
        """
        check(model.causal, "model.causal", model.causal, "token after token needs a causal model; decode others with "
              "jaxllm decode")
        check(config.length <= model.max_length, "length", config.length, f"the model reads {model.max_length} tokens")
        check(not config.keep_routes or model.num_experts > 0, "keep_routes", True, "a dense model has no experts")
        check(decider is None or config.layer_routes, "layer_routes", False, "must be true for a decider to be asked")
        for axis, size in {} if mesh is None else mesh.shape.items():
            check(axis == "tensor" or size == 1, f"mesh.{axis}", size, "an engine's mesh splits over tensor alone")
        self.model, self.config, self._tokenizer, self._mesh = model, config, tokenizer, mesh
        self._waiting: collections.deque[Request] = collections.deque()
        self._active: dict[int, Request] = {}
        self._checked: dict[int, int] = {}  # answer tokens already searched for stop texts
        self._left: dict[int, np.ndarray] = {}  # tokens whose keys a slot that ended still holds, of these weights
        self._once, self._decider = None, decider
        if config.once:
            check(0 <= min(config.once) and max(config.once) < model.vocab_size, "once", max(config.once),
                  f"token ids must lie in 0..{model.vocab_size - 1}")
            mask = np.isin(np.arange(model.vocab_size), config.once)
            self._once = jnp.asarray(mask) if mesh is None else jax.device_put(mask, replicated(mesh))
        with self._context():
            self._state = empty_slots(model, config.slots, config.length, routes=config.keep_routes,
                                      layer_routes=config.layer_routes, mesh=mesh)
        self.update(params, version)

    def update(self, params: Any, version: int) -> None:
        """Draw from these weights from the next step on; caches stay as they are.

        Stacked parameters, as a trainer has them, are copied: its next step may donate them. Unstacked ones are not
        unless the engine has a mesh: to its devices all are copied.
        """
        if self._mesh is not None:
            params = place_weights(params, self.model, self._mesh)
        elif not isinstance(params["layers"], tuple):
            rest = {name: part for name, part in params.items() if name != "layers"}
            params = {**unstack(params, self.model), **jax.tree.map(jnp.copy, rest)}
        self._params, self.version = params, version
        self._left.clear()  # keys of other weights, as those that running requests have read so far
        self._mixed = set(self._active)

    def reset(self) -> None:
        """Forget all that has run: what follows is bit for bit what a new engine with these weights would give.

        Raises:
          ConfigError: requests wait or run.
        """
        count = len(self._waiting) + len(self._active)
        if count:
            raise ConfigError(f"reset: {count} requests are open; run them to their end or cancel them first")
        self._left.clear()
        with self._context():
            self._state = clear(self._state, mesh=self._mesh)

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
        if request.counts is not None:
            check(self.config.layer_routes, "layer_routes", False, f"must be true for the counts of {name}")
            counts = check_counts(request.counts, self.model.num_layers, f"{name}: counts")
            request = dataclasses.replace(request, counts=tuple(counts.tolist()))
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
        # Scalars as numpy has them: those of jax.numpy would first be put on the default device, which may be a
        # trainer's.
        with self._context():
            self._state = advance(self._params, self._state, np.int32(steps or self.config.chunk),
                                  np.int32(self._worth_a_stop()), np.int32(self.version), model=self.model,
                                  stop_ids=self.config.stop_ids, once=self._once, mesh=self._mesh)
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

    def _context(self) -> contextlib.AbstractContextManager[None]:
        """Its own mesh, if it has one, in place of the caller's."""
        return contextlib.nullcontext() if self._mesh is None else on_mesh(self._mesh)

    def _end(self, request: Request) -> int:
        return min(len(request.prompt) + request.max_tokens, self.config.length)

    def _worth_a_stop(self) -> int:
        """Finished slots at which decoding stops for those that wait; more than there are when nobody does."""
        refill = self.config.refill or max(1, self.config.slots // 8)
        return min(refill, len(self._waiting)) or self.config.slots + 1

    def _admit(self) -> None:
        free = [slot for slot in range(self.config.slots) if slot not in self._active]
        taken = [self._waiting.popleft() for _ in range(min(len(free), len(self._waiting)))]
        if self._left and taken:
            free, taken = self._go_on(free, taken)
        # Prompts of like length together: one of 1,000 tokens must not stretch all others.
        groups: dict[int, list[tuple[int, Request]]] = {}
        for slot, request in zip(free, taken, strict=False):
            groups.setdefault(self._bucket(len(request.prompt)), []).append((slot, request))
        for width, group in sorted(groups.items()):
            distinct: dict[Any, list[tuple[int, Request]]] = {}
            for slot, request in group:
                distinct.setdefault((tuple(request.prompt), request.counts), []).append((slot, request))
            prompts, start = list(distinct.items()), 0
            for size in _parts(len(prompts), width, self.config.read_tokens):
                self._admit_group(width, size, dict(prompts[start:start + size]))
                start += size

    def _go_on(self, free: list[int], taken: list[Request]) -> tuple[list[int], list[Request]]:
        """Admit requests of `taken` that go on from what a slot of `free` holds; the slots and requests that remain."""
        n, gone = self.config.length, np.asarray(self._state.written) - np.asarray(self._state.first)
        slots = [s for s in free if s in self._left and gone[s] <= n]  # else the ring has come round over its beginning
        lines = np.full((len(slots), n), -1)
        for line, slot in zip(lines, slots, strict=True):
            line[:len(self._left[slot])] = self._left[slot]
        alike: list[tuple[int, int, int]] = []  # tokens in common, request, slot
        for i, request in enumerate(taken):
            prompt = np.asarray(request.prompt[:-1])
            common = np.cumprod(lines[:, :len(prompt)] == prompt, axis=1).sum(1)
            alike += [(int(c), i, slot) for c, slot in zip(common, slots, strict=True) if c >= LEAST_REUSED]
        held, used = set[int](), set[int]()  # slots, requests
        groups: dict[int, list[tuple[int, Request, int]]] = {}
        for known, i, slot in sorted(alike, key=lambda x: -x[0]):
            if slot in held or i in used:
                continue
            held.add(slot)
            used.add(i)
            width = min(max(LEAST_REUSED, _round_up(len(taken[i].prompt) - known)), n)
            groups.setdefault(width, []).append((slot, taken[i], known))
        for width, group in sorted(groups.items()):
            start = 0
            for size in _parts(len(group), width, self.config.read_tokens):
                self._extend_group(width, size, group[start:start + size])
                start += size
        # Slots that hold nothing first, so that what others hold may still be gone on with.
        free = sorted((s for s in free if s not in held), key=lambda s: s in self._left)
        return free, [r for i, r in enumerate(taken) if i not in used]

    def _extend_group(self, width: int, rows: int, group: list[tuple[int, Request, int]]) -> None:
        """Slots, requests and the tokens that each slot has read of its own, gone on with in `rows` rows."""
        rest, known, lengths = np.zeros((rows, width), np.int32), np.zeros(rows, np.int32), np.ones(rows, np.int32)
        for row, (_, request, count) in enumerate(group):
            rest[row, :len(request.prompt) - count] = request.prompt[count:]
            known[row], lengths[row] = count, len(request.prompt)
        arrivals = self._arrivals([(slot, request) for slot, request, _ in group], [0] * len(group), rows)
        with self._context():
            self._state = extend(self._params, self._state, rest, known, lengths, arrivals, model=self.model,
                                 mesh=self._mesh)
        self._active.update({slot: request for slot, request, _ in group})

    def _bucket(self, length: int) -> int:
        width = self.config.prompt_bucket
        while width < length:
            width *= 2
        return min(width, self.config.length)

    def _admit_group(self, width: int, rows: int, asked: dict[Any, list[tuple[int, Request]]]) -> None:
        """Slots and requests by prompt and counts, read together in `rows` rows."""
        group, source = [], []
        prompts, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        counts = None
        if self.config.layer_routes:
            counts = np.full((rows, self.model.num_layers), 1 if self._decider is None else DECIDE, np.int8)
        for row, ((prompt, given), requests) in enumerate(asked.items()):
            prompts[row, :len(prompt)], lengths[row] = prompt, len(prompt)
            if counts is not None and given is not None:
                counts[row] = given
            group += requests
            source += [row] * len(requests)
        arrivals = self._arrivals(group, source, _round_up(len(group)))
        with self._context():
            self._state = admit(self._params, self._state, prompts, lengths, arrivals, model=self.model,
                                mesh=self._mesh, counts=counts, decider=self._decider)
        self._active.update(dict(group))

    def _arrivals(self, group: list[tuple[int, Request]], source: list[int], rows: int) -> Arrivals:
        """What the device is told of slots and requests, whose prompts are rows `source`, padded to `rows`."""
        pad = rows - len(group)

        def column(values: Iterable[Any], fill: Any, dtype: Any) -> np.ndarray:
            return np.array([*values, *[fill] * pad], dtype)

        rules = [r.sampling for _, r in group]
        return Arrivals(
            slots=column((slot for slot, _ in group), self.config.slots, np.int32),  # type: ignore[arg-type]
            source=column(source, 0, np.int32),  # type: ignore[arg-type]
            ends=column((self._end(r) for _, r in group), 0, np.int32),  # type: ignore[arg-type]
            stoppable=column((not r.ignore_stop_ids for _, r in group), False, bool),  # type: ignore[arg-type]
            seeds=column((r.seed & 0xFFFFFFFF for _, r in group), 0, np.uint32),  # type: ignore[arg-type]
            sampling=Rows(temperature=column((s.temperature for s in rules), 0, np.float32),  # type: ignore[arg-type]
                          top_k=column((s.top_k for s in rules), 0, np.int32),  # type: ignore[arg-type]
                          top_p=column((s.top_p for s in rules), 1, np.float32),  # type: ignore[arg-type]
                          min_p=column((s.min_p for s in rules), 0, np.float32)))  # type: ignore[arg-type]

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
        counts = None if s.counts is None else np.asarray(s.counts)
        for slot, reason in ended.items():
            request = self._active.pop(slot)
            self._checked.pop(slot, None)
            n = len(request.prompt)
            if slot in self._mixed:
                self._mixed.remove(slot)
            elif self.config.reuse:
                self._left[slot] = tokens[slot, :lengths[slot] - 1].copy()  # the last was never read
            end = int(lengths[slot]) if cut is None or slot not in cut else n + cut[slot]
            # Cut on the host: a slice on the device would be a program for each length.
            routes = None if s.routes is None else np.asarray(s.routes[:, slot])[:, :end - 1]
            out.append(Completion(request.id, tuple(request.prompt), tokens[slot, n:end].copy(),
                                  logprobs[slot, n:end].copy(), versions[slot, n:end].copy(), reason, routes,
                                  None if counts is None else counts[slot]))
        running = np.asarray(s.running).copy()
        if running[list(ended)].any():  # cancelled, or cut at a stop text
            running[list(ended)] = False
            self._state = dataclasses.replace(s, running=jax.device_put(running, s.running.sharding))
        return out


LEAST_REUSED = 16
"""Tokens that a prompt must have in common with a slot for the rest alone to be read."""

# Padding below this many tokens costs less than one more pass over the weights.
_PASS_TOKENS = 128


def _parts(count: int, width: int, most: int) -> list[int]:
    """Rows of the passes in which `count` prompts padded to `width` are read: powers of two, hence few programs.

    No pass takes more than `most` tokens, unless by one row.
    """
    most = max(1, most // width)
    limit, parts = 1 << most.bit_length() - 1, []
    while count > 0:
        above = _round_up(count)
        padded = above <= limit and (above - count) * width < _PASS_TOKENS
        parts.append(above if padded else min(limit, above if above == count else above // 2))
        count -= parts[-1]
    return parts


def _round_up(n: int) -> int:
    """The next power of two."""
    return 1 << max(0, n - 1).bit_length()
