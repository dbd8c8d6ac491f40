"""`jaxllm cells texts FILE... --key NAME --out FILE.jsonl`: captions and abstracts of `uns` as a task's texts."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".h5ad files and .zarr directories")
    parser.add_argument("--key", required=True, help="entry of uns: a text, which is of the whole file and gets its "
                                                     "name without ending as key, or texts by group")
    parser.add_argument("--out", type=Path, required=True, help=".jsonl of key and text, for tasks.texts")


def run(args: argparse.Namespace) -> int:
    """Collect and write."""
    from jaxllm.cells.inputs import uns_texts
    from jaxllm.config import ConfigError
    from jaxllm.files import write_jsonl

    found: dict[str, str] = {}
    for file in args.files:
        for key, text in uns_texts(file, args.key).items():
            if found.get(key, text) != text:
                raise ConfigError(f"{file}: uns[{args.key!r}] has another text for {key!r} than a file before it")
            found[key] = text
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(args.out, [{"key": key, "text": text} for key, text in found.items()])
    print(f"wrote {args.out}: {len(found)} texts")
    return 0
