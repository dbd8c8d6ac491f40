"""`jaxllm bench routing`: what skipped layers save, what mixed routes cost, and how fast routes are searched.

`decode_speedup`, `prefill_speedup`: the whole model over a quarter of its layers left out, for all rows alike.
`mixed_vs_ideal`: rows along routes of their own (4 skips, 2 repeats each) over the time of the plain pass times the
share of rows executed. `search_vs_loop`: paths a second of the tree search, teacher-forced in batches, over a compiled
loop that runs one of its paths at a time. `search_vs_generation`: the same over the released way, which decodes one
path at a time with `transformers` (skips alone here, since its cache does not hold a repeated layer);
`search_vs_engine` over decoding one path at a time with the engine of this library.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxllm import models
from jaxllm.bench.timing import paired, show, torch_sides
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.models import ModelConfig, api, follow, unstack
from jaxllm.models.layers import attend
from jaxllm.routing.counts import to_path
from jaxllm.routing.forward import answer_chances, sweep
from jaxllm.routing.problems import Problem
from jaxllm.routing.rewards import TeacherForced
from jaxllm.routing.tree_search import SearchConfig, search
from jaxllm.tracking import environment

BATCH, CHUNK, LENGTH, ANSWER = 32, 4, 64, 15  # the paper decodes 10 tokens (ARC) or 15 (DART)
SKIPS, REPEATS = 4, 2
IN_FLIGHT = 8  # leaves of a tree evaluated together
DECODE_ROWS, DECODE_TOKENS = 8, 40


def bench(quick: bool) -> dict[str, Any]:
    """All sides in turn, printed; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    model = _model(quick)
    repeats, trees, decoded = (2, 4, 2) if quick else (5, 8, 4)
    params = jax.jit(models.init, static_argnums=0)(model, jax.random.key(0))
    rng = np.random.default_rng(0)
    counts = np.stack([_route(rng, model.num_layers) for _ in range(BATCH)])
    share = float(counts.sum(1).mean() / model.num_layers)
    keep = tuple(i for i in range(model.num_layers) if i % 4 != 2)  # a quarter left out, evenly
    decoding, reading = _uniform_sides(params, model, keep, rng)
    tokens, lengths = rng.integers(0, model.vocab_size, (BATCH, LENGTH)), np.full(BATCH, LENGTH)
    plain = jax.jit(lambda params, tokens: models.apply(params, model, tokens, head=False).hidden)
    sides = {**reading, "plain_pass": lambda: plain(params, tokens),
              "mixed_pass": lambda: sweep(params, tokens, lengths, counts, model=model, chunk=CHUNK).x}
    words = rng.integers(0, model.vocab_size, (trees, LENGTH)).tolist()
    problems = [Problem("bench", i, tuple(row[:-ANSWER]), tuple(row[-ANSWER:]), ANSWER, "", {})
                for i, row in enumerate(words)]
    forced = TeacherForced(params, model, problems, batch=BATCH, chunk=CHUNK, bucket=LENGTH)
    engine = Engine(params, model, EngineConfig(slots=1, length=LENGTH, chunk=ANSWER, prompt_bucket=LENGTH,
                                                layer_routes=True))
    settings = SearchConfig(simulations=2 * IN_FLIGHT, in_flight=IN_FLIGHT, stop="budget")
    asked: list[tuple[int, np.ndarray]] = []

    def kept(routes: Any) -> Any:
        asked.extend(routes)
        return forced(routes)

    searched = sum(found.evaluated for _, found in search(range(trees), model.num_layers, kept, BATCH, settings))
    asked = [asked[i] for i in rng.permutation(len(asked))]  # of those that the search asks for
    sides |= {"search": lambda: list(search(range(trees), model.num_layers, forced, BATCH, settings)),
              "loop": lambda: [_one_path(params, problems[i], c, model) for i, c in asked[:decoded * 4]],
              "engine": lambda: [engine.run([Request(0, problems[i].prompt, ANSWER, Sampling(0.0), ignore_stop_ids=True,
                                                   counts=tuple(c.tolist()))]) for i, c in asked[:decoded]]}
    peers, missing = torch_sides(lambda: _torch(model, [(problems[i], c) for i, c in asked[:decoded]]))
    with console.status("timing"):
        seconds = paired(decoding, repeats, settle=1) | paired({**sides, **peers}, repeats)
    out: dict[str, Any] = {
        "bench": "routing", "quick": quick, "environment": environment(), "seconds": seconds,
        "settings": {"parameters": model.num_parameters, "layers": model.num_layers, "kept": keep, "batch": BATCH,
                     "chunk": CHUNK, "length": LENGTH, "answer": ANSWER, "skips": SKIPS, "repeats": REPEATS,
                     "share_of_rows": share, "decode_rows": DECODE_ROWS, "decode_tokens": DECODE_TOKENS},
        "paths": {"search": searched, "loop": decoded * 4, **dict.fromkeys(("engine", *peers), decoded)}}
    out["ratios"] = ratios(out)
    out["notes"] = [] if missing is None else [f"search_vs_generation not measured: {missing}"]
    rows = [[name, float(np.median(s)), out["paths"].get(name, "")] for name, s in seconds.items()]
    show(console, f"{model.num_parameters / 1e6:.0f}M parameters, {model.num_layers} layers",
         ["side", "seconds", "paths"], rows, out)
    return out


