"""`jaxllm bench decode`: all decoders on the shipped model's task, against each other and against PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.bench.timing import paired
from jaxllm.bench.torch_dual import TorchDual
from jaxllm.config import ConfigError, load
from jaxllm.data import make_task
from jaxllm.data.tasks import Task, TaskConfig
from jaxllm.diffusion import (
    DecodeConfig,
    Result,
    advance,
    decode_prompts,
    forward_flops,
    open_model,
    pad_prompts,
    prepare,
    shipped_model,
    unstack,
)
from jaxllm.files import read_json
from jaxllm.models import ModelConfig, init
from jaxllm.tracking import environment

METHODS_BY_NAME: dict[str, dict[str, Any]] = {
    # The paper's baseline: one token a step, no stop at EOS.
    "one_token": {"method": "full", "tokens_per_step": 1, "eos_id": -1},
    "full": {"method": "full"},
    "full_recompute": {"method": "full_recompute"},
    "prefix": {"method": "prefix"},
    "dual": {"method": "dual"},
    "elastic": {"method": "elastic"},
}
# Answers of 82 tokens a simulated step and an EOS: as many steps as fit.
STEPS_FOR_LENGTH = {128: 1, 256: 3, 512: 6}
ONE_TOKEN_TIMED_STEPS = 16


def method_configs(gen_length: int) -> dict[str, DecodeConfig]:
    """Every method with its defaults: threshold 0.9, blocks of 32, window of 16, gamma 0.9."""
    return {name: DecodeConfig(gen_length=gen_length, **settings) for name, settings in METHODS_BY_NAME.items()}


@dataclasses.dataclass(frozen=True)
class Problems:
    """Held-out problems of a model's task.

    Attributes:
      name: the task.
      task: its generator and scorer.
      prompts, encoded, entries: text, token ids and scorer's entry of each.
      answer_tokens: length of the first true answer, in tokens, EOS not counted.
    """

    name: str
    task: Task
    prompts: list[str]
    encoded: list[list[int]]
    entries: list[dict[str, Any]]
    answer_tokens: int

    @classmethod
    def load(cls, directory: Path, tokenizer: Any, count: int, **changes: Any) -> Problems:
        """The first `count` problems of `directory/task.json`, with changes to its settings."""
        settings = {**read_json(directory / "task.json"), **changes}
        config = load(TaskConfig, None, (), settings)
        task = make_task(config)
        examples = [task.example(i) for i in range(count)]
        return cls(name=config.name, task=task, prompts=[e.prompt for e in examples],
                   encoded=[tokenizer.encode(e.prompt).ids for e in examples], entries=[e.entry for e in examples],
                   answer_tokens=len(tokenizer.encode(examples[0].response).ids))

    def right(self, tokenizer: Any, tokens: Any, length: int, index: int) -> bool:
        """Whether `tokens` `[G]`, an answer of `length` tokens with its EOS, solve problem `index`."""
        end = length - (length < len(tokens) or tokenizer.id_to_token(int(tokens[length - 1])) == "<|endoftext|>")
        return self.task.score(tokenizer.decode(tokens[:end].tolist()), self.entries[index]) == 1.0


def measure(params: Any, model: ModelConfig, tokenizer: Any, problems: Problems, configs: Mapping[str, DecodeConfig],
            repeats: int, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Decode the problems one at a time by each config, interleaved; raw seconds, exact match and work.

    Args:
      params, model, tokenizer: the model.
      problems: what to decode.
      configs: settings by name.
      repeats: timed rounds over all problems.
      limit: use the first so many problems only.
    """
    encoded = problems.encoded[:limit]
    results: dict[str, list[Any]] = {name: [] for name in configs}

    def side(name: str):
        def call():
            results[name] = [jax.block_until_ready(decode_prompts(params, [p], model=model, config=configs[name]))
                             for p in encoded]
        return call

    seconds = paired({name: side(name) for name in configs}, repeats)
    out = {}
    for name, config in configs.items():
        host = [jax.tree.map(np.asarray, r) for r in results[name]]
        lengths = [answer_length(r, 0, model, config) for r in host]
        right = [problems.right(tokenizer, r.tokens[0], n, i)
                 for i, (r, n) in enumerate(zip(host, lengths, strict=True))]
        flops = [forward_flops(r.record, 0, model, config, len(p)) for r, p in zip(host, encoded, strict=True)]
        out[name] = {"settings": dataclasses.asdict(config), "seconds": seconds[name], "tokens": sum(lengths),
                     "tokens_per_s": sum(lengths) / float(np.median(seconds[name])),
                     "forward_passes": float(np.mean([int(r.record.steps[0]) for r in host])),
                     "forward_flops": float(np.mean(flops)), "right": right, "exact_match": float(np.mean(right)),
                     "problems": len(encoded), "results": host}
    return out


