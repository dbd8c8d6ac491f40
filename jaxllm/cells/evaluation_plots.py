"""Pictures of an evaluation: maps of real and generated cells, confusion matrices, the line of expression by rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.cells.classification import classification
from jaxllm.cells.plots import plot_bars, plot_cells, plot_confusion, plot_rank_line
from jaxllm.cells.shards import Cells

LINE_CELLS = 512


def draw(out: str | Path, report: dict[str, Any], cells: Cells) -> list[Path]:
    """Write every picture that the report of `evaluate` has something for; returns their paths."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    made = []
    if cells.manifest["settings"]["expression"]:
        made.append(out / "rank_line.png")
        rows = np.sort(np.random.default_rng(0).permutation(len(cells))[:LINE_CELLS])
        plot_rank_line(made[-1], cells.matrix(rows), cells.line.slope, cells.line.intercept,
                       f"R² {cells.line.r2:.3f}")
    for name, task in report["tasks"].items():
        arrays = report["arrays"][name]
        if task["kind"] == "label":
            found = classification(arrays["truth"], [str(a) for a in arrays["answers"]], arrays["labels"])
            made.append(out / f"{name}_confusion.png")
            plot_confusion(made[-1], found)
        elif task["kind"] == "cell":
            made.append(out / f"{name}_map.png")
            plot_cells(made[-1], arrays["real"], arrays["labels"], arrays["model"], arrays["labels"])
            by_label = {who: {label: v["scfid"] for label, v in found["by_label"].items()}
                        for who, found in task["sets"].items() if "by_label" in found}
            if by_label:
                made.append(out / f"{name}_scfid.png")
                plot_bars(made[-1], by_label, "scFID", log=True)
        elif task["kind"] == "perturbed":
            rmse: dict[str, dict[str, float]] = {}
            for condition, found in task["conditions"].items():
                for who, scores in found["scores"].items():
                    rmse.setdefault(who, {})[condition] = scores["rmse"]
            made.append(out / f"{name}_rmse.png")
            plot_bars(made[-1], rmse, "RMSE of the mean effect, log10(1 + x)")
    return made