def ratios(out: dict[str, Any]) -> dict[str, float | None]:
    """From medians of the raw seconds; the peer at its better number of threads."""
    second = {name: float(np.median(s)) for name, s in out["seconds"].items()}
    rate = {name: count / second[name] for name, count in out["paths"].items()}
    peers = [value for name, value in rate.items() if name.startswith("torch")]
    return {"decode_speedup": second["decode_whole"] / second["decode_skipping"],
            "prefill_speedup": second["prefill_whole"] / second["prefill_skipping"],
            "mixed_vs_ideal": second["mixed_pass"] / (second["plain_pass"] * out["settings"]["share_of_rows"]),
            "search_vs_loop": rate["search"] / rate["loop"],
            "search_vs_engine": rate["search"] / rate["engine"],
            "search_vs_generation": rate["search"] / max(peers) if peers else None}


def _model(quick: bool) -> ModelConfig:
    """24 layers and about 100M parameters, or of a tenth of the size."""
    d, vocab = (192, 4096) if quick else (576, 32000)
    return ModelConfig(vocab_size=vocab, d_model=d, num_layers=24, num_heads=d // 64, num_kv_heads=d // 192,
                       head_dim=64, d_mlp=2 * d + d // 2, max_length=512, causal=True, tie_embeddings=True,
                       family="llama", activation_dtype="float32", weight_dtype="float32", head_dtype="float32")


def _route(rng: np.random.Generator, layers: int) -> np.ndarray:
    counts = np.ones(layers, np.int8)
    changed = rng.permutation(layers)[:SKIPS + REPEATS]
    counts[changed[:SKIPS]], counts[changed[SKIPS:]] = 0, 2
    return counts


def _uniform_sides(params: Any, model: ModelConfig, keep: tuple[int, ...],
                   rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Decoding and reading prompts, by the whole model and without the layers left out."""
    prompts = rng.integers(0, model.vocab_size, (DECODE_ROWS, 8))
    long = rng.integers(0, model.vocab_size, (DECODE_ROWS, 128))
    decoding, reading = {}, {}
    layers = unstack(params, model)
    for name, (weights, shape) in (("whole", (layers, model)), ("skipping", follow(layers, model, keep))):
        engine = Engine(weights, shape, EngineConfig(slots=DECODE_ROWS, length=8 + DECODE_TOKENS, chunk=DECODE_TOKENS,
                                                     prompt_bucket=8))
        requests = [Request(i, p.tolist(), DECODE_TOKENS, Sampling(0.0), ignore_stop_ids=True)
                    for i, p in enumerate(prompts)]
        decoding[f"decode_{name}"] = functools.partial(engine.run, requests)
    run = jax.jit(lambda params, tokens, path: models.apply(params, model, tokens, head=False, path=path).hidden)
    for name, path in (("whole", range(model.num_layers)), ("skipping", keep)):
        reading[f"prefill_{name}"] = functools.partial(run, params, long, jnp.array(path))
    return decoding, reading


def _torch(model: ModelConfig, asked: list[tuple[Problem, np.ndarray]]) -> dict[str, Any]:
    """`transformers` with random weights of the same shape, its layers put together anew for each path."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    peer: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.d_model, intermediate_size=model.d_mlp, head_dim=model.head_dim,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads, num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_length, tie_word_embeddings=model.tie_embeddings))
    peer.eval()
    layers = list(peer.model.layers)

    def side(threads: int) -> Any:
        def call() -> None:
            torch.set_num_threads(threads)
            for problem, route in asked:
                chosen = [layers[i] for i in np.flatnonzero(route)]
                for place, layer in enumerate(chosen):
                    layer.self_attn.layer_idx = place
                peer.model.layers = torch.nn.ModuleList(chosen)
                peer.config.num_hidden_layers = len(chosen)
                ids = torch.tensor([problem.prompt])
                with torch.inference_mode():
                    peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER,
                                  min_new_tokens=ANSWER, do_sample=False, pad_token_id=0)
        return call

    return {f"torch_{n}": side(n) for n in (1, 2)}


def _one_path(params: Any, problem: Problem, counts: np.ndarray, model: ModelConfig) -> jax.Array:
    path = to_path(counts)
    row = jnp.array([problem.prompt + problem.answer])
    padded = jnp.array(path + (0,) * (2 * model.num_layers - len(path)))
    x = _loop(params, row, padded, len(path), model=model)
    return answer_chances(params, x, row, jnp.array([len(problem.prompt)]), jnp.array([row.shape[1]]), model=model,
                          span=ANSWER)[0]


@functools.partial(jax.jit, static_argnames="model")
def _loop(params: Any, tokens: jax.Array, path: jax.Array, length: int, *, model: ModelConfig) -> jax.Array:
    """The baseline: one row along one path, one program for all paths."""
    t = tokens.shape[1]
    tables, mask = api.tables(model, jnp.arange(t)[None]), jnp.tril(jnp.ones((1, 1, t, t), bool))

    def step(i: jax.Array, x: jax.Array) -> jax.Array:
        layer = jax.tree.map(lambda leaf: lax.dynamic_index_in_dim(leaf, path[i], keepdims=False), params["layers"])
        q, k, v = api.project(layer, model, x, tables)
        return api.finish(layer, model, x, attend(q, k, v, mask))

    return lax.fori_loop(0, length, step, api.embed(params, model, tokens))