def answer_length(result: Result, row: int, model: ModelConfig, config: DecodeConfig) -> int:
    """Tokens up to and including the first EOS, also where decoding went on past it."""
    if config.eos_id is None:
        return int(result.answer_lengths[row])
    ends = np.flatnonzero(result.tokens[row] == model.eos_id)
    return int(ends[0]) + 1 if len(ends) else config.gen_length


def exact_match(params: Any, model: ModelConfig, tokenizer: Any, problems: Problems, config: DecodeConfig,
                batch_size: int = 10) -> dict[str, Any]:
    """Decode all problems in batches, untimed: which answers are right, and the mean work of one."""
    right: list[bool] = []
    passes: list[int] = []
    flops: list[float] = []
    for start in range(0, len(problems.encoded), batch_size):
        part = problems.encoded[start:start + batch_size]
        result = jax.tree.map(np.asarray, decode_prompts(params, part, model=model, config=config))
        for row, prompt in enumerate(part):
            right.append(problems.right(tokenizer, result.tokens[row], answer_length(result, row, model, config),
                                        start + row))
            passes.append(int(result.record.steps[row]))
            flops.append(forward_flops(result.record, row, model, config, len(prompt)))
    return {"exact_match": float(np.mean(right)), "problems": len(right), "forward_passes": float(np.mean(passes)),
            "forward_flops": float(np.mean(flops)), "right": [int(r) for r in right]}


def method_table(title: str, records: Mapping[str, Mapping[str, Any]]) -> Any:
    """The methods side by side."""
    from jaxllm.studies import table

    rows = [[name, f"{sum(r['right'])}/{r['problems']}", r["tokens_per_s"], r["forward_passes"],
             r["forward_flops"] / 1e9] for name, r in records.items()]
    return table(title, ["method", "exact match", "tokens/s", "forward passes", "GFLOP a prompt"], rows)


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _some_steps(params: Any, prompt: jax.Array, lengths: jax.Array, until: jax.Array, *, model: ModelConfig,
                config: DecodeConfig):
    state = prepare(params, prompt, lengths, jax.random.key(0), model=model, config=config)
    return advance(params, state, until, model=model, config=config).generation.record


def measure_steps(params: Any, model: ModelConfig, prompt: list[int], configs: Mapping[str, DecodeConfig],
                  steps: int, repeats: int) -> dict[str, dict[str, Any]]:
    """Raw seconds and work of the first `steps` steps of each config, prompt set-up included."""
    padded, lengths = pad_prompts([prompt])
    arguments = jnp.asarray(padded), jnp.asarray(lengths), jnp.int32(steps)
    sides = {name: functools.partial(_some_steps, params, *arguments, model=model, config=config)
             for name, config in configs.items()}
    seconds = paired(sides, repeats)
    out = {}
    for name, config in configs.items():
        record = jax.tree.map(np.asarray, sides[name]())
        made = int(record.steps[0])
        tokens = int(record.committed[:made, 0].sum())
        out[name] = {"settings": dataclasses.asdict(config), "prompt_tokens": len(prompt), "steps_timed": made,
                     "seconds": seconds[name], "tokens": tokens,
                     "tokens_per_s": tokens / float(np.median(seconds[name])),
                     "forward_flops": forward_flops(record, 0, model, config, len(prompt))}
    return out


def dual_against_torch(params: Any, model: ModelConfig, directory: Path, problems: Problems, config: DecodeConfig,
                       repeats: int) -> dict[str, Any]:
    """Raw seconds of the dual cache here and in PyTorch at 1 and 2 threads, in turn; `missing` says why not."""
    try:
        peer = TorchDual(directory)
    except ConfigError as err:
        return {"missing": str(err)}
    import torch  # pyright: ignore[reportMissingImports]

    encoded, passes = problems.encoded, {}

    def ours() -> None:
        results = [jax.block_until_ready(decode_prompts(params, [p], model=model, config=config)) for p in encoded]
        passes["jaxllm"] = [int(r.record.steps[0]) for r in results]

    def theirs(threads: int):
        def call() -> None:
            torch.set_num_threads(threads)
            assert config.threshold is not None and model.eos_id is not None
            results = [peer.decode(p, config.gen_length, config.block_length, config.threshold, model.eos_id)
                       for p in encoded]
            passes[f"torch_{threads}"] = [r.forward_passes for r in results]
        return call

    sides = {"jaxllm": ours, **{f"torch_{t}": theirs(t) for t in (1, 2)}}
    seconds = paired(sides, repeats)
    return {"settings": dataclasses.asdict(config), "problems": len(encoded), "seconds": seconds,
            "forward_passes": passes, "torch": torch.__version__}


