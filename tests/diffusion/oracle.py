"""Plain numpy masked-diffusion decoders: the reference the JAX decoders are tested against.

One prompt, greedy, one step after another, nothing from jaxllm. Rules shared by every method:

- Left to decode: the generated positions not committed yet. Status counts, not the token: a committed MASK is done.
- The prediction for position i comes from row i, with `shift_logits` from row i - 1 (row 0 for position 0).
- Confidence: float64 softmax over the whole vocabulary, at the argmax (taken without MASK if `suppress_mask`).
- EOS: after each step, e is the smallest committed generated position holding `eos_id`; positions > e still left
  are dropped for good. They stay MASK in the context; tokens committed beyond e stay too. `fill_eos` turns all
  generated positions > e into EOS in the returned tokens only.
- Ties (confidence, probe score) go to the lower position.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from tests.diffusion import oracle_model
from tests.diffusion.oracle_model import Model, load, random_model

__all__ = ["METHODS", "Model", "Record", "Settings", "decode", "load", "random_model"]

METHODS = ("full", "prefix", "dual", "elastic", "full_recompute")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Knobs of every method; exactly one of the four commit rules is set.

    Attributes:
      steps: fixed schedule over the whole generation (block methods), split evenly over blocks.
      threshold: commit every candidate with confidence >= min(threshold, best).
      factor: Fast-dLLM's factor rule.
      tokens_per_step: commit that many most confident candidates.
      block_length: candidates of full, prefix and dual are the masks of the current block.
      window_length: candidates of elastic and full_recompute are that many leftmost positions left.
      cfg_scale: classifier-free guidance, only for full; 0 is off.
      track_num: probes per layer.
      block_caching: False queries and probes with all positions left, not only the window.
      drift_axis: cosine over "heads" (released code) or over "keys" (paper).
      shift_logits: None follows the model.
      order: candidates compete by the probability of the chosen token ("confidence") or of the likeliest ("certainty").
      once: tokens that an answer holds at most once.
    """

    gen_length: int
    steps: int | None = None
    threshold: float | None = None
    factor: float | None = None
    tokens_per_step: int | None = None
    block_length: int = 32
    window_length: int = 16
    cfg_scale: float = 0.0
    gamma: float = 0.9
    track_num: int = 1
    block_caching: bool = True
    drift_axis: str = "heads"
    eos_id: int | None = None
    fill_eos: bool = True
    suppress_mask: bool = True
    shift_logits: bool | None = None
    order: str = "confidence"
    once: tuple[int, ...] = ()


@dataclasses.dataclass
class Record:
    """What a decode did.

    Attributes:
      tokens: prompt and generation.
      nfe: forward evaluations (a guided step counts one).
      layer_rows: rows computed, summed over layers and forwards.
      trace: one dict per step: `query` (rows of the first layer, "all" for every row), `start_reset` (first layer
        refreshed, -1 all from the start, L none; None outside elastic), `sims` (per reused layer), `committed` and
        `tokens` (by position), `track_next`.
      margins: smallest distance to another outcome seen: "argmax" (probability), "choice" (confidence), "sim",
        "track" (probe score). Compare another implementation exactly only where these are well above rounding.
    """

    tokens: list[int]
    nfe: int
    layer_rows: int
    trace: list[dict]
    margins: dict[str, float]


def decode(method: str, model: Model, prompt: list[int], **settings: object) -> Record:
    """Generates after `prompt` by one of METHODS; keywords are the fields of Settings."""
    options = Settings(**settings)  # pyright: ignore[reportArgumentType]
    run = Run(model, list(prompt), options)
    if method in ("full", "prefix", "dual"):
        decode_blocks(method, run)
    elif method == "elastic":
        decode_elastic(run)
    elif method == "full_recompute":
        decode_full_recompute(run)
    else:
        raise ValueError(f"method={method!r}: use one of {METHODS}")
    return run.finish()


# ---------------------------------------------------------------------------------------------- commit rules


def schedule(masks: int, steps: int) -> list[int]:
    """Tokens to commit on each of `steps` steps: an even share, the remainder on the first ones."""
    base, remainder = divmod(masks, steps)
    return [base + (1 if step < remainder else 0) for step in range(steps)]


