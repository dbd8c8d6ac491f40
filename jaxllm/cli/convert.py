"""`jaxllm convert`: GGUF or Hugging Face in, Hugging Face out, in the dtype asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from jaxllm.config import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("source", type=Path, help="a .gguf file or a Hugging Face directory")
    parser.add_argument("target", type=Path, help="directory to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights written")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing target")


def run(args: argparse.Namespace) -> int:
    """Convert."""
    import jax
    import jax.numpy as jnp

    from jaxllm.checkpoint import load_gguf, load_pretrained, save_pretrained
    from jaxllm.data import load_tokenizer

    if args.target.exists() and not args.overwrite:
        raise ConfigError(f"{args.target}: exists already; pass --overwrite or another directory")
    if args.source.suffix == ".gguf":
        params, config, tokenizer = load_gguf(args.source)
        if args.dtype:
            params = jax.tree.map(lambda x: x.astype(jnp.dtype(args.dtype)), params)
    else:
        params, config = load_pretrained(args.source, dtype=args.dtype)
        tokenizer = load_tokenizer(args.source) if (args.source / "tokenizer.json").is_file() else None
    save_pretrained(params, config, args.target, tokenizer=tokenizer, overwrite=args.overwrite)
    print(f"wrote {args.target}: {config.family}, {config.num_parameters / 1e6:.1f}M parameters, "
          f"{jax.tree.leaves(params)[0].dtype}")
    return 0
