"""`jaxllm cells ACTION`: cell sentences, one module for each action."""

from __future__ import annotations

import argparse

from jaxllm.cli.actions import add_actions, run_action

# action -> (module with add_arguments and run, one line of help)
ACTIONS = {
    "example": ("jaxllm.cli.cells_example", "real cells from an installed package as h5ad"),
    "convert": ("jaxllm.cli.cells_convert", "h5ad and zarr to shards of cell sentences"),
    "texts": ("jaxllm.cli.cells_texts", "captions and abstracts of uns as a task's texts"),
    "tokens": ("jaxllm.cli.cells_tokens", "one token a gene for a model's tokenizer, with new rows"),
    "train": ("jaxllm.cli.train", "train on cell sentences from a config; as jaxllm train"),
    "evaluate": ("jaxllm.cli.cells_evaluate", "labels, generated cells and perturbations against held-out cells"),
    "scfid": ("jaxllm.cli.cells_scfid", "Fréchet distance of embeddings computed elsewhere"),
    "annotate": ("jaxllm.cli.cells_annotate", "labels, captions of groups and embeddings of cells without any"),
    "generate": ("jaxllm.cli.cells_generate", "cells of a type from a trained model"),
    "perturb": ("jaxllm.cli.cells_perturb", "control cells as a model would write them after a perturbation"),
    "screen": ("jaxllm.cli.cells_screen", "rank perturbations by a gene program's effect in two contexts"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of every action."""
    add_actions(parser, ACTIONS)


def run(args: argparse.Namespace) -> int:
    """Run the action."""
    return run_action(args, ACTIONS)