def choose(confidence: list[float], options: Settings, count: int | None) -> tuple[list[int], float]:
    """Indices to commit and the smallest change of a confidence that would alter them.

    `count` is this step's number of tokens under the schedule.
    """
    order = sorted(range(len(confidence)), key=lambda i: (-confidence[i], i))
    ranked = [confidence[i] for i in order]
    margin = np.inf
    if options.threshold is not None:
        bar = min(options.threshold, ranked[0])
        take = sum(c >= bar for c in ranked)
        if ranked[0] < options.threshold:
            margin = options.threshold - ranked[0]  # else more than the best could pass
            if len(ranked) > 1:
                margin = min(margin, ranked[0] - ranked[1])
        else:
            margin = min(abs(c - options.threshold) for c in ranked)
        return order[:take], float(margin)
    if options.factor is not None:
        n = len(ranked)
        bars = [-1.0] + [1 - options.factor / (i + 2) for i in range(1, n)]
        take = n - 1
        for i in range(n):
            margin = min(margin, abs(ranked[i] - bars[i]))
            if ranked[i] < bars[i]:
                take = i
                break
        if take in (0, n - 1):  # released quirk: the last one passes even when it failed
            take += 1
    else:
        wanted = count if options.steps is not None else options.tokens_per_step
        assert wanted is not None
        take = min(wanted, len(ranked))
    if 0 < take < len(ranked):
        margin = min(margin, ranked[take - 1] - ranked[take])
    return order[:take], float(margin)


class Run:
    """State of one decode: tokens so far, positions left, counts and trace."""

    def __init__(self, model: Model, prompt: list[int], options: Settings) -> None:
        rules = (options.steps, options.threshold, options.factor, options.tokens_per_step)
        if sum(rule is not None for rule in rules) != 1:
            raise ValueError(f"steps, threshold, factor, tokens_per_step = {rules}: set exactly one")
        self.model, self.options, self.prompt = model, options, prompt
        self.tokens = prompt + [model.mask_id] * options.gen_length
        self.length = len(self.tokens)
        self.left = list(range(len(prompt), self.length))  # positions still to decode, ascending
        self.eos_at: int | None = None
        self.answer: list[int] = []  # tokens committed
        self.nfe = self.layer_rows = 0
        self.trace: list[dict] = []
        self.margins: dict[str, float] = {}
        self.shift = model.shift_logits if options.shift_logits is None else options.shift_logits

    def predictor(self, position: int) -> int:
        """The row whose logits predict the token at `position`."""
        return max(position - 1, 0) if self.shift else position

    def note_margin(self, name: str, value: float) -> None:
        self.margins[name] = min(float(value), self.margins.get(name, np.inf))

    def step(self, candidates: list[int], logits: dict[int, np.ndarray], query: list[int], *,
             count: int | None = None, start_reset: int | None = None, sims: tuple[float, ...] = (),
             track: tuple[int, ...] = ()) -> list[int]:
        """Commits among `candidates` by the rule and applies the EOS cut; returns the positions committed.

        `logits` maps a computed row to its logits [V].
        """
        best, confidence, gaps = [], [], []
        said = {t for t in self.answer if t in self.options.once}
        for position in candidates:
            row = logits[self.predictor(position)].astype(np.float64)
            row[list(said)] = -np.inf
            probability = oracle_model.softmax(row)
            allowed = row.copy()
            if self.options.suppress_mask:
                allowed[self.model.mask_id] = -np.inf
            token = int(np.argmax(allowed))
            best.append(token)
            confidence.append(float(probability.max() if self.options.order == "certainty" else probability[token]))
            allowed[token] = -np.inf
            gaps.append(float(probability[token] - probability[int(np.argmax(allowed))]))
        picked, margin = choose(confidence, self.options, count)
        self.note_margin("choice", margin)
        picked = [i for place, i in enumerate(picked)  # by falling confidence: a token's first keeps it
                  if best[i] not in self.options.once or best[i] not in [best[j] for j in picked[:place]]]
        committed = sorted(candidates[i] for i in picked)
        for i in picked:
            self.note_margin("argmax", gaps[i])
            self.tokens[candidates[i]] = best[i]
            self.answer.append(best[i])
            if best[i] == self.options.eos_id:
                self.eos_at = candidates[i] if self.eos_at is None else min(self.eos_at, candidates[i])
        self.left = [p for p in self.left if p not in committed]
        if self.eos_at is not None:
            self.left = [p for p in self.left if p < self.eos_at]
        self.nfe += 1
        self.trace.append({
            "query": "all" if len(query) == self.length and query == sorted(query) else query,
            "start_reset": start_reset, "sims": list(sims), "committed": committed,
            "tokens": [self.tokens[p] for p in committed], "track_next": sorted(track)})
        return committed

    def finish(self) -> Record:
        """The record, EOS filled in on request."""
        tokens = list(self.tokens)
        if self.options.fill_eos and self.eos_at is not None:
            assert self.options.eos_id is not None
            tokens[self.eos_at + 1:] = [self.options.eos_id] * (self.length - self.eos_at - 1)
        return Record(tokens, self.nfe, self.layer_rows, self.trace, self.margins)


