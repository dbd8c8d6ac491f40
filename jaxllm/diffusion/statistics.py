"""What a decode cost, read off its record: rows per step and layer, floating-point operations."""

from __future__ import annotations

import numpy as np

from jaxllm.diffusion.commit import Record
from jaxllm.diffusion.config import DecodeConfig
from jaxllm.models import ModelConfig


def forward_passes(config: DecodeConfig) -> int:
    """Passes through the model of one step: guidance makes two."""
    return 2 if config.cfg_scale > 0 else 1


def rows_per_layer(record: Record, row: int, model: ModelConfig, config: DecodeConfig,
                   prompt_length: int) -> np.ndarray:
    """Rows whose result stands, of one row of the batch, int `[steps, L]`; guidance counts both of its passes."""
    steps = int(record.steps[row])
    first = np.asarray(record.refresh_from)[:steps, row, None]
    some = np.asarray(record.rows)[:steps, row, None]
    whole = prompt_length + config.gen_length
    return forward_passes(config) * np.where(np.arange(model.num_layers)[None] >= first, whole, some)


def layer_rows(record: Record, row: int, model: ModelConfig, config: DecodeConfig, prompt_length: int) -> int:
    """`rows_per_layer` summed over layers and steps: a cost that no hardware changes."""
    return int(rows_per_layer(record, row, model, config, prompt_length).sum())


def forward_flops(record: Record, row: int, model: ModelConfig, config: DecodeConfig, prompt_length: int) -> float:
    """FLOPs of one row's decode: 2 per weight it meets, 4 H K N per row of attention, the head on candidates.

    Elastic's are all that it computes: also the window's rows in layers that the same step then refreshes, and
    in each later step and layer the tracked rows once more, projected and compared.
    """
    c, whole, steps = model, prompt_length + config.gen_length, int(record.steps[row])
    per_row = 2 * c.layer_weights_per_token + 4 * c.num_heads * c.head_dim * whole
    heads = forward_passes(config) * steps * config.max_candidates * 2 * c.d_model * c.vocab_size
    rows, tracked = layer_rows(record, row, model, config, prompt_length), 0
    if config.method == "elastic":
        first, some = (np.asarray(x)[1:steps, row].astype(np.int64) for x in (record.refresh_from, record.rows))
        rows += int(((c.num_layers - first) * some).sum())
        projections = 2 * c.d_model * c.head_dim * (c.num_heads + 2 * c.num_kv_heads)
        per_tracked = projections + 2 * c.num_heads * c.head_dim * whole
        tracked = max(steps - 1, 0) * c.num_layers * c.num_layers * config.track_num * per_tracked
    return float(rows * per_row + heads + tracked)
