"""A decode as JSONL and as a picture: what was computed on each step in each layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.diffusion.commit import Record
from jaxllm.diffusion.config import DecodeConfig
from jaxllm.diffusion.statistics import forward_flops, forward_passes, rows_per_layer
from jaxllm.files import aside
from jaxllm.models import ModelConfig

# What a cell of the picture says about one layer on one step.
WINDOW, DRIFTED, REFRESHED = 0, 1, 2
_NAMES = ("window: query rows computed, the rest reused", "drift found here: layers above are refreshed",
          "refreshed: every row computed")


def step_lines(record: Record, row: int, model: ModelConfig, config: DecodeConfig,
               prompt_length: int) -> list[dict[str, Any]]:
    """One dict a step: tokens committed, rows computed in each layer, first refreshed layer, similarities."""
    rows = rows_per_layer(record, row, model, config, prompt_length)
    similarity = np.asarray(record.similarity)[..., row]
    lines = []
    for i in range(int(record.steps[row])):
        lines.append({"step": i, "committed": int(record.committed[i, row]), "rows": rows[i].tolist(),
                      "refresh_from": int(record.refresh_from[i, row]),
                      "similarity": [None if np.isnan(s) else round(float(s), 6) for s in similarity[i]]})
    return lines


def summary_line(record: Record, row: int, model: ModelConfig, config: DecodeConfig, prompt_length: int,
                 answer_length: int) -> dict[str, Any]:
    """Totals of one prompt's decode."""
    rows, steps = rows_per_layer(record, row, model, config, prompt_length), int(record.steps[row])
    whole = forward_passes(config) * model.num_layers * (prompt_length + config.gen_length)
    refreshed = model.num_layers * steps - int(np.asarray(record.refresh_from)[:steps, row].sum())
    return {"method": config.method, "tokens": answer_length, "forward_passes": steps,
            "rows_computed": int(rows.sum()), "layers_refreshed": refreshed,
            "share_of_full_rows": round(float(rows.sum() / (whole * max(steps, 1))), 4),
            "forward_flops": forward_flops(record, row, model, config, prompt_length)}


def cell_states(record: Record, row: int, model: ModelConfig, gamma: float) -> np.ndarray:
    """Int `[L, steps]` of WINDOW, DRIFTED, REFRESHED."""
    steps = int(record.steps[row])
    first = np.asarray(record.refresh_from)[:steps, row]
    similarity = np.asarray(record.similarity)[:steps, :, row].T  # NaN, where no test was made, is below nothing
    states = np.where(np.arange(model.num_layers)[:, None] >= first, REFRESHED, WINDOW)
    return np.where(similarity < gamma, DRIFTED, states)


def heat_map(path: str | Path, record: Record, row: int, model: ModelConfig, config: DecodeConfig,
             title: str | None = None) -> None:
    """PNG of decode step x layer, tokens committed per step above it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    states = cell_states(record, row, model, config.gamma)
    steps = states.shape[1]
    committed = np.asarray(record.committed)[:steps, row]
    colours = ["#dbe4ee", "#f2b04c", "#b5332e"]
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(9, 3.4 + 0.12 * model.num_layers), height_ratios=[1, 1 + 0.06 * model.num_layers],
        layout="constrained")
    above.bar(np.arange(steps), committed, width=0.9, color="#35618f")
    above.set_ylabel("tokens\ncommitted")
    below.imshow(states, aspect="auto", origin="lower", cmap=ListedColormap(colours), vmin=0, vmax=2,
                 interpolation="nearest")
    below.set_xticks(np.arange(steps + 1) - 0.5, minor=True)
    below.set_yticks(np.arange(model.num_layers + 1) - 0.5, minor=True)
    below.grid(which="minor", color="white", linewidth=0.4 if steps < 150 else 0)
    below.tick_params(which="minor", length=0)
    below.yaxis.get_major_locator().set_params(integer=True)
    below.set_ylabel("layer")
    below.set_xlabel("decode step")
    shown = [i for i in range(3) if (states == i).any()]
    figure.legend(handles=[Patch(color=colours[i], label=_NAMES[i]) for i in shown], loc="outside lower center",
                  ncols=1, fontsize=8, frameon=False)
    refreshed = float((states == REFRESHED).mean())
    figure.suptitle(title or f"{config.method}: {int(committed.sum())} tokens in {steps} steps, "
                             f"{refreshed:.0%} of layer passes over every row", fontsize=10)
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=140)
    plt.close(figure)
