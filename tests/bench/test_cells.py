"""Ratios of hand-made seconds, and the published package's sentences where it is installed."""

import importlib.util

import pytest

from jaxllm.bench import cells
from jaxllm.bench.cells import make_cells, ratios, reference


def test_ratios_of_hand_made_seconds():
    out = {"seconds": {"strings": [1.0, 2.0, 3.0], "ids": [0.5, 1.0, 9.0], "reference": [20.0, 10.0, 30.0]},
           "memory": [{"peak_bytes": 100}, {"peak_bytes": 105}]}
    assert ratios(out) == {"strings_vs_reference": pytest.approx(10.0), "ids_vs_reference": pytest.approx(20.0),
                           "memory_many_vs_few": pytest.approx(1.05)}
    del out["seconds"]["reference"]
    assert ratios(out)["ids_vs_reference"] is None


def test_cells_are_as_dense_and_tied_as_they_should_be(monkeypatch):
    monkeypatch.setattr(cells, "GENES", 200)
    data = make_cells(100)
    assert data.shape == (100, 200) and 0.08 < data.X.nnz / 20_000 < 0.12
    assert (make_cells(100).X != data.X).nnz == 0


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("cell2sentence") is None, reason="needs cell2sentence")
def test_reference_ties_give_the_published_packages_sentences(monkeypatch):
    monkeypatch.setattr(cells, "GENES", 200)
    data = make_cells(300)
    ours = cells._strings(data.X, list(data.obs_names), list(data.var_names), "reference")
    theirs = reference()(data)
    for name in ("cell_name", "cell_sentence"):
        assert ours.column(name).to_pylist() == list(theirs[name])
