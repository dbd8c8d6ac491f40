"""`jaxllm convert`: GGUF or Hugging Face in, adapters folded in, Hugging Face out, in the dtype asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError

# What a model directory holds beside weights, config and tokenizer.json: chat template, all of its stop
# tokens, what the slow tokenizer reads, our task and card.
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
              "generation_config.json", "vocab.json", "merges.txt", "task.json", "README.md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("source", type=Path, help="a .gguf file or a Hugging Face directory")
    parser.add_argument("target", type=Path, help="directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written")
    parser.add_argument("--adapter", type=Path, help="LoRA adapters in PEFT's layout, folded into the weights")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")


def run(args: argparse.Namespace) -> int:
    """Convert."""
    import jax
    import jax.numpy as jnp

    from jaxllm.checkpoint import load_gguf, load_pretrained, merge_directory, save_pretrained
    from jaxllm.data import load_tokenizer

    args.source, args.target = args.source.resolve(), args.target.resolve()
    if args.target.exists() and not args.overwrite:
        raise ConfigError(f"{args.target}: exists already; pass --overwrite or another directory")
    if args.target.exists() and not (args.target / "config.json").is_file():
        raise ConfigError(f"{args.target}: --overwrite replaces the whole directory, and this one holds no model "
                          "(no config.json); choose another")
    side_files = {}
    if args.source.is_dir():  # read before the target, which may be the source, is replaced
        side_files = {name: (args.source / name).read_bytes() for name in SIDE_FILES if (args.source / name).is_file()}
    if args.source.suffix == ".gguf":
        params, config, tokenizer = load_gguf(args.source)
        if args.dtype:
            params = jax.tree.map(lambda x: x.astype(jnp.dtype(args.dtype)), params)
    else:
        params, config = load_pretrained(args.source, dtype=args.dtype)
        tokenizer = load_tokenizer(args.source) if (args.source / "tokenizer.json").is_file() else None
    if args.adapter is not None:
        params = merge_directory(params, config, args.adapter)
    save_pretrained(params, config, args.target, tokenizer=tokenizer, overwrite=args.overwrite)
    for name, data in side_files.items():
        (args.target / name).write_bytes(data)
    print(f"wrote {args.target}: {config.family}, {config.num_parameters / 1e6:.1f}M parameters, "
          f"{jax.tree.leaves(params)[0].dtype}")
    return 0
