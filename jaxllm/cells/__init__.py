"""C2S-Scale: cells as sentences of gene names, from AnnData to a trained model to a virtual screen.

Entry points: `convert`, `open_cells`, `CellsConfig`, `train_cells`, `open_cell_model`.
Paper: C2S-Scale (bioRxiv 2025.04.14.648850), after Cell2Sentence (ICML 2024).
"""

from jaxllm.cells.baselines import LabelledCells, label_baselines
from jaxllm.cells.config import CellsConfig, CellsDataConfig
from jaxllm.cells.convert import convert
from jaxllm.cells.embedder import CellEmbedder, EmbedderConfig, embeddings_from_file, train_embedder
from jaxllm.cells.examples import CellTaskConfig, PairConfig
from jaxllm.cells.expression import Line, post_process, reconstruct
from jaxllm.cells.feed import CellsFeed, cells_objective
from jaxllm.cells.frechet import scfid
from jaxllm.cells.plan import ConvertConfig
from jaxllm.cells.programs import MHC_I, fit_program, rank_score
from jaxllm.cells.screen import ScreenConfig, ScreenTable
from jaxllm.cells.sentences import rank_cells
from jaxllm.cells.shards import Cells, open_cells
from jaxllm.cells.split import SplitConfig, split_cells
from jaxllm.cells.train import train_cells
from jaxllm.cells.vocabulary import GeneTokens, add_gene_tokens, build_gene_tokenizer, grow_embeddings

__all__ = ["CellEmbedder", "CellTaskConfig", "Cells", "CellsConfig", "CellsDataConfig", "CellsFeed", "ConvertConfig",
           "EmbedderConfig", "GeneTokens", "LabelledCells", "Line", "MHC_I", "PairConfig", "ScreenConfig",
           "ScreenTable", "SplitConfig", "add_gene_tokens", "build_gene_tokenizer", "cells_objective", "convert",
           "embeddings_from_file", "fit_program", "grow_embeddings", "label_baselines", "open_cells", "post_process",
           "rank_cells", "rank_score", "reconstruct", "scfid", "split_cells", "train_cells", "train_embedder"]
