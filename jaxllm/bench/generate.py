"""`jaxllm bench generate`: the engine against `transformers` at fixed lengths, and against itself in fixed batches.

The mixed workload is that of a reasoning model: prompts of one length, answers whose lengths are log-uniform over a
factor of sixteen, most of them short and some several times their prompt. It is six times as many requests as there are
slots (four with --quick), so the time in which the last ones end alone counts for both sides. Conversations are of five
turns in every slot: a quarter of a prompt is said, a quarter of one answered, with the past read again or kept.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxllm import models
from jaxllm.bench.timing import paired, show, torch_sides
from jaxllm.checkpoint import load_gguf, smollm2_path
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.models import ModelConfig
from jaxllm.models.presets import preset
from jaxllm.tracking import environment

SLOTS, PROMPT, TURNS = 32, 64, 5
READ = 16 * PROMPT  # tokens a pass; more gain a CPU nothing, and its memory must be taken from the kernel anew
GREEDY = Sampling(temperature=0)
TORCH_THREADS = (1, 2)


def bench(quick: bool) -> dict[str, Any]:
    """All sides in turn, printed; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    answer, longest, rounds, repeats = (16, 64, 4, 2) if quick else (32, 128, 6, 2)
    params, model, weights = _model(quick)
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, model.vocab_size, (rounds * SLOTS, PROMPT))
    lengths = np.exp(rng.uniform(np.log(longest / 16), np.log(longest), rounds * SLOTS)).astype(int)
    fixed = [_request(i, prompts[i], answer) for i in range(SLOTS)]
    mixed = [_request(i, prompts[i], int(n)) for i, n in enumerate(lengths)]

    def engine_for(length: int, chunk: int, reuse: bool = False) -> Engine:
        return Engine(params, model, EngineConfig(slots=SLOTS, length=PROMPT + length, chunk=chunk,
                                                  prompt_bucket=PROMPT, read_tokens=READ, reuse=reuse))

    even, engine = engine_for(answer, answer), engine_for(longest, longest)
    reading, keeping = (engine_for(3 * PROMPT, PROMPT // 4, reuse) for reuse in (False, True))

    def static() -> None:
        for start in range(0, len(mixed), SLOTS):
            engine.run(mixed[start:start + SLOTS])

    sides: dict[str, Callable[[], Any]] = {"fixed": lambda: even.run(fixed),
                                           "continuous": lambda: engine.run(mixed), "static": static,
                                           "turns_read_again": lambda: _talk(reading, prompts),
                                           "turns_kept": lambda: _talk(keeping, prompts)}
    peers, missing = torch_sides(lambda: _torch(model, prompts[:SLOTS], answer))
    sides |= peers
    with console.status("compiling"):  # a program for each number of prompts that is read at a time
        for count in (2**i for i in range((READ // PROMPT).bit_length())):
            engine.run([_request(i, prompts[i], 2) for i in range(count)])
        for name in ("fixed", "turns_read_again", "turns_kept", *peers):
            sides[name]()
    # Of all threads: what a side costs also where others use the machine, which seconds on the clock do not say.
    cpu_seconds: dict[str, list[float]] = {name: [] for name in sides}

    def counted(name: str, call: Callable[[], Any]) -> None:
        begun = time.process_time()
        call()
        cpu_seconds[name].append(time.process_time() - begun)

    with console.status("timing"):
        seconds = paired({name: functools.partial(counted, name, call) for name, call in sides.items()}, repeats,
                         warmup=0)
    tokens = {name: SLOTS * answer for name in sides} | dict.fromkeys(("continuous", "static"), int(lengths.sum()))
    tokens |= dict.fromkeys(("turns_read_again", "turns_kept"), SLOTS * TURNS * (PROMPT // 4))
    out: dict[str, Any] = {
        "bench": "generate", "quick": quick, "environment": environment(), "weights": weights,
        "settings": {"slots": SLOTS, "prompt": PROMPT, "read_tokens": READ, "answer": answer,
                     "mixed_lengths": lengths.tolist(), "dtype": model.activation_dtype, "sampling": "greedy"},
        "tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds,
        "notes": [f"mixed: {len(mixed)} requests, prompts of {PROMPT} tokens, answers of {longest // 16} to {longest}, "
                  "log-uniform",
                  f"continuous_vs_static in CPU seconds: {_static_over_continuous(cpu_seconds):.3g}",
                  *([] if missing is None else [f"vs_transformers not measured: {missing}"])]}
    out["ratios"] = ratios(out)
    median = {name: float(np.median(s)) for name, s in seconds.items()}
    show(console, f"{model.num_parameters / 1e6:.0f}M parameters ({weights}), {SLOTS} slots",
         ["side", "seconds", "tokens/s"], [[n, s, tokens[n] / s] for n, s in median.items()], out)
    return out


def ratios(out: dict[str, Any]) -> dict[str, float | None]:
    """Seconds of the other side over the engine's, medians."""
    median = {name: float(np.median(s)) for name, s in out["seconds"].items()}
    peer = min((s for name, s in median.items() if name.startswith("torch_")), default=None)
    return {"vs_transformers": None if peer is None else peer / median["fixed"],
            "continuous_vs_static": _static_over_continuous(out["seconds"]),
            "turns_kept_vs_read_again": median["turns_read_again"] / median["turns_kept"]}


def _static_over_continuous(seconds: dict[str, list[float]]) -> float:
    return float(np.median(seconds["static"]) / np.median(seconds["continuous"]))


def _talk(engine: Engine, prompts: np.ndarray) -> None:
    """Conversations of the first prompts, whose turns are pieces of later ones."""
    quarter = PROMPT // 4
    said = [list(p) for p in prompts[:SLOTS].tolist()]
    for turn in range(TURNS):
        done = engine.run([_request(i, np.array(p), quarter) for i, p in enumerate(said)])
        said = [[*p, *c.tokens.tolist(), *prompts[SLOTS + turn, (i % 4) * quarter:][:quarter].tolist()]
                for i, (p, c) in enumerate(zip(said, done, strict=True))]


def _request(index: int, prompt: np.ndarray, count: int) -> Request:
    return Request(index, prompt.tolist(), count, GREEDY, ignore_stop_ids=True)


def _model(quick: bool) -> tuple[Any, ModelConfig, str]:
    path = None if quick else smollm2_path()
    if path is not None:
        params, model, _ = load_gguf(path)
        return models.unstack(params, model, donate=True), model, "SmolLM2-135M-Instruct"
    changes = {"num_layers": 6, "vocab_size": 8192} if quick else {}
    model = preset("smollm2-135m", activation_dtype="float32", weight_dtype="float32", head_dtype="float32", **changes)
    return jax.jit(models.init, static_argnums=0)(model, jax.random.key(0)), model, "random"


def _torch(model: ModelConfig, prompts: np.ndarray, answer: int) -> dict[str, Callable[[], None]]:
    """`transformers` with the same shapes, random weights and its own cache, by number of threads."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    peer: Any = LlamaForCausalLM(LlamaConfig(
        vocab_size=model.vocab_size, hidden_size=model.d_model, intermediate_size=model.d_mlp,
        num_hidden_layers=model.num_layers, num_attention_heads=model.num_heads, num_key_value_heads=model.num_kv_heads,
        max_position_embeddings=model.max_length, tie_word_embeddings=model.tie_embeddings))
    peer.eval()
    ids = torch.tensor(prompts, dtype=torch.long)

    def side(threads: int) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(threads)
            with torch.inference_mode():
                peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=answer, min_new_tokens=answer,
                              do_sample=False, pad_token_id=0)
        return call

    return {f"torch_{n}": side(n) for n in TORCH_THREADS}