def bench(quick: bool, model_dir: Path | None = None, random_model: bool = True) -> dict[str, Any]:
    """All measurements, printed as they come; returns what `--json` writes."""
    from rich.console import Console

    console = Console()
    directory = model_dir or shipped_model()
    params, model, tokenizer = open_model(directory)
    lengths = (512,) if quick else (128, 256, 512)
    repeats = 2 if quick else 5
    out: dict[str, Any] = {"bench": "decode", "quick": quick, "environment": environment(), "shipped": {}}
    for length in lengths:
        steps = STEPS_FOR_LENGTH[length]
        problems = Problems.load(directory, tokenizer, 200 if not quick else 8, min_steps=steps, max_steps=steps)
        configs = method_configs(length)
        one = {"one_token": configs.pop("one_token")}
        if quick:
            configs.pop("prefix")
        records = measure(params, model, tokenizer, problems, configs, repeats, limit=2 if quick else 8)
        timed = measure_steps(params, model, problems.encoded[0], one, ONE_TOKEN_TIMED_STEPS, repeats)
        console.print(method_table(f"generation length {length}", records))
        scored = {name: exact_match(params, model, tokenizer, problems, configs[name], batch_size=8)
                  for name in (("full", "elastic") if quick else configs)}
        for name, found in scored.items():
            console.print(f"  {name}: {sum(found['right'])} of {found['problems']} right")
        out["shipped"][str(length)] = {
            "methods": {n: {k: v for k, v in r.items() if k != "results"} for n, r in records.items()},
            "one_token": {**timed["one_token"], "extrapolated_to_steps": length},
            "exact_match": scored}
        if length == 512:
            problems.encoded[:] = problems.encoded[:2 if quick else 8]
            out["dual_against_torch"] = dual_against_torch(params, model, directory, problems, configs["dual"], repeats)
    out["ratios"] = ratios(out)
    out["notes"] = [f"one_token is extrapolated from its first {ONE_TOKEN_TIMED_STEPS} steps"]
    if "missing" in out["dual_against_torch"]:
        out["notes"].append(f"dual_vs_torch_dual not measured: {out['dual_against_torch']['missing']}")
    for name, value in out["ratios"].items():
        console.print(f"{name}: {'not measured' if value is None else f'{value:.3g}'}")
    if random_model:
        out["random_100m"] = _random(console)
    return out


def ratios(out: Mapping[str, Any]) -> dict[str, float | None]:
    """Speed of elastic over the others a token of answer, medians of the raw seconds; and of dual over torch's."""
    top = out["shipped"]["512"]
    second = {name: float(np.median(r["seconds"])) / r["tokens"] for name, r in top["methods"].items()}
    # Tokens up to the first EOS that one prompt's answer has on average, over the seconds of all 512 steps.
    answer = top["methods"]["full"]["tokens"] / top["methods"]["full"]["problems"]
    one_token = float(np.median(top["one_token"]["seconds"])) * 512 / top["one_token"]["steps_timed"] / answer
    peer = out["dual_against_torch"]
    torch_ratio = None
    if "seconds" in peer:
        median = {name: float(np.median(s)) for name, s in peer["seconds"].items()}
        torch_ratio = min(median["torch_1"], median["torch_2"]) / median["jaxllm"]
    return {
        "elastic_vs_one_token_512": one_token / second["elastic"],
        "elastic_vs_full_threshold_512": second["full"] / second["elastic"],
        "elastic_vs_full_recompute_512": second["full_recompute"] / second["elastic"],
        "elastic_vs_dual_512": second["dual"] / second["elastic"],
        "dual_vs_torch_dual": torch_ratio,
        "exact_match_full": top["exact_match"]["full"]["exact_match"],
        "exact_match_elastic": top["exact_match"]["elastic"]["exact_match"]}


def _random(console: Any) -> dict[str, Any]:
    """Every method's first steps on a 100M-parameter random model: its commits mean nothing, its cost is real."""
    from jaxllm.models.presets import preset
    from jaxllm.studies import table

    model = preset("llada-100m")
    params = unstack(init(model, jax.random.key(0)), model, donate=True)
    prompt = np.random.default_rng(0).integers(0, 1000, 100).tolist()
    out: dict[str, Any] = {"note": "random weights commit about one token a step under the threshold and solve nothing"}
    for length in (128, 256, 512):
        timed = measure_steps(params, model, prompt, method_configs(length), ONE_TOKEN_TIMED_STEPS, 2)
        out[str(length)] = timed
        rows = [[n, float(np.median(t["seconds"])) / t["steps_timed"], t["tokens_per_s"],
                 t["forward_flops"] / t["steps_timed"] / 1e9] for n, t in timed.items()]
        console.print(table(f"100M random parameters, generation length {length}, first {ONE_TOKEN_TIMED_STEPS} steps",
                            ["method", "seconds a step", "tokens/s", "GFLOP a step"], rows))
    return out
