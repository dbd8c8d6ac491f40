"""`jaxllm bench rl`: how much of generating and training the pipeline overlaps, with stand-ins and for real."""

from __future__ import annotations

import collections
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from jaxllm.bench.timing import Timings, show
from jaxllm.config import build
from jaxllm.generation.episode import Episode
from jaxllm.rl import Curriculum, Generator, Group, Groups, PipelineConfig, RLConfig, train_policy
from jaxllm.rl.prompts import Prompt
from jaxllm.tracking import environment

LAGS = (1, 4, 8)
# Stand-ins: a batch of 8 prompts x 4 samples over 16 slots takes about as long as a training step.
SIMULATED = {"prompts_per_step": 8, "samples": 4, "slots": 16, "shortest": 8, "longest": 64, "tick_s": 0.002,
             "train_s": 0.16}
# 103k parameters. Random ones answer no sum, so that updates are 0 and answers stay as long as they were.
REAL: dict[str, Any] = {
    "model": dict(vocab_size=32, d_model=64, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=16, d_mlp=172,
                  max_length=32, causal=True, family="llama", eos_id=1, pad_id=1),
    "prompts": {"task": {"name": "addition", "seed": 0}, "size": 3000}, "prompts_per_step": 24, "length": 32,
    "rollout": {"samples": 8, "max_tokens": 24}, "slots": 64, "chunk": 4, "prompt_bucket": 8, "max_empty": 10**6,
    "export": False}


class Standin:
    """A sampler of known latency: every tick of it adds a token to each of its slots.

    Attributes:
      version: of the weights that draw the next token.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        """Nothing under way; `settings` as `SIMULATED`."""
        self._settings, self.version = settings, 0
        self._waiting: collections.deque[tuple[Episode, int]] = collections.deque()
        self._active: list[tuple[Episode, int]] = []  # and the length at which it ends

    @property
    def under_way(self) -> int:
        """Episodes that are not finished."""
        return len(self._waiting) + len(self._active)

    @property
    def free(self) -> int:
        """Slots that nobody waits for."""
        return self._settings["slots"] - self.under_way

    def update(self, params: Any, version: int) -> None:
        """Take the version; there are no weights."""
        del params
        self.version = version

    def start(self, id: Any, prompt: Sequence[int], seed: int) -> None:
        """Queue samples of log-uniform lengths, which `seed` decides."""
        low, high = np.log(self._settings["shortest"]), np.log(self._settings["longest"])
        lengths = np.exp(np.random.default_rng(seed).uniform(low, high, self._settings["samples"]))
        for sample, length in enumerate(lengths):
            self._waiting.append((Episode.begin((id, sample), prompt, self.version), len(prompt) + int(length)))

    def step(self) -> list[Episode]:
        """A tick."""
        while self._waiting and len(self._active) < self._settings["slots"]:
            self._active.append(self._waiting.popleft())
        time.sleep(self._settings["tick_s"])
        for episode, _ in self._active:
            for column, value in ((episode.tokens, 0), (episode.sampled, 1), (episode.versions, self.version)):
                column.append(value)
            episode.logprobs.append(0.0)
        done = [e for e, length in self._active if len(e.tokens) >= length]
        self._active = [(e, length) for e, length in self._active if len(e.tokens) < length]
        for episode in done:
            episode.reason = "stop"
        return done


def bench(quick: bool) -> dict[str, Any]:
    """All sides in turn, printed; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    steps, repeats = (6, 1) if quick else (16, 5)
    with console.status("stand-ins"):
        seconds, lags, filling = simulated(SIMULATED, steps, repeats)
    out: dict[str, Any] = {
        "bench": "rl", "quick": quick, "environment": environment(),
        "settings": {"simulated": {**SIMULATED, "steps": steps}, "real": None}, "seconds": seconds, "lags": lags,
        "sync_generation_s": filling, "real_seconds": {}, "ratios": {}, "notes": [
            "async_vs_sync is the pipeline's own: Groups, Generator and the trainer's calls are those of a run, but "
            "decoding and training are sleeps of fixed length, so that each half has hardware to itself. With both "
            "halves equally long the limit is about 2; a little more where sync also waits for its longest answers."]}
    if jax.device_count() == 1:
        timed, warm, repeats = (6, 4, 1) if quick else (30, 10, 3)
        with console.status("a small policy"):
            out["real_seconds"] = real(REAL, timed, warm, repeats, untimed=0 if quick else 1)
        out["settings"]["real"] = {**REAL, "timed_steps": timed, "steps_before": warm}
        out["notes"].append(
            f"async_vs_sync_real has one device for both halves ({jax.device_count()} {jax.default_backend()}, "
            f"{out['environment']['cpu_count']} cores): what one computes, the other cannot, and what overlaps is the "
            "host's work and what a half leaves of the cores.")
    else:
        out["notes"].append(f"async_vs_sync_real not measured: of {jax.device_count()} devices a mesh would take all; "
                            "let it see one")
    out["ratios"] = ratios(out)
    rows = [[name, float(np.median(s)), float(np.median(s)) / steps, lags[name]["mean"], lags[name]["max"]]
            for name, s in seconds.items()]
    rows += [[f"{name}, real", float(np.median(s)), float(np.median(s)) / out["settings"]["real"]["timed_steps"], None,
              None] for name, s in out["real_seconds"].items()]
    show(console, f"{steps} updates, {SIMULATED['train_s']} s of training each; lags of the tokens used",
         ["side", "seconds", "an update", "mean lag", "largest lag"], rows, out)
    return out


