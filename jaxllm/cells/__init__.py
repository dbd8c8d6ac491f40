"""C2S-Scale: cells as sentences of gene names, from AnnData to a trained model to a virtual screen.

Entry points: `convert`, `open_cells`, `CellsConfig`, `train_cells`, `open_cell_model`, `evaluate`, `virtual_screen`.
Paper: C2S-Scale (bioRxiv 2025.04.14.648850), after Cell2Sentence (ICML 2024). Not reproduced: its weights, its corpus,
and the definitions of its rewards and of scFID's embedding, which are not published.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllm.cells.annotation import annotate, embed
    from jaxllm.cells.baselines import LabelledCells, label_baselines
    from jaxllm.cells.config import CellsConfig, CellsDataConfig
    from jaxllm.cells.conversion import convert
    from jaxllm.cells.decoding import AnswerConfig, CellModel, open_cell_model
    from jaxllm.cells.embedder import CellEmbedder, EmbedderConfig, embeddings_from_file, train_embedder
    from jaxllm.cells.evaluation import EvaluateConfig, evaluate
    from jaxllm.cells.examples import CellTaskConfig, PairConfig
    from jaxllm.cells.expression import Line, post_process, reconstruct
    from jaxllm.cells.feed import CellsFeed, cells_objective
    from jaxllm.cells.frechet import scfid
    from jaxllm.cells.generate import write_cells
    from jaxllm.cells.plan import ConvertConfig
    from jaxllm.cells.programs import MHC_I, fit_program, rank_score
    from jaxllm.cells.screen import ScreenConfig, ScreenTable
    from jaxllm.cells.screening import VirtualScreenConfig, virtual_screen
    from jaxllm.cells.sentences import rank_cells
    from jaxllm.cells.shards import Cells, open_cells
    from jaxllm.cells.split import SplitConfig, split_cells
    from jaxllm.cells.train import train_cells
    from jaxllm.cells.vocabulary import GeneTokens, add_gene_tokens, build_gene_tokenizer, grow_embeddings

# name -> its module. Loaded when asked for: a process that only converts starts no trainer.
_PLACES = {
    "annotate": "annotation", "embed": "annotation", "LabelledCells": "baselines", "label_baselines": "baselines",
    "CellsConfig": "config", "CellsDataConfig": "config", "convert": "conversion", "AnswerConfig": "decoding",
    "CellModel": "decoding", "open_cell_model": "decoding", "CellEmbedder": "embedder", "EmbedderConfig": "embedder",
    "embeddings_from_file": "embedder", "train_embedder": "embedder", "EvaluateConfig": "evaluation",
    "evaluate": "evaluation", "CellTaskConfig": "examples", "PairConfig": "examples", "Line": "expression",
    "post_process": "expression", "reconstruct": "expression", "CellsFeed": "feed", "cells_objective": "feed",
    "scfid": "frechet", "write_cells": "generate", "ConvertConfig": "plan", "MHC_I": "programs",
    "fit_program": "programs", "rank_score": "programs", "ScreenConfig": "screen", "ScreenTable": "screen",
    "VirtualScreenConfig": "screening", "virtual_screen": "screening", "rank_cells": "sentences", "Cells": "shards",
    "open_cells": "shards", "SplitConfig": "split", "split_cells": "split", "train_cells": "train",
    "GeneTokens": "vocabulary", "add_gene_tokens": "vocabulary", "build_gene_tokenizer": "vocabulary",
    "grow_embeddings": "vocabulary"}

__all__ = ["MHC_I", "AnswerConfig", "CellEmbedder", "CellModel", "CellTaskConfig", "Cells", "CellsConfig",
           "CellsDataConfig", "CellsFeed", "ConvertConfig", "EmbedderConfig", "EvaluateConfig", "GeneTokens",
           "LabelledCells", "Line", "PairConfig", "ScreenConfig", "ScreenTable", "SplitConfig", "VirtualScreenConfig",
           "add_gene_tokens", "annotate", "build_gene_tokenizer", "cells_objective", "convert", "embed",
           "embeddings_from_file", "evaluate", "fit_program", "grow_embeddings", "label_baselines", "open_cell_model",
           "open_cells", "post_process", "rank_cells", "rank_score", "reconstruct", "scfid", "split_cells",
           "train_cells", "train_embedder", "virtual_screen", "write_cells"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
