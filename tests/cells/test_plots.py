"""Pictures are written whole, say how they were made, and go without umap-learn."""

import importlib.util

import numpy as np
import pytest
from matplotlib import image

from jaxllm.cells import plots
from jaxllm.cells.classification import classification
from jaxllm.cells.screen import ScreenConfig, screen
from jaxllm.config import ConfigError
from jaxllm.studies.intervals import Interval


@pytest.fixture(scope="module")
def cells():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 40)
    x = rng.random((80, 12)) + 3 * (labels == "b")[:, None]
    return x, labels


def written(path):
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half written beside it
    picture = image.imread(path)
    assert min(picture.shape[:2]) > 150 and picture[..., :3].std() > 0.01
    return picture


def separated(place, labels):
    centres = [place[labels == name].mean(0) for name in ("a", "b")]
    return np.linalg.norm(centres[0] - centres[1]) > 2 * max(place[labels == n].std() for n in ("a", "b"))


def test_map_without_umap_is_of_principal_components(cells, monkeypatch):
    x, labels = cells
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    real, made, method = plots.cell_map(x, x[::2])
    np.testing.assert_allclose(real[::2], made)
    assert "umap-learn is not installed" in method and separated(real[:, :1], labels)


def test_map_of_few_cells(cells):
    assert "too few cells" in plots.cell_map(cells[0][:6], cells[0][6:9])[2]


@pytest.mark.slow
def test_umap_of_real_and_generated(tmp_path, cells, monkeypatch):
    x, labels = cells
    made = x + 0.05
    first, second, method = plots.cell_map(x, made, 5)
    assert method == "UMAP of 5 principal components" and first.shape == second.shape == (80, 2)
    assert separated(np.concatenate([first, second]), np.concatenate([labels, labels]))
    monkeypatch.setattr(plots, "cell_map", lambda *args, **kwargs: (first, second, method))
    plots.plot_cells(tmp_path / "map.png", x, labels, made, labels, "pbmc", n_components=5)
    written(tmp_path / "map.png")
    with pytest.raises(ConfigError, match="generated_labels"):
        plots.plot_cells(tmp_path / "map.png", x, labels, made, labels[:3])


@pytest.mark.slow
def test_umap_is_the_same_by_seed(cells):
    x = cells[0]
    np.testing.assert_allclose(plots.cell_map(x, x + 0.05, 5)[0], plots.cell_map(x, x + 0.05, 5)[0])


def test_rank_line(tmp_path, cells):
    plots.plot_rank_line(tmp_path / "line.png", cells[0], -0.5, 3.0, "line")
    written(tmp_path / "line.png")
    with pytest.raises(ConfigError, match="no value above 0"):
        plots.plot_rank_line(tmp_path / "line.png", np.zeros((2, 3)), -0.5, 3.0)


def test_confusion(tmp_path):
    plots.plot_confusion(tmp_path / "c.png", classification(["a", "b", "b"], ["a", "b", "?"]))
    written(tmp_path / "c.png")


def test_bars_with_intervals_and_gaps(tmp_path):
    values = {"model": {"a": Interval(0.8, 0.7, 0.9, 10), "b": 0.5}, "marginals": {"a": 0.3, "b": float("nan")},
              "copies": {"b": 0.9}}
    plots.plot_bars(tmp_path / "b.png", values, "accuracy", "by type")
    written(tmp_path / "b.png")
    plots.plot_bars(tmp_path / "b.png", {"m": {"a": 3.0, "b": 300.0}}, "scFID", log=True)
    written(tmp_path / "b.png")
    with pytest.raises(ConfigError, match="at least one method"):
        plots.plot_bars(tmp_path / "b.png", {}, "accuracy")


def test_volcano(tmp_path):
    rng = np.random.default_rng(0)
    treated = {"positive": rng.normal(size=(30, 40)), "neutral": rng.normal(size=(30, 40))}
    treated["positive"][:3] += 2
    control = {"positive": np.zeros(40), "neutral": np.zeros(40)}
    table = screen(treated, control, [f"drug{i}" for i in range(30)], ScreenConfig(samples=50, permutations=999))
    plots.plot_volcano(tmp_path / "v.png", table, title="planted")
    written(tmp_path / "v.png")
