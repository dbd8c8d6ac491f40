"""Pictures of an evaluation: decisions layer by layer, accuracy against what was executed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.files import aside


def draw(out: str | Path, report: Mapping[str, Any]) -> list[Path]:
    """Write `decisions.png` and `accuracy.png` of what `evaluate_routers` gave; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    families, out = report["families"], Path(out)
    figure, axes = plt.subplots(2, 1, figsize=(8, 1.6 + 0.5 * len(families)), layout="constrained", sharex=True)
    for axis, kind, colors in zip(axes, ("skip", "repeat"), ("Blues", "Reds"), strict=True):
        shares = np.array([f["decisions"][kind] for f in families.values()])
        image = axis.imshow(shares, aspect="auto", cmap=colors, vmin=0, vmax=1)
        axis.set(yticks=range(len(families)), yticklabels=list(families), title=f"problems that {kind} a layer")
        figure.colorbar(image, ax=axis)
    axes[-1].set_xlabel("layer")
    paths = [_save(figure, out / "decisions.png")]
    plt.close(figure)

    figure, grid = plt.subplots(1, len(families), figsize=(3.6 * len(families), 3.4), layout="constrained",
                                squeeze=False)
    for axis, (name, found) in zip(grid[0], families.items(), strict=True):
        for i, (arm, r) in enumerate(found["arms"].items()):
            value, low, high = r["accuracy"]
            share = r["executions"] / report["layers"]
            error = None if np.isnan(low) else [[max(value - low, 0)], [max(high - value, 0)]]
            axis.errorbar([share], [value], yerr=error, fmt="o", color=f"C{i}", label=arm)
        axis.set(title=f"{name}, {found['role']} {'domain' if found['role'] == 'in' else 'of domain'}",
                 xlabel="layers executed, share of all", ylabel="accuracy")
    grid[0][0].legend(frameon=False, fontsize=7)
    paths.append(_save(figure, out / "accuracy.png"))
    plt.close(figure)
    return paths


def _save(figure: Any, path: Path) -> Path:
    with aside(path) as place:
        figure.savefig(place, dpi=140, format="png")
    return path
