"""`jaxllm cells tokens MODEL --cells DIR --out DIR`: a model whose tokenizer has one token for each gene."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("model", type=Path, help="Hugging Face directory, such as Pythia's")
    parser.add_argument("--cells", type=Path, required=True, help="converted cells, whose genes get tokens")
    parser.add_argument("--out", type=Path, required=True, help="directory to write, for init_from of a run")


def run(args: argparse.Namespace) -> int:
    """Grow tokenizer and embeddings, write both."""
    from jaxllm.cells import add_gene_tokens, grow_embeddings, open_cells
    from jaxllm.checkpoint import load_pretrained, save_pretrained
    from jaxllm.data import load_tokenizer

    genes = open_cells(args.cells).genes
    tokenizer, pieces = add_gene_tokens(load_tokenizer(args.model), genes)
    params, model = load_pretrained(args.model)
    params, grown = grow_embeddings(params, model, tokenizer, pieces)
    save_pretrained(params, grown, args.out, tokenizer=tokenizer)
    print(f"wrote {args.out}: {len(pieces)} of {len(genes)} genes got a token, the mean of their pieces; "
          f"{model.vocab_size} -> {grown.vocab_size} rows")
    return 0
