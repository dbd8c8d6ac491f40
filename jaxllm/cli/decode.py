"""`jaxllm decode`: prompts in, texts, a table and a report out."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", help="Hugging Face directory of a LLaDA or Dream model; the shipped one by default")
    parser.add_argument("--prompt", action="append", default=[], help="a prompt; may be given several times")
    parser.add_argument("--prompts", type=Path, help="JSONL file with a `prompt` in each line")
    parser.add_argument("--method", help="full, prefix, dual, elastic or full_recompute")
    parser.add_argument("--report", type=Path, help="directory for decode.jsonl, steps.jsonl and the picture")
    parser.add_argument("--chat", action="store_true", help="wrap prompts in the model's chat template")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts decoded together")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling noise, used with temperature above 0")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="the checkpoint's by default, float32 on a CPU")
    parser.add_argument("--tensor", type=int, default=1, help="devices to split heads, MLP and vocabulary over")
    parser.add_argument("--no-live", action="store_true", help="do not show the text filling in")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="decoder settings, such as gen_length=512")


def run(args: argparse.Namespace) -> int:
    """Decode, show, report."""
    from jaxllm.diffusion import DecodeConfig

    overrides = list(args.overrides) + ([f"method={args.method}"] if args.method else [])
    config = load(DecodeConfig, None, overrides)
    check(args.batch_size >= 1, "--batch-size", args.batch_size, "must be at least 1")
    texts = given_prompts("decode", args)

    import jax
    from rich.console import Console

    from jaxllm.diffusion import open_model, pad_prompts, shipped_model
    from jaxllm.diffusion.config import check_prompts, resolve
    from jaxllm.generation import describe_model

    model_dir = Path(args.model) if args.model else shipped_model()
    # What can be wrong is found before the weights, which may take minutes, are read.
    described, tokenizer = describe_model(model_dir)
    encoded = encode_prompts(model_dir, tokenizer, texts, args.chat)
    resolve(described, config)
    check_prompts(described, config, encoded)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
    params, model, _ = open_model(model_dir, args.dtype, args.tensor)
    console = Console()
    live = console.is_terminal and not args.no_live
    keys = jax.random.split(jax.random.key(args.seed), len(encoded))
    lines: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    first, compiled = None, set()
    for start in range(0, len(encoded), args.batch_size):
        part = encoded[start:start + args.batch_size]
        begun = time.perf_counter()
        result = decode_live(params, part, model, config, keys[start:start + len(part)], tokenizer,
                             console if live else None)
        seconds = time.perf_counter() - begun
        shape = pad_prompts(part)[0].shape
        timing = {"batch_seconds": round(seconds, 3), "with_compilation": shape not in compiled}
        compiled.add(shape)
        first = result if first is None else first
        for row, prompt in enumerate(part):
            line, detail = describe(result, row, prompt, model, config, tokenizer)
            lines.append({"prompt": texts[start + row], **line, "batch": start // args.batch_size, **timing})
            steps += [{"prompt": start + row, **d} for d in detail]
    _print(console, lines)
    if args.report:
        from jaxllm.diffusion.report import heat_map
        from jaxllm.files import write_jsonl

        write_jsonl(args.report / "decode.jsonl", lines)
        write_jsonl(args.report / "steps.jsonl", steps)
        heat_map(args.report / "decode.png", first.record, 0, model, config)  # type: ignore[union-attr]
        console.print(f"report: {args.report / 'decode.jsonl'}, {args.report / 'steps.jsonl'}, "
                      f"{args.report / 'decode.png'}")
    return 0


def given_prompts(command: str, args: argparse.Namespace) -> list[str]:
    """Texts of `--prompt` and of the file of `--prompts`; at least one."""
    texts = list(args.prompt) + (read_prompts(args.prompts) if args.prompts else [])
    if not texts:
        raise ConfigError(f"{command}: give --prompt TEXT or --prompts FILE.jsonl")
    return texts


def encode_prompts(directory: Path, tokenizer: Any, texts: list[str], chat: bool) -> list[list[int]]:
    """Token ids of each text, with `chat` as the user's turn of the model's template."""
    if chat:  # the template writes its own special tokens
        return [tokenizer.encode(t, add_special_tokens=False).ids for t in wrap_chat(directory, texts)]
    return [tokenizer.encode(t).ids for t in texts]


def read_prompts(path: Path) -> list[str]:
    """The `prompt` of every line of a JSONL file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{path}: cannot read prompts ({getattr(err, 'strerror', None) or err})") from None
    prompts = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'{path}:{number}: expected an object such as {{"prompt": "text"}}')
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"{path}: holds no prompts")
    return prompts


