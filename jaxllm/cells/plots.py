"""Pictures of cells: maps of real and generated ones, rank against expression, confusions, bars, volcanoes."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.cells.classification import Classification
from jaxllm.cells.matrices import components, dense, labels_of
from jaxllm.cells.screen import ScreenTable
from jaxllm.config import check
from jaxllm.files import aside
from jaxllm.studies.intervals import Interval

DPI = 130


def cell_map(real: Any, generated: Any, n_components: int = 30, neighbours: int = 15, seed: int = 0
             ) -> tuple[np.ndarray, np.ndarray, str]:
    """Real and generated cells in the plane.

    Principal components are fitted on the real cells; UMAP then places both together, so that neither has to fit into
    the other's map. Without the umap-learn package the first two components are the map.

    Args:
      real: [N, G] log expression, or an embedding.
      generated: [M, G] in the same space.
      n_components: components given to UMAP.
      neighbours: of UMAP.
      seed: of both.

    Returns:
      coordinates [N, 2] and [M, 2], and the method's name for the title.
    """
    fitted = components(real, n_components, seed)
    x, y = fitted.apply(real), fitted.apply(generated)
    both = np.concatenate([x, y])
    # UMAP's spectral start needs more cells than neighbours, and some to spare.
    if importlib.util.find_spec("umap") is None or len(both) < 20:
        check(x.shape[1] > 1, "real", f"{x.shape[1]} dimension", "a map needs two at least")
        why = "umap-learn is not installed" if importlib.util.find_spec("umap") is None else "too few cells for UMAP"
        return x[:, :2], y[:, :2], f"first two principal components ({why})"
    import warnings

    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs it its threads
        model = umap.UMAP(n_neighbors=min(neighbours, len(both) - 1), random_state=seed)
        placed = np.asarray(model.fit_transform(both))
    return placed[: len(x)], placed[len(x):], f"UMAP of {x.shape[1]} principal components"


def plot_cells(path: str | Path, real: Any, real_labels: Sequence[str] | np.ndarray, generated: Any,
               generated_labels: Sequence[str] | np.ndarray, title: str = "", *, n_components: int = 30, seed: int = 0
               ) -> None:
    """Real (left) and generated (right) cells on one map, coloured by label; the other side in grey behind.

    Args:
      path: picture to write.
      real: as for `cell_map`.
      real_labels: [N].
      generated: [M, G].
      generated_labels: [M] labels that were asked for.
      title: put before the method's name.
      n_components: of the map.
      seed: of the map.
    """
    of_x = labels_of(real_labels, real.shape[0], "real_labels")
    of_y = labels_of(generated_labels, generated.shape[0], "generated_labels")
    x, y, method = cell_map(real, generated, n_components, seed=seed)
    names = sorted(set(of_x.tolist()) | set(of_y.tolist()))
    plt = _pyplot()
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.2), sharex=True, sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo", len(names))
    for axis, place, labels, other, side in ((axes[0], x, of_x, y, "real"), (axes[1], y, of_y, x, "generated")):
        axis.scatter(*other.T, s=4, color="0.88", linewidths=0)
        for i, name in enumerate(names):
            axis.scatter(*place[labels == name].T, s=7, color=colours(i), linewidths=0, label=name)
        axis.set(title=f"{side}, {len(place)} cells", xticks=[], yticks=[])
    axes[1].legend(fontsize=7, frameon=False, markerscale=2, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(f"{title}: {method}" if title else method, fontsize=10)
    _save(path, figure)


def plot_rank_line(path: str | Path, expression: Any, slope: float, intercept: float, title: str = "") -> None:
    """Density of log10(1 + rank) against expression, with the line that turns a rank back into expression.

    Args:
      path: picture to write.
      expression: [N, G] log expression; positive entries are ranked within each cell, tied ones in any order.
      slope: of the line over log10(1 + rank).
      intercept: its value at rank 0.
      title: above.
    """
    ranks, values = [], []
    for row in dense(expression):
        found = np.sort(row[row > 0])[::-1]
        values.append(found)
        ranks.append(np.log10(1 + np.arange(len(found))))
    x, y = np.concatenate(ranks), np.concatenate(values)
    check(len(x) > 0, "expression", "no value above 0", "give log expression of at least one cell")
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(5.2, 3.8), layout="constrained")
    drawn = axis.hexbin(x, y, gridsize=50, bins="log", cmap="Greys", linewidths=0)
    ends = np.array([0, x.max()])
    axis.plot(ends, intercept + slope * ends, color="C3", label=f"{intercept:.3g} {slope:+.3g} log10(1 + rank)")
    axis.set(xlabel="log10(1 + rank)", ylabel="expression", title=title)
    axis.legend(fontsize=8, frameon=False)
    figure.colorbar(drawn, ax=axis, label="genes of cells")
    _save(path, figure)


def plot_confusion(path: str | Path, found: Classification, title: str = "") -> None:
    """Confusion matrix: shares of each true label's cells as shades, counts as numbers."""
    table = found.confusion if found.invalid else found.confusion[:, :-1]
    columns = [*found.labels, *(["no label"] if found.invalid else [])]
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    size = 1.8 + 0.38 * len(found.labels)
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(size + 1.2, size), layout="constrained")
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(table):
        if count:
            axis.text(j, i, str(count), ha="center", va="center", fontsize=7,
                      color="white" if shares[i, j] > 0.5 else "black")
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(found.labels)), found.labels, fontsize=7)
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(title or f"accuracy {found.accuracy.value:.3f}, macro-F1 {found.macro_f1.value:.3f}", fontsize=10)
    _save(path, figure)


