"""`jaxllm quickstart`: held-out puzzles, the shipped model, every decoder, one picture."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--count", type=int, default=12, help="held-out problems")
    parser.add_argument("--out", type=Path, default=Path("quickstart"), help="directory of the report")


def run(args: argparse.Namespace) -> int:
    """Decode the problems by every method, print the table, save the picture."""
    check(args.count >= 1, "--count", args.count, "must be at least 1")
    args.out.mkdir(parents=True, exist_ok=True)
    from rich.console import Console

    from jaxllm.bench.decode import Problems, measure, method_configs, method_table
    from jaxllm.cli.decode import decode_live, fill_in
    from jaxllm.diffusion import open_model, shipped_model
    from jaxllm.diffusion.report import heat_map, step_lines
    from jaxllm.files import write_jsonl

    console = Console()
    params, model, tokenizer = open_model(shipped_model())
    problems = Problems.load(shipped_model(), tokenizer, args.count)
    console.print(f"{model.num_parameters / 1e6:.1f}M parameters; {args.count} unseen problems of reasoning-gym's "
                  f"{problems.name}; answers of {problems.answer_tokens} tokens\n")
    console.print(problems.prompts[0].strip(), markup=False)
    configs = method_configs(gen_length=256)
    if console.is_terminal:
        import jax

        result = decode_live(params, problems.encoded[:1], model, configs["elastic"], jax.random.key(0), tokenizer,
                             console)
        del result
    records = {}
    for name, config in configs.items():
        with console.status(f"decoding with {name}"):
            records[name] = measure(params, model, tokenizer, problems, {name: config}, repeats=1,
                                    limit=2 if name == "one_token" else None)[name]
    console.print(method_table("every method on the same problems, one at a time", records))
    best = records["elastic"]["results"][0]
    length = int(best.answer_lengths[0])
    verdict = "right" if records["elastic"]["right"][0] else "wrong"
    console.print(f"\nelastic's answer to the first problem ({verdict}):")
    console.print(fill_in(best.tokens[0][:length], best.committed_at[0][:length] >= -1, tokenizer))
    write_jsonl(args.out / "methods.jsonl", [
        {"method": name, **{k: v for k, v in r.items() if k != "results"}} for name, r in records.items()])
    write_jsonl(args.out / "elastic_steps.jsonl",
                step_lines(best.record, 0, model, configs["elastic"], len(problems.encoded[0])))
    picture = args.out / "elastic.png"
    heat_map(picture, best.record, 0, model, configs["elastic"])
    console.print(f"\npicture: {picture.resolve()}")
    return 0