# --------------------------------------------------------------------------------- block-wise: full, prefix, dual


def guided_logits(run: Run) -> np.ndarray:
    """Logits [N, V] of a full forward, guided by a second one with the prompt masked if cfg_scale > 0."""
    model, scale = run.model, run.options.cfg_scale
    logits = oracle_model.forward(model, run.tokens)[0]
    run.layer_rows += len(model.layers) * run.length
    if scale > 0:
        masked = [model.mask_id] * len(run.prompt) + run.tokens[len(run.prompt):]
        unconditional = oracle_model.forward(model, masked)[0]
        run.layer_rows += len(model.layers) * run.length
        logits = unconditional + (scale + 1) * (logits - unconditional)
    return logits


def cached_forward(run: Run, rows: list[int], keys: np.ndarray, values: np.ndarray) -> dict[int, np.ndarray]:
    """Logits of `rows` only; their keys and values are rewritten in the caches [L, N, G, K], the rest is frozen."""
    model = run.model
    x = oracle_model.embed(model, [run.tokens[p] for p in rows])
    for layer in range(len(model.layers)):
        q, keys[layer, rows], values[layer, rows] = oracle_model.project(model, layer, x, rows)
        weights = oracle_model.attention_weights(model, layer, q, rows, keys[layer])
        x = oracle_model.finish(model, layer, x, oracle_model.mix(model, weights, values[layer]))
    run.layer_rows += len(model.layers) * len(rows)
    return dict(zip(rows, oracle_model.head(model, x), strict=True))