def plot_bars(path: str | Path, values: Mapping[str, Mapping[str, float | Interval]], ylabel: str, title: str = "",
              log: bool = False) -> None:
    """Bars of a metric, one group a label and one colour a method.

    Args:
      path: picture to write.
      values: by method (the model, then baselines) and label; intervals are drawn as such, NaN is left out.
      ylabel: metric with its unit.
      title: above.
      log: logarithmic axis, for distances.
    """
    check(len(values) > 0, "values", "none", "give at least one method")
    labels = list(dict.fromkeys(label for found in values.values() for label in found))
    width = 0.8 / len(values)
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(2 + 0.28 * len(labels) * (1 + len(values)), 3.4), layout="constrained")
    for i, (name, found) in enumerate(values.items()):
        at = np.array([j for j, label in enumerate(labels) if label in found]) + (i - (len(values) - 1) / 2) * width
        heights = [v.value if isinstance(v, Interval) else float(v) for v in (found[n] for n in labels if n in found)]
        axis.bar(at, heights, width, label=name, color=f"C{i % 10}")
        for x, value in zip(at, (found[n] for n in labels if n in found), strict=True):
            if isinstance(value, Interval):
                axis.plot([x, x], [value.low, value.high], color="black", linewidth=1)
    axis.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
    axis.set_ylabel(ylabel)
    axis.set_title(title, fontsize=10)
    if log:
        axis.set_yscale("log")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(path, figure)


def plot_volcano(path: str | Path, table: ScreenTable, named: int = 10, title: str = "") -> None:
    """Splits of a screen against -log10 of their p-values; conditional candidates filled, the first ones named.

    Args:
      path: picture to write.
      table: what `screen` gave.
      named: how many of the conditional candidates get their names.
      title: above.
    """
    x, y = table.split[:, 0], -np.log10(table.p)
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 4.2), layout="constrained")
    axis.scatter(x, y, s=14, facecolors="none", edgecolors="0.6", label=f"{len(x)} candidates")
    hits = table.conditional
    axis.scatter(x[hits], y[hits], s=18, color="C3", linewidths=0, label=f"{int(hits.sum())} conditional")
    passing = table.p[table.q <= table.config.fdr]
    if len(passing):
        axis.axhline(-np.log10(passing.max()), color="0.5", linewidth=0.8, linestyle=":",
                     label=f"false discovery rate {table.config.fdr:g}")
    # Hits crowd at the least p-value there is: their names stand in a column beside the plot, by falling split.
    first = sorted((i for i in table.order[:named] if hits[i]), key=lambda i: -x[i])
    for place, i in enumerate(first):
        axis.annotate(table.candidates[i], (x[i], y[i]), xytext=(1.03, 0.97 - 0.055 * place), va="center", fontsize=7,
                      textcoords="axes fraction", arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5})
    axis.axvline(0, color="0.8", linewidth=0.8)
    axis.set(xlabel=f"effect in {table.config.positive} less effect in {table.config.neutral}", ylabel="-log10 p")
    axis.set_title(title, fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    _save(path, figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(path: str | Path, figure: Any) -> None:
    with aside(path) as temporary:
        figure.savefig(temporary, dpi=DPI, bbox_inches="tight")
    _pyplot().close(figure)
