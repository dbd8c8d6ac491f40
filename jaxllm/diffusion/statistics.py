"""What a decode cost, read off its record: rows per step and layer, floating-point operations."""

from __future__ import annotations

import numpy as np

from jaxllm.diffusion.commit import Record
from jaxllm.diffusion.config import DecodeConfig
from jaxllm.models import ModelConfig


def rows_per_layer(record: Record, row: int, model: ModelConfig, config: DecodeConfig,
                   prompt_length: int) -> np.ndarray:
    """Rows computed for one row of the batch, int `[steps, L]`; guidance counts both of its passes."""
    steps = int(record.steps[row])
    first = np.asarray(record.refresh_from)[:steps, row, None]
    some = np.asarray(record.rows)[:steps, row, None]
    whole = prompt_length + config.gen_length
    passes = 2 if config.cfg_scale > 0 else 1
    return passes * np.where(np.arange(model.num_layers)[None] >= first, whole, some)


def layer_rows(record: Record, row: int, model: ModelConfig, config: DecodeConfig, prompt_length: int) -> int:
    """Rows computed, summed over layers and steps: a cost that no hardware changes."""
    return int(rows_per_layer(record, row, model, config, prompt_length).sum())


def forward_flops(record: Record, row: int, model: ModelConfig, config: DecodeConfig, prompt_length: int) -> float:
    """FLOPs of one row's decode: 2 per weight it meets, 4 H K N per row of attention, the head on candidates."""
    c, whole = model, prompt_length + config.gen_length
    per_row = 2 * c.layer_weights_per_token + 4 * c.num_heads * c.head_dim * whole
    passes = 2 if config.cfg_scale > 0 else 1
    heads = passes * int(record.steps[row]) * config.max_candidates * 2 * c.d_model * c.vocab_size
    drift = 0
    if config.method == "elastic":  # last step's weights of the tracked rows are computed again
        tested = np.isfinite(np.asarray(record.similarity)[..., row]).sum()
        drift = int(tested) * model.num_layers * config.track_num * 2 * c.num_heads * c.head_dim * whole
    return float(layer_rows(record, row, model, config, prompt_length) * per_row + heads + drift)