def decode_blocks(method: str, run: Run) -> None:
    """Block after block: full (no cache), prefix (left of the block frozen), dual (all but the block frozen)."""
    options, everything = run.options, list(range(run.length))
    if options.gen_length % options.block_length:
        raise ValueError(f"gen_length={options.gen_length} is no multiple of block_length={options.block_length}")
    if options.cfg_scale and method != "full":
        raise ValueError(f"cfg_scale={options.cfg_scale}: only method 'full' takes it")
    blocks = options.gen_length // options.block_length
    if options.steps is not None and (options.steps < blocks or options.steps % blocks):
        raise ValueError(f"steps={options.steps} is no positive multiple of the {blocks} blocks")
    for block in range(blocks):
        start = len(run.prompt) + block * options.block_length
        end = start + options.block_length
        todo = [p for p in run.left if start <= p < end]
        counts = schedule(len(todo), options.steps // blocks) if options.steps is not None else None
        first_row = run.predictor(start)  # with shifted logits the row before the block is needed too
        rows = list(range(first_row, run.length if method == "prefix" else end))
        keys = values = np.empty(0)
        number = 0
        while todo:
            if method == "full":
                query, logits = everything, dict(enumerate(guided_logits(run)))
            elif number == 0:
                full_logits, keys, values = oracle_model.forward(run.model, run.tokens)
                run.layer_rows += len(run.model.layers) * run.length
                query, logits = everything, dict(enumerate(full_logits))
            else:
                query, logits = rows, cached_forward(run, rows, keys, values)
            run.step(todo, logits, query, count=counts[number] if counts is not None else None)
            todo = [p for p in run.left if start <= p < end]
            number += 1


# ------------------------------------------------------------------------------------ sliding window: elastic


def probes(run: Run, weights: np.ndarray, window_rows: list[int], eligible: list[int]) -> list[int]:
    """The `track_num` eligible positions the window attends to most; weights [H, R, N], window_rows index R."""
    received = weights[:, window_rows, :].sum(axis=(0, 1))
    order = sorted(eligible, key=lambda p: (-received[p], p))
    number = run.options.track_num
    if number < len(order):
        run.note_margin("track", received[order[number - 1]] - received[order[number]])
    return order[:number]


def drift_similarity(past: np.ndarray, now: np.ndarray, axis: str) -> float:
    """Mean cosine between two sets of attention weights [H, tracked, N], over heads or over keys; of keys seen."""
    dim = {"heads": 0, "keys": 2}[axis]
    norms = [np.maximum(np.sqrt((a * a).sum(axis=dim)), 1e-8) for a in (past, now)]
    cosine = (past * now).sum(axis=dim) / (norms[0] * norms[1])
    return float(cosine[past.max(axis=0) > 0].mean() if axis == "heads" else cosine.mean())


class ElasticCache:
    """Per-layer hidden inputs [N, D], queries [N, H, K], keys and values [N, G, K] of every position."""

    def __init__(self, run: Run) -> None:
        count, n = len(run.model.layers), run.length
        m, dtype = run.model, run.model.dtype
        self.x = np.zeros((count, n, m.top["embed"].shape[1]), dtype)
        self.q = np.zeros((count, n, m.heads, m.head_dim), dtype)
        self.k = np.zeros((count, n, m.kv_heads, m.head_dim), dtype)
        self.v = np.zeros((count, n, m.kv_heads, m.head_dim), dtype)


def elastic_forward(run: Run, cache: ElasticCache, query: list[int], track: list[int], probing: list[int],
                    everything: bool) -> tuple[dict[int, np.ndarray], int, list[float], set[int]]:
    """One forward of `query` rows that refreshes all rows of the layers after the first one that drifted.

    The first len(track) rows of `query` are the tracked ones; `probing` are the window rows that pick the next
    probes. Returns logits per computed row, the first refreshed layer, similarities and the next track.
    """
    model, options = run.model, run.options
    all_rows = list(range(run.length))
    # not "is MASK": status decides, so masks dropped right of EOS are never probes
    done = set(range(len(run.prompt))) | {p for step in run.trace for p in step["committed"]}
    eligible = sorted(done)
    reset = -1 if everything else len(model.layers)
    rows, sims, track_next = list(query), [], set()
    x = oracle_model.embed(model, [run.tokens[p] for p in rows])
    for layer in range(len(model.layers)):
        if layer == reset:  # the boundary: old hidden inputs of all other rows come back from the cache
            cache.x[layer, rows] = x
            rows, x = all_rows, cache.x[layer].copy()
        else:
            cache.x[layer, rows] = x
        run.layer_rows += len(rows)
        past_q, past_k = cache.q[layer, track].copy(), cache.k[layer].copy()
        q, k, v = oracle_model.project(model, layer, x, rows)
        cache.q[layer, rows], cache.k[layer, rows], cache.v[layer, rows] = q, k, v
        weights = oracle_model.attention_weights(model, layer, q, rows, cache.k[layer])
        track_next |= set(probes(run, weights, [rows.index(p) for p in probing], eligible))
        if layer < reset and track:
            past = oracle_model.attention_weights(model, layer, past_q, track, past_k)
            sims.append(drift_similarity(past, weights[:, : len(track)], options.drift_axis))
            run.note_margin("sim", abs(sims[-1] - options.gamma))
            if sims[-1] < options.gamma:
                reset = layer + 1
        x = oracle_model.finish(model, layer, x, oracle_model.mix(model, weights, cache.v[layer]))
    return dict(zip(rows, oracle_model.head(model, x), strict=True)), reset, sims, track_next


def decode_elastic(run: Run) -> None:
    """Elastic-Cache: sliding window, caches of all layers, refresh of deep layers when tracked attention drifts."""
    options, cache = run.options, ElasticCache(run)
    if options.steps is not None or options.cfg_scale:
        raise ValueError("elastic takes neither steps nor cfg_scale")
    track: list[int] = []
    new_decoded: list[int] = []
    while run.left:
        window = run.left[: options.window_length]
        probing = window if options.block_caching else list(run.left)
        everything = run.nfe == 0
        if everything:
            query = list(range(run.length))
        else:
            query = track + new_decoded + probing
            for row in map(run.predictor, window):
                if row not in query:
                    query.append(row)
        logits, reset, sims, track_next = elastic_forward(run, cache, query, track, probing, everything)
        new_decoded = run.step(window, logits, query, start_reset=reset, sims=tuple(sims), track=tuple(track_next))
        track = sorted(track_next)


def decode_full_recompute(run: Run) -> None:
    """Elastic's window and commit rule, every row of every layer on each step: what caching is measured against."""
    options, everything = run.options, list(range(run.length))
    if options.steps is not None or options.cfg_scale:
        raise ValueError("full_recompute takes neither steps nor cfg_scale")
    while run.left:
        window = run.left[: options.window_length]
        probing = window if options.block_caching else list(run.left)
        logits, _, _, track = elastic_forward(run, ElasticCache(run), everything, [], probing, True)
        run.step(window, logits, everything, start_reset=-1, track=tuple(track))