def ratios(out: dict[str, Any]) -> dict[str, float | None]:
    """Seconds of sync over the pipeline's, medians."""
    median = {name: float(np.median(s)) for name, s in out["seconds"].items()}
    real_median = {name: float(np.median(s)) for name, s in out["real_seconds"].items()}
    found: dict[str, float | None] = {"async_vs_sync": median["sync"] / median[f"pipeline_{LAGS[-1]}"]}
    found |= {f"async_vs_sync_lag_{k}": median["sync"] / median[f"pipeline_{k}"] for k in LAGS[:-1]}
    found["async_vs_sync_real"] = real_median["sync"] / real_median["pipeline"] if real_median else None
    return found


def simulated(settings: dict[str, Any], steps: int, repeats: int) -> tuple[Timings, dict[str, dict[str, float]], Any]:
    """Seconds of runs of stand-ins by side, lags of the tokens used, and a sync run's seconds of generating a batch.

    Raises:
      RuntimeError: a token was older than its run allows.
    """
    sides = {"sync": PipelineConfig("sync"), **{f"pipeline_{k}": PipelineConfig(max_lag=k) for k in LAGS}}
    seconds: Timings = {name: [] for name in sides}
    seen: dict[str, list[int]] = {name: [] for name in sides}
    filling: list[float] = []
    for repeat in range(repeats):
        for name in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
            took, lags, filled = _simulate(sides[name], settings, steps)
            seconds[name].append(took)
            seen[name] += lags
            filling += filled
    for name, config in sides.items():
        if max(seen[name]) > cast(int, config.lag):
            raise RuntimeError(f"{name}: a token {max(seen[name])} updates old, {config.lag} are allowed")
    return seconds, {name: {"bound": cast(int, sides[name].lag), "max": max(lags), "mean": float(np.mean(lags))}
                     for name, lags in seen.items()}, filling


def _simulate(config: PipelineConfig, settings: dict[str, Any], steps: int) -> tuple[float, list[int], list[float]]:
    """Seconds of one run, its tokens' lags, and its seconds of filling; the calls are those of `RLFeed`."""
    sampler, prompts = Standin(settings), [Prompt("", (0, 0), {}, f"{i}") for i in range(1000)]
    books = Groups(config, Curriculum(len(prompts), 0, None), settings["prompts_per_step"], steps, 0)
    generator = Generator(books, cast(Any, prompts), sampler, settings["samples"], _score, sampler.update,
                          lambda: sampler.free)
    threaded, lags, filled = config.mode == "pipeline", [], []
    begun = time.perf_counter()
    try:
        if threaded:
            generator.offer(None, 0)
            generator.start()
        for step in range(steps):
            if not threaded and not books.enough(step):
                before = time.perf_counter()
                generator.fill(None, step)
                filled.append(time.perf_counter() - before)
            for group in books.take(step):
                lags += [step - v for e in group.episodes for v, s in zip(e.versions, e.sampled, strict=True) if s]
            time.sleep(settings["train_s"])
            if threaded:
                generator.offer(None, step + 1)
        return time.perf_counter() - begun, lags, filled
    finally:
        generator.close()


def _score(groups: Sequence[Group]) -> None:
    for group in groups:
        group.scores = np.zeros(len(group.episodes), np.float32)


def real(settings: dict[str, Any], timed: int, before: int, repeats: int, untimed: int = 0) -> Timings:
    """Seconds of `timed` updates of a policy, after `before` that compile; runs of both modes in turn.

    Before them `untimed` runs of each meet shapes of the engine that the others find compiled.
    """
    seconds: Timings = {"sync": [], "pipeline": []}
    for repeat, (name, times) in itertools.product(range(-untimed, repeats), seconds.items()):
        config = build(RLConfig, {**settings, "steps": before + timed, "pipeline": {"mode": name},
                                  "seed": repeat + untimed})
        marks: list[float] = []
        with tempfile.TemporaryDirectory() as directory:
            train_policy(config, Path(directory), log=lambda text: None,
                         on_step=lambda done, marks=marks: marks.append(time.perf_counter()))
        if repeat >= 0:
            times.append(marks[-1] - marks[before - 1])
    return seconds