def wrap_chat(directory: Path, texts: list[str]) -> list[str]:
    """Each text as the user's turn of the chat template in `directory`, up to where the model answers."""
    from jaxllm.data.chat import ChatError, load_chat_template, render_prompt

    for i, text in enumerate(texts):
        if not text:
            raise ConfigError(f"prompt {i}: is empty; give it at least one token")
    template = load_chat_template(directory)
    try:
        return [render_prompt(template, [{"role": "user", "content": text}]) for text in texts]
    except ChatError as err:
        raise ConfigError(f"{directory}: {err}") from None


@functools.cache
def _stages():
    """`prepare` and `advance` compiled; `advance` takes its limit as data, so drawing between costs no compile."""
    import jax

    from jaxllm.diffusion import advance, prepare

    return (jax.jit(prepare, static_argnames=("model", "config")),
            jax.jit(advance, static_argnames=("model", "config"), donate_argnames=("state",)))


def decode_live(params: Any, prompts: list[list[int]], model: Any, config: Any, keys: Any, tokenizer: Any,
                console: Any | None, every: int = 1) -> Any:
    """Decode a batch; with a console the first row is drawn every few steps while it fills in."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from jaxllm.diffusion import decode_prompts, finish, pad_prompts

    if console is None:
        return jax.block_until_ready(decode_prompts(params, prompts, model=model, config=config, key=keys))
    from rich.live import Live
    from rich.panel import Panel

    prepare, advance = _stages()
    prompt, lengths = pad_prompts(prompts, limit=model.max_length - config.gen_length)
    with Live(Panel("compiling", title=config.method), console=console, refresh_per_second=20) as view:
        state = prepare(params, jnp.asarray(prompt), jnp.asarray(lengths), keys, model=model, config=config)
        step = 0
        while True:
            g = state.generation
            n = int(lengths[0])
            row = np.asarray(g.tokens)[0, n:n + config.gen_length]
            known = np.asarray(g.decoded)[0, n:n + config.gen_length]
            view.update(Panel(fill_in(row, known, tokenizer), subtitle=f"step {int(g.step)}", title=config.method))
            if not bool(np.asarray(g.left).any()):
                break
            step = int(g.step) + every
            state = advance(params, state, step, model=model, config=config)
    return finish(state.generation, model=model, config=config)


def fill_in(tokens: Any, known: Any, tokenizer: Any) -> str:
    """Text of the committed tokens, a shade for each that is still masked."""
    out, run = [], []
    for token, is_known in zip(tokens.tolist(), known.tolist(), strict=True):
        if is_known:
            run.append(token)
            continue
        if run:
            out.append(tokenizer.decode(run))
            run = []
        out.append("░")
    if run:
        out.append(tokenizer.decode(run))
    return " ".join(out).replace("░ ░", "░░").replace("░ ░", "░░").replace("[", "\\[")


def describe(result: Any, row: int, prompt: list[int], model: Any, config: Any,
             tokenizer: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Totals with the text, and the steps, of one row."""
    import numpy as np

    from jaxllm.diffusion.report import step_lines, summary_line

    length = int(result.answer_lengths[row])
    tokens = np.asarray(result.tokens)[row][:length].tolist()
    line = summary_line(result.record, row, model, config, len(prompt), length)
    return {"text": tokenizer.decode(tokens), **line, "token_ids": tokens}, \
        step_lines(result.record, row, model, config, len(prompt))


def _print(console: Any, lines: list[dict[str, Any]]) -> None:
    from rich.text import Text

    from jaxllm.studies import table

    for line in lines:
        console.print(Text(line["text"]))
    rows = [[i, line["tokens"], line["forward_passes"], f"{line['share_of_full_rows']:.1%}",
             f"{line['forward_flops'] / 1e9:.2f}", line["layers_refreshed"]] for i, line in enumerate(lines)]
    console.print(table(lines[0]["method"], ["prompt", "tokens", "forward passes", "rows computed", "GFLOP",
                                             "layers refreshed"], rows))
    # Batches of a shape that was compiled before are what a second run would see.
    timed = {line["batch"]: line["batch_seconds"] for line in lines if not line["with_compilation"]}
    if timed:
        tokens, seconds = sum(line["tokens"] for line in lines if line["batch"] in timed), sum(timed.values())
        console.print(f"{tokens / seconds:,.0f} tokens/s over {len(timed)} batches, compilation left out")
    else:
        console.print(f"{sum({line['batch']: line['batch_seconds'] for line in lines}.values()):.1f} s, compilation "
                      "included")
    sys.stdout.flush()
