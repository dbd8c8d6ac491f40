"""`jaxllm generate`: prompts in, sampled answers out, token after token."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from jaxllm.cli.decode import encode_prompts, given_prompts
from jaxllm.config import check, load


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """Settings of the command, given as `key=value`.

    Attributes:
      max_tokens: of an answer.
      temperature, top_k, top_p, min_p: as in `generation.Sampling`.
      samples: answers a prompt.
      slots: requests decoded at a time.
      length: longest prompt and answer together; what the prompts need by default.
      stop: texts that end an answer.
      seed: of the draws.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    samples: int = 1
    slots: int = 16
    length: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "samples", "slots"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of a causal model")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", type=Path, help="JSONL file with a `prompt` in each line")
    parser.add_argument("--chat", action="store_true", help="wrap prompts in the model's chat template")
    parser.add_argument("--json", type=Path, help="JSONL file for answers, token ids and log-probabilities")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="the checkpoint's by default, float32 on a CPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as temperature=0 max_tokens=200")


def run(args: argparse.Namespace) -> int:
    """Generate, show, write."""
    config = load(GenerateConfig, None, args.overrides)
    texts = given_prompts("generate", args)
    from rich.console import Console
    from rich.text import Text

    from jaxllm.generation import Engine, EngineConfig, Request, Sampling, describe_model, open_model, stop_ids

    # What can be wrong is found before the weights, which may take minutes, are read.
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.min_p)
    described, tokenizer = describe_model(args.model)
    encoded = encode_prompts(args.model, tokenizer, texts, args.chat)
    length = config.length or min(described.max_length, max(map(len, encoded)) + config.max_tokens)
    stops = stop_ids(args.model, described, tokenizer)
    shape = EngineConfig(slots=min(config.slots, len(texts) * config.samples), length=length, stop_ids=stops)
    requests = [Request((i, j), ids, config.max_tokens, sampling, config.seed + i * config.samples + j, config.stop)
                for i, ids in enumerate(encoded) for j in range(config.samples)]
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    params, model, _ = open_model(args.model, args.dtype)
    engine = Engine(params, model, shape, tokenizer=tokenizer)
    begun = time.perf_counter()
    answers = engine.run(requests)
    seconds = time.perf_counter() - begun
    lines: list[dict[str, Any]] = []
    console = Console()
    for answer in answers:
        row, sample = answer.id
        kept = [t for t in answer.tokens.tolist() if t not in stops]
        lines.append({"prompt": texts[row], "sample": sample, "text": tokenizer.decode(kept), "reason": answer.reason,
                      "token_ids": answer.tokens.tolist(), "logprobs": [round(x, 6) for x in answer.logprobs.tolist()]})
        console.print(Text(lines[-1]["text"]))
    if args.json:
        from jaxllm.files import write_jsonl

        write_jsonl(args.json, lines)
    total = sum(len(a.tokens) for a in answers)
    console.print(f"{len(answers)} answers, {total} tokens, {total / seconds:,.0f} tokens/s, compilation included")
    sys.stdout.flush()
    return 0
